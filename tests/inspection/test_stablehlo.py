"""A run that is exported as a program gives the logits of the run, for batches of any size."""

import jax
import numpy as np
import pytest
from jax import export

import kdjax
from kdjax.errors import UserError
from kdjax.inspection.stablehlo import export_program
from kdjax.store import Store
from kdjax.training.loop import train

FIXED = """
import flax.linen as nn


class Fixed(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        print_size = int(images.shape[0])
        return nn.Dense(self.num_classes)(images.reshape(print_size, -1))
"""


@pytest.mark.parametrize("model", ["mlp", pytest.param("resnet8", marks=pytest.mark.slow)])
def test_a_program_that_is_read_again_has_the_logits_of_the_run(model, config, tmp_path, one_device, image_file):
    """Resizing and normalisation are in it: it takes images as they are stored."""
    config.model.name = model
    config.model.args = {"widths": (4, 4, 4, 4)} if model == "resnet8" else {"hidden": (4,)}
    config.data.size, config.epochs = 12, 1
    config.teachers, config.losses = {}, {"cross_entropy": {"weight": 1.0}}
    store, path = Store(tmp_path / "runs"), tmp_path / "run.stablehlo"
    train(config, store, name="a", devices=one_device, show=False)
    assert export_program(store, "a", str(path), devices=one_device) == ["batch", "8", "8", "3"]
    program = export.deserialize(bytearray(path.read_bytes()))
    images, loaded = np.load(image_file)["images"], kdjax.load("a", store)
    for count in (1, 7):
        logits = program.call(images[:count])
        assert logits.shape == (count, 4)
        np.testing.assert_allclose(logits, jax.jit(loaded.logits)(images[:count]), rtol=1e-5, atol=1e-5)
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}


def test_a_network_for_one_size_of_batch_is_refused_in_one_line(config, tmp_path, one_device, monkeypatch):
    (tmp_path / "fixed_net.py").write_text(FIXED)
    monkeypatch.syspath_prepend(tmp_path)
    config.model.name, config.model.head, config.epochs = "fixed_net:Fixed", "Dense_0", 1
    config.teachers, config.losses = {}, {"cross_entropy": {"weight": 1.0}}
    store = Store(tmp_path / "runs")
    train(config, store, name="a", devices=one_device, show=False)
    with pytest.raises(UserError, match="cannot be exported for a batch of any size") as error:
        export_program(store, "a", str(tmp_path / "run.stablehlo"), devices=one_device)
    assert "\n" not in str(error.value) and not (tmp_path / "run.stablehlo").exists()
