"""The data and the config of the small world."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from small_world import student_config


@pytest.fixture(scope="session")
def image_file(tmp_path_factory) -> str:
    """64 + 24 small images of four classes, with soft labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(88) % 4
    images = rng.integers(0, 256, (88, 8, 8, 3)).astype(np.uint8)
    images[:, :, :, 0] = images[:, :, :, 0] // 4 + 40 * labels[:, None, None].astype(np.uint8)
    soft = rng.dirichlet(np.ones(4), 88)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(
        path, images=images[:64], labels=labels[:64], soft=soft[:64],
        test_images=images[64:], test_labels=labels[64:], test_soft=soft[64:],
    )  # fmt: skip
    return str(path)


@pytest.fixture
def config(image_file) -> ConfigDict:
    config = student_config()
    config.data.args = {"path": image_file}
    config.data.view = "crop_flip"
    return config
