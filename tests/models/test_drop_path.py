"""Drop-path: an example's draws do not depend on its batch or device."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import UserError
from kdjax.models.drop_path import drop_path
from kdjax.models.vit import Block

ARGS = {"patch": 4, "dim": 12, "depth": 4, "heads": 2}
IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 6)


def network(rate):
    return models.create_model("deit_tiny", 5, drop_path=rate, **ARGS)


VARIABLES = jax.tree.map(lambda leaf: leaf + 0.1, models.init_variables(network(0.0), (1, 8, 8, 3), 0))


def logits(rate, images=IMAGES, keys=KEYS, train=True):
    call = jax.jit(lambda images, keys: models.call(network(rate), VARIABLES, images, train=train, keys=keys)[0].logits)
    return call(images, keys)


def test_a_branch_is_left_out_at_the_rate_and_its_mean_is_kept():
    keys, x = jax.random.split(jax.random.key(1), 20_000), np.ones((20_000, 2, 3), np.float32)
    out = np.asarray(drop_path(x, keys, 3, 0.3))
    kept = out[:, 0, 0] > 0
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.21 / 20_000)
    np.testing.assert_allclose(out[kept], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(out[~kept], 0)


def test_branches_and_examples_draw_for_themselves():
    keys, x = jax.random.split(jax.random.key(1), 5_000), np.ones((5_000, 1), np.float32)
    first, second = (np.asarray(drop_path(x, keys, draw, 0.5))[:, 0] > 0 for draw in (0, 1))
    assert abs((first & second).mean() - 0.25) < 4 * np.sqrt(0.1875 / 5_000)


def test_an_example_draws_the_same_in_any_batch():
    whole = logits(0.5)
    np.testing.assert_allclose(logits(0.5, IMAGES[4:1:-1], KEYS[4:1:-1]), whole[4:1:-1], rtol=1e-5, atol=1e-6)
    assert np.abs(whole - logits(0.0)).max() > 1e-3


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    np.testing.assert_array_equal(logits(0.5, train=False), logits(0.0))
    np.testing.assert_array_equal(logits(0.0, keys=None), logits(0.0))


def test_training_without_keys_is_refused():
    with pytest.raises(UserError, match="needs `keys`"):
        logits(0.5, keys=None)
    with pytest.raises(UserError, match="one key an example, 6 of them"):
        logits(0.5, keys=KEYS[:1])


def test_rates_rise_linearly_from_none_in_the_first_block():
    """Every block also has its own number, on which its random draws depend."""
    seen = []

    def note(call_next, args, kwargs, context):
        if isinstance(context.module, Block) and context.method_name == "__call__":
            seen.append((context.module.number, context.module.drop_path))
        return call_next(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda images: network(0.3).apply(VARIABLES, images, train=True, keys=KEYS), IMAGES)
    np.testing.assert_allclose(sorted(set(seen)), [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)], atol=1e-12)
