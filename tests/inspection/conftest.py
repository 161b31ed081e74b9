"""The images and the config of the training tests, for tests of their runs."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "training"))  # small_world, four_layers

from tests.training.conftest import config, image_file  # noqa: E402, F401
