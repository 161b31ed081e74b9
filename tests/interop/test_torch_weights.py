"""State dicts to variables and back, for every network of MODELS."""

import itertools

import jax
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import UserError
from kdjax.interop.state_dict import unwrap
from kdjax.interop.torch_weights import from_state_dict, to_state_dict

LARGE = ("vit_b32", "resnet152", "resnet101", "resnet50_cifar", "densenet100", "resnet32x4_aux", "vgg19", "deit3_small")
# Other sizes of networks that stay in the ordinary suite.
LARGE += ("resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet32x4", "resnet34")
LARGE += ("resnet20_aux", "resnet56_aux", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg11", "vgg13", "vgg16")
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name
    for name in sorted(set(models.MODELS) - {"mlp", *models.WRAPPERS})
]


def drawn(module, shape, seed=0):
    """Returns variables of the right shapes in which all values differ."""
    counter, shapes = itertools.count(seed + 1), models.variable_shapes(module, shape)

    def ramp(leaf):
        size = int(np.prod(leaf.shape))
        return (np.arange(size, dtype=np.float32) / size + next(counter)).reshape(leaf.shape)

    return jax.tree.map(ramp, shapes)


@pytest.mark.parametrize("name", NAMES)
def test_export_then_import_gives_the_same_bits(name):
    module = models.create_model(name, 7)
    variables = drawn(module, (1, 32, 32, 3))
    for dialect in module.TORCH_NAMES:
        state = to_state_dict(module, variables, dialect)
        assert len(state) == len(jax.tree.leaves(variables))  # no name occurs twice
        back = from_state_dict(name, state)
        jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_classes_and_channels_are_read_off_the_weights():
    module = models.create_model("resnet8", 3)
    state = to_state_dict(module, drawn(module, (1, 8, 8, 1)))
    variables = from_state_dict("resnet8", state)
    assert variables["params"]["stem"]["kernel"].shape == (3, 3, 1, 16)
    assert variables["params"]["fc"]["bias"].shape == (3,)
    logits = models.create_model("resnet8", 3).apply(variables, np.zeros((2, 8, 8, 1), np.float32), train=False).logits
    assert logits.shape == (2, 3)


def test_layouts():
    module = models.create_model("resnet8", 3)
    variables = drawn(module, (1, 8, 8, 3))
    state = to_state_dict(module, variables)
    np.testing.assert_array_equal(state["conv1.weight"][5, 2, 0, 1], variables["params"]["stem"]["kernel"][0, 1, 2, 5])
    np.testing.assert_array_equal(state["fc.weight"][1, 60], variables["params"]["fc"]["kernel"][60, 1])
    assert state["layer2.0.downsample.1.running_var"].shape == (32,)
    assert all(array.flags.c_contiguous for array in state.values())


def test_wrapping_prefixes_and_counters_are_understood():
    module = models.create_model("resnet8", 3)
    state = to_state_dict(module, drawn(module, (1, 8, 8, 3)))
    counted = {**state, "bn1.num_batches_tracked": np.array(240)}
    wrapped = {"epoch": 240, "model": {f"module.{name}": value for name, value in counted.items()}, "accuracy": 72.3}
    expected = from_state_dict("resnet8", state)
    jax.tree.map(np.testing.assert_array_equal, from_state_dict("resnet8", wrapped), expected)


def test_everything_that_does_not_fit_is_listed_in_one_message():
    module = models.create_model("resnet8", 3)
    state = to_state_dict(module, drawn(module, (1, 8, 8, 3)))
    del state["conv1.weight"], state["layer3.0.bn2.running_mean"]
    state |= {"extra.weight": np.zeros(3), "bn1.bias": np.zeros(3), "bn1.weight": np.full(16, np.nan)}
    with pytest.raises(UserError) as caught:
        from_state_dict("resnet8", state)
    message = str(caught.value)
    for part in (
        "missing: conv1.weight, layer3.0.bn2.running_mean",
        "surplus: extra.weight",
        "misshapen: bn1.bias (3,) instead of (16,)",
        "not finite: bn1.weight",
    ):
        assert part in message


def test_another_network_is_told_from_a_damaged_one():
    module = models.create_model("resnet8", 3)
    state = to_state_dict(module, drawn(module, (1, 8, 8, 3)))
    with pytest.raises(UserError, match="not of a vgg8: it has no classifier.weight"):
        from_state_dict("vgg8", state)
    with pytest.raises(UserError, match="no names for 'timm'"):
        to_state_dict(module, drawn(module, (1, 8, 8, 3)), "timm")


@pytest.mark.parametrize(
    "empty", [{}, {"epoch": 3}, {"model": {}}, {"model": {"a": np.zeros(1)}, "net": {"a": np.zeros(1)}}]
)
def test_what_holds_no_state_dict_or_several_is_refused(empty):
    with pytest.raises(UserError, match="state dict"):
        unwrap(empty)


def test_a_network_without_a_table_goes_under_its_own_paths():
    module = models.create_model("tests.models.test_feature_extraction:Plain", 3)
    variables = drawn(module, (1, 4, 4, 3))
    state = to_state_dict(module, variables)
    assert state["block1.conv.weight"].shape == (4, 3, 3, 3)
