"""Every network of the table MODELS: parameter counts, and its forward pass against one in NumPy."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import UserError
from kdjax.interop.torch_weights import from_state_dict, to_state_dict
from tests.models import restated
from tests.models.numpy_layers import random_state_dict, to_nhwc


def scalars(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# At 100 classes and 3 channels: (trainable parameters, BatchNorm's running scalars). Sources: RepDistiller's models for
# all down to resnet50_cifar, except the *_aux; torchvision for the ImageNet ResNets; mdistiller for mobilenetv1;
# Huang et al., 2017, table 2 (7.0M, 0.8M) and `densenet_parameters` below; timm for the transformers.
COUNTS = {
    "resnet8": (83_892, 672),
    "resnet14": (181_108, 1_120),
    "resnet20": (278_324, 1_568),
    "resnet32": (472_756, 2_464),
    "resnet44": (667_188, 3_360),
    "resnet56": (861_620, 4_256),
    "resnet110": (1_736_564, 8_288),
    "resnet8x4": (1_233_540, 2_752),
    "resnet32x4": (7_433_860, 9_920),
    "wrn_16_1": (180_916, 928),
    "wrn_16_2": (703_284, 1_824),
    "wrn_40_1": (569_780, 2_720),
    "wrn_40_2": (2_255_156, 5_408),
    "vgg8": (3_965_028, 2_944),
    "vgg11": (9_277_284, 5_504),
    "vgg13": (9_462_180, 5_888),
    "vgg16": (14_774_436, 8_448),
    "vgg19": (20_086_692, 11_008),
    "mobilenetv2_half": (812_836, 18_368),
    "shufflenetv1": (949_258, 23_736),
    "shufflenetv2": (1_355_528, 16_180),
    "resnet20_aux": (1_041_316, 4_576),  # `auxiliary_parameters` below
    "resnet56_aux": (3_067_684, 12_640),
    "resnet8x4_aux": (4_790_836, 7_616),
    "resnet32x4_aux": (26_340_916, 29_120),
    "resnet50_cifar": (23_705_252, 53_120),
    "resnet18": (11_227_812, 9_600),
    "resnet34": (21_335_972, 17_024),
    "resnet50": (23_712_932, 53_120),
    "resnet101": (42_705_060, 105_344),
    "resnet152": (58_348_708, 151_424),
    "mobilenetv1": (3_309_476, 21_888),
    "densenet100": (7_084_852, 117_216),
    "densenet100_bc": (800_032, 23_988),
    "deit_tiny": (5_543_716, 0),
    "deit3_small": (21_712_996, 0),
    "vit_b32": (87_532_132, 0),
}
# At 1000 classes, as methods and torchvision (resnet101, resnet152, vit_b_32) and timm (the transformers) print them.
IMAGENET = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "mobilenetv1": 4_231_976,
    "deit_tiny": 5_717_416,
    "deit3_small": 22_059_496,
    "vit_b32": 88_224_232,
}


def image_side(name):
    return 224 if name.startswith(("deit", "vit")) else 32


def but_for(slow, names):
    """Returns the names as parameters; those in `slow`, other sizes of a network that stays, are slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


OTHER_SIZES = (
    "resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 resnet32x4 wrn_16_2 wrn_40_1 vgg11 vgg13 vgg16".split()
)
OTHER_SIZES += "resnet20_aux resnet56_aux resnet32x4_aux resnet34 resnet101 resnet152 densenet100 deit3_small".split()


def test_every_network_is_counted():
    assert set(COUNTS) == set(models.MODELS) - {"mlp", "wrn", *models.WRAPPERS}


@pytest.mark.parametrize("name", but_for(OTHER_SIZES, COUNTS))
def test_parameters_and_statistics_at_100_classes(name):
    side = image_side(name)
    shapes = models.variable_shapes(models.create_model(name, 100), (1, side, side, 3))
    assert (scalars(shapes["params"]), scalars(shapes["batch_stats"])) == COUNTS[name]


@pytest.mark.parametrize("name", but_for(OTHER_SIZES, IMAGENET))
def test_parameters_at_1000_classes(name):
    shapes = models.variable_shapes(models.create_model(name, 1000), (1, 224, 224, 3))
    assert scalars(shapes["params"]) == IMAGENET[name]


def densenet_parameters(depth, k, bottleneck, classes):
    """Returns the number of parameters, counted layer by layer from the paper's description."""
    channels, total = (2 * k if bottleneck else 16), 0
    total += 27 * channels
    for block in range(3):
        for _ in range((depth - 4) // (6 if bottleneck else 3)):
            inside = 4 * k
            total += 2 * channels + (
                channels * inside + 2 * inside + 9 * inside * k if bottleneck else 9 * channels * k
            )
            channels += k
        if block < 2:
            after = channels // 2 if bottleneck else channels
            total += 2 * channels + channels * after
            channels = after
    return total + 2 * channels + (channels + 1) * classes


@pytest.mark.parametrize(("name", "bottleneck"), [("densenet100", False), ("densenet100_bc", True)])
def test_densenet_parameters(name, bottleneck):
    assert COUNTS[name][0] == densenet_parameters(100, 12, bottleneck, 100)


def auxiliary_parameters(depth, widths, classes):
    """Returns the counts of a ResNet and of three branches that continue from its stages with 4 outputs a class."""
    blocks, name = (depth - 2) // 6, {16: f"resnet{depth}", 32: f"resnet{depth}x4"}[widths[0]]
    total, scalars = COUNTS[name]
    for stages, strided in ((widths[1:], True), (widths[2:], True), ((widths[3], widths[3]), False)):
        for before, after in zip(stages, stages[1:]):
            total += 9 * before * after + 9 * after * after + 4 * after + strided * (before * after + 2 * after)
            total += (blocks - 1) * (18 * after * after + 4 * after)
            scalars += 4 * after * blocks + strided * 2 * after
        total += (widths[3] + 1) * 4 * classes
    return total, scalars


@pytest.mark.parametrize(
    ("name", "depth", "widths"),
    [
        ("resnet20_aux", 20, (16, 16, 32, 64)),
        ("resnet56_aux", 56, (16, 16, 32, 64)),
        ("resnet8x4_aux", 8, (32, 64, 128, 256)),
        ("resnet32x4_aux", 32, (32, 64, 128, 256)),
    ],
)
def test_parameters_of_auxiliary_classifiers(name, depth, widths):
    assert COUNTS[name] == auxiliary_parameters(depth, widths, 100)


# (name, constructor's arguments, the network in NumPy, image shape), with at least one small network of each family
FORWARD = [
    ("wrn", {"depth": 16, "width": 1}, partial(restated.wide_resnet, blocks=2), (16, 12, 3)),
    ("wrn", {"depth": 10, "width": 3}, partial(restated.wide_resnet, blocks=1), (8, 8, 1)),
    ("vgg8", {"widths": (4, 6, 8, 10, 6)}, partial(restated.vgg, blocks=(1, 1, 1, 1, 1)), (64, 64, 3)),
    ("vgg16", {"widths": (4, 6, 8, 10, 6)}, partial(restated.vgg, blocks=(2, 2, 3, 3, 3)), (32, 32, 3)),
    ("mobilenetv2_half", {}, restated.mobilenet_v2, (32, 32, 3)),
    ("mobilenetv1", {}, restated.mobilenet_v1, (32, 48, 3)),
    ("shufflenetv1", {"repeats": (2, 1, 2)}, partial(restated.shufflenet_v1, repeats=(2, 1, 2), groups=3), (16, 16, 3)),
    ("shufflenetv2", {"repeats": (1, 2, 1)}, partial(restated.shufflenet_v2, repeats=(1, 2, 1)), (16, 16, 3)),
    (
        "resnet18",
        {"width": 0.125},
        partial(restated.resnet, shortcut="downsample", head="fc", small=False),
        (37, 32, 3),
    ),
    (
        "resnet50",
        {"width": 0.125},
        partial(restated.resnet, shortcut="downsample", head="fc", small=False),
        (32, 32, 3),
    ),
    (
        "resnet50_cifar",
        {"width": 0.125},
        partial(restated.resnet, shortcut="shortcut", head="linear", small=True),
        (16, 16, 3),
    ),
    ("densenet100_bc", {"depth": 22, "growth": 6}, partial(restated.densenet, layers=3), (8, 8, 3)),
    ("densenet100", {"depth": 13, "growth": 4}, partial(restated.densenet, layers=3), (8, 8, 3)),
    ("resnet20_aux", {"widths": (4, 4, 6, 8)}, restated.auxiliary_resnet, (8, 8, 3)),
    (
        "deit_tiny",
        {"patch": 4, "dim": 24, "depth": 8},
        partial(restated.vision_transformer, patch=4, depth=8, heads=3),
        (16, 16, 3),
    ),
    (
        "deit3_small",
        {"patch": 4, "dim": 24, "depth": 4},
        partial(restated.vision_transformer, patch=4, depth=4, heads=6),
        (16, 16, 3),
    ),
]


@pytest.mark.parametrize(("name", "args", "forward", "image"), FORWARD)
def test_logits_and_features_equal_numpy(name, args, forward, image):
    module = models.create_model(name, 7, **args)
    shapes = models.variable_shapes(module, (1, *image))
    names = to_state_dict(module, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    state = random_state_dict({name: array.shape for name, array in names.items()})
    variables = from_state_dict(name, state, **args)
    images = np.random.default_rng(1).normal(size=(2, *image)).astype(np.float32)
    output, _ = jax.jit(lambda v, x: models.call(module, v, x, train=False))(variables, images)
    doubled = {name: array.astype(np.float64) for name, array in state.items()}
    logits, features, pooled = forward(doubled, np.moveaxis(images, -1, 1).astype(np.float64))
    close = partial(np.testing.assert_allclose, rtol=0)
    close(output.logits, logits, atol=1e-5 * np.abs(logits).max())
    close(output.pooled, pooled, atol=1e-5 * np.abs(pooled).max())
    assert set(output.features) == set(features)
    for stage, value in features.items():
        value = to_nhwc(value) if value.ndim == 4 else value
        close(output.features[stage], value, atol=1e-5 * np.abs(value).max(), err_msg=stage)


SMALL = {name: args for name, args, _, _ in FORWARD} | {"resnet8": {"widths": (4, 4, 6, 8)}}
ONE_OF_A_KIND = but_for(("vgg16", "resnet18", "resnet50_cifar", "densenet100", "deit3_small"), SMALL)


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_bfloat16_keeps_parameters_and_logits_in_float32(name):
    shape = (2, 32, 32, 3)
    module = models.create_model(name, 7, dtype="bfloat16", **SMALL[name])
    variables = models.variable_shapes(module, shape)
    output, _ = jax.eval_shape(
        lambda v, x: models.call(module, v, x, train=True), variables, jax.ShapeDtypeStruct(shape, np.float32)
    )
    assert output.logits.dtype == output.pooled.dtype == jnp.float32
    maps = [leaf for leaf in output.features.values() if leaf.ndim == 4]  # others are logits of branches
    assert {leaf.dtype for leaf in maps} == {np.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_float64_stays_float64(name):
    with jax.enable_x64(True):
        shape = (2, 32, 32, 3)
        module = models.create_model(name, 7, **SMALL[name])
        variables = models.variable_shapes(module, shape)
        output, stats = jax.eval_shape(
            lambda v, x: models.call(module, v, x, train=True), variables, jax.ShapeDtypeStruct(shape, np.float64)
        )
        assert {leaf.dtype for leaf in jax.tree.leaves((output, stats))} == {np.dtype(np.float64)}


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_every_leaf_is_drawn_as_the_papers_code_draws_it(name):
    variables = models.init_variables(models.create_model(name, 7, **SMALL[name]), (1, 32, 32, 3), 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        last = path[-1].key
        assert np.isfinite(leaf).all()
        if last in ("scale", "var"):
            np.testing.assert_array_equal(leaf, 1)
        elif last == "mean":
            np.testing.assert_array_equal(leaf, 0)
        elif last == "kernel":
            assert 0 < leaf.std() < 1 and abs(leaf.mean()) < 4 * leaf.std() / math.sqrt(leaf.size)


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_pre_activations_come_from_the_norms_that_are_named(name):
    module = models.create_model(name, 7, **SMALL[name])
    if not hasattr(module, "preact_norms"):
        return
    variables = models.variable_shapes(module, (1, 32, 32, 3))
    output = jax.eval_shape(lambda v, x: module.apply(v, x), variables, np.zeros((1, 32, 32, 3), np.float32))
    for stage, path in module.preact_norms().items():
        norm = variables["params"]
        for part in path.split("/"):
            norm = norm[part]
        assert set(norm) == {"scale", "bias"}
        feature = output.features.get(f"{stage}_preact", output.features[stage])
        assert norm["scale"].shape == feature.shape[-1:]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("wrn", {"depth": 17}, "depth must be 4 \\+ 6 n"),
        ("wrn", {"width": 0}, "width must be a whole widening factor"),
        ("vgg8", {"depth": 9}, "depth must be one of 8, 11"),
        ("vgg8", {"widths": (1, 2)}, "five positive channel counts"),
        ("mobilenetv2_half", {"width": 0.01}, "at least 1/16"),
        ("shufflenetv1", {"groups": 7}, "cannot be split into"),
        ("shufflenetv1", {"repeats": (1, 2)}, "one repeat for each"),
        ("shufflenetv2", {"widths": (115, 232, 464, 1024)}, "must be even"),
        ("resnet18", {"depth": 20}, "depth must be one of 18"),
        ("densenet100", {"depth": 99}, "depth must be 4 \\+ 3 n"),
        ("deit_tiny", {"heads": 5}, "heads must divide"),
        ("deit_tiny", {"heads": 0}, "heads must be a whole number"),
        ("deit_tiny", {"depth": 4.5}, "depth must be an integer, not 4.5"),
        ("deit_tiny", {"mlp_ratio": "4"}, "mlp_ratio must be a number"),
        ("deit_tiny", {"mlp_ratio": 0.0}, "mlp_ratio must be above 0"),
        ("deit_tiny", {"drop_path": 1.0}, "drop_path must be in"),
    ],
)
def test_a_bad_field_is_answered_in_one_line(name, args, message):
    with pytest.raises(UserError, match=message):
        models.create_model(name, 7, **args)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vgg8", (1, 4, 4, 3), "images of at least 8 pixels a side"),
        ("deit_tiny", (1, 40, 40, 3), "multiples"),
        ("resnet18", (2, 30), "reads images"),
    ],
)
def test_images_that_do_not_suit_are_answered_in_one_line(name, shape, message):
    with pytest.raises(UserError, match=message):
        models.variable_shapes(models.create_model(name, 7), shape)


def test_a_transformer_reads_images_of_the_size_of_its_positions_only():
    module = models.create_model("deit_tiny", 7, patch=4, dim=12, depth=4)
    variables = models.init_variables(module, (1, 16, 16, 3), 0)
    with pytest.raises(UserError, match="17 position embeddings cannot read images of 4 patches"):
        models.call(module, variables, np.zeros((2, 8, 8, 3), np.float32), train=False)
