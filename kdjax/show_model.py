"""Describes a config's network: python -m kdjax.show_model --config=configs/kd_student.py:cifar100"""

from absl import flags

from kdjax import cli

cli.define_common_flags()
cli.define_config_flag()
cli.define(flags.DEFINE_integer, "image_size", 0, "Side of the images in pixels; 0 for the data set's.", lower_bound=0)
cli.define(flags.DEFINE_integer, "num_classes", 0, "Number of classes; 0 for the data set's.", lower_bound=0)
cli.define(flags.DEFINE_boolean, "inner", False, "Also list the submodules that config.model.features can name.")


def main() -> None:
    """Prints the parameters of each layer, the features with their shapes, and the cost of a forward pass."""
    flag = cli.FLAGS
    from kdjax import models
    from kdjax.data import shape_and_classes
    from kdjax.reporting.tables import description_text
    from kdjax.training.networks import build

    (*sides, channels), num_classes = shape_and_classes(flag.config.data, flag.data_dir)
    image_shape = (flag.image_size, flag.image_size, channels) if flag.image_size else (*sides, channels)
    network = build(flag.config.model.to_dict(), flag.num_classes or num_classes)
    models.check_features(network, (1, *image_shape))
    description = models.describe(network, image_shape)
    print(description_text(flag.config.model.name, image_shape, description, inner=flag.inner))


if __name__ == "__main__":
    cli.run(main)
