"""The noise of TeKAP's teachers: new in each epoch, the same wherever an example stands in a batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.distillation.noisy import noise_of


def test_noise_is_a_function_of_the_seed_the_epoch_and_the_example():
    rows = jnp.arange(6)
    noise = np.asarray(noise_of(1, 0, rows, (3, 50)))
    np.testing.assert_array_equal(noise_of(1, 0, rows[::-1], (3, 50)), noise[::-1])
    for seed, epoch in ((1, 1), (2, 0)):
        assert not (np.asarray(noise_of(seed, epoch, rows, (3, 50))) == noise).any()
    assert len(np.unique(noise)) == noise.size
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise \[2, 4\] must be \[\.\.\., copies, classes\] for logits \[2, 4\]"):
        losses.tekap(np.zeros((2, 4)), np.zeros((2, 4)), np.zeros((2, 4)))
