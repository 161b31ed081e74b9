"""Draws what a config's networks are shown: python -m kdjax.show_views --config=configs/kd_student.py:cifar100"""

from absl import flags

from kdjax import cli

cli.define_common_flags()
cli.define_config_flag()
cli.define(flags.DEFINE_string, "out", "views.png", "The picture to write.")
cli.define(flags.DEFINE_integer, "images", 8, "Rows: examples.", lower_bound=1)
cli.define(flags.DEFINE_integer, "visits", 6, "Columns of every view: visits of an example.", lower_bound=1)


def main() -> None:
    """Writes a contact sheet of the student's view and, where it differs, of the teachers'."""
    from kdjax.data import load_dataset, resolve_view
    from kdjax.reporting.contact_sheet import contact_sheet
    from kdjax.training.plan import resolve

    flag = cli.FLAGS
    config = resolve(flag.config)
    dataset = load_dataset(config.data, flag.data_dir)
    if len(dataset.stored_shape) == 1:
        raise cli.UserError(f"data set '{dataset.name}' has vectors, of which there is nothing to see.")
    teachers = [teacher.view or config.data.teacher_view or config.data.view for teacher in config.teachers.values()]
    views = tuple(dict.fromkeys(resolve_view(dataset, view) for view in (config.data.view, *teachers)))
    contact_sheet(dataset, views, config.seed, flag.images, flag.visits).save(flag.out)
    print(f"{flag.out}: the image as it is tested, then {flag.visits} visits of {' and of '.join(views)}.")


if __name__ == "__main__":
    cli.run(main)
