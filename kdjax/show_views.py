"""Draws the augmented images of a config: python -m kdjax.show_views --config=configs/kd_student.py:cifar100"""

from absl import flags

from kdjax import cli

cli.define_common_flags()
cli.define_config_flag()
cli.define(flags.DEFINE_string, "out", "views.png", "Image file to write.")
cli.define(flags.DEFINE_integer, "images", 8, "Number of examples, one in each row.", lower_bound=1)
cli.define(flags.DEFINE_integer, "visits", 6, "Number of epochs shown, one in each column of a view.", lower_bound=1)


def main() -> None:
    """Writes a contact sheet of the student's view and of the teachers' views where they differ."""
    from kdjax.config import order_seed
    from kdjax.data import load_dataset, resolve_view
    from kdjax.reporting.contact_sheet import contact_sheet
    from kdjax.training.plan import resolve

    flag = cli.FLAGS
    config = resolve(flag.config)
    dataset = load_dataset(config.data, flag.data_dir)
    if len(dataset.stored_shape) == 1:
        raise cli.UserError(f"data set '{dataset.name}' has vectors, not images; there is nothing to draw.")
    teachers = [teacher.view or config.data.teacher_view or config.data.view for teacher in config.teachers.values()]
    views = tuple(dict.fromkeys(resolve_view(dataset, view) for view in (config.data.view, *teachers)))
    sheet = contact_sheet(dataset, views, order_seed(config), flag.images, flag.visits)
    try:
        sheet.save(flag.out)
    except ValueError as error:  # Pillow knows no format of this ending
        raise cli.UserError(f"--out={flag.out}: '{error}'; name an image file such as views.png.") from error
    print(f"{flag.out}: the image as it is tested, then {flag.visits} epochs of {' and of '.join(views)}.")


if __name__ == "__main__":
    cli.run(main)
