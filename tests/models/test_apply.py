"""Calling any network: arguments, outputs, and BatchNorm over the global batch, which equals that of one device."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kdjax import models
from kdjax.errors import UserError
from kdjax.types import ModelOutput

DEVICES, SHARE = 4, 3
SMALL_RESNET = models.create_model("resnet8", 5, widths=(4, 4, 6, 8))


class NormedBlock(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (3, 3))(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.7)(x))


class UserNet(nn.Module):
    """Has a BatchNorm created in setup and called twice, one in a submodule, and one inside a lifted transform."""

    num_classes: int

    def setup(self):
        self.shared = nn.BatchNorm(momentum=0.8)
        self.plain = NormedBlock(4)
        self.rematerialised = nn.remat(NormedBlock, static_argnums=2)(4)
        self.head = nn.Dense(self.num_classes)

    def __call__(self, images, train):
        x = self.shared(images, use_running_average=not train)
        x = self.shared(jnp.sin(x), use_running_average=not train)
        x = self.rematerialised(self.plain(x, train), train)
        return self.head(x.mean(axis=(1, 2)))


class Subclassed(nn.BatchNorm):
    @nn.compact
    def __call__(self, x, use_running_average=None):
        return 2 * super().__call__(x, use_running_average)


class Scanned(nn.Module):
    """A stack of layers built by nn.scan, with a subclass of BatchNorm in each."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.tanh(Subclassed()(nn.Dense(3)(x), use_running_average=not train)), None

        x = images.reshape(images.shape[0], -1)[:, :3]
        stack = nn.scan(Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2)
        return nn.Dense(self.num_classes)(stack()(x, None)[0])


class OwnAxis(nn.Module):
    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(images.shape[0], -1)
        return nn.Dense(self.num_classes)(nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x))


class OtherNorm(nn.Module):
    """Has batch statistics of its own, besides those of a BatchNorm."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(use_running_average=not train)(images.reshape(images.shape[0], -1))
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        return nn.Dense(self.num_classes)(x - mean.value)


class Bare(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes, dtype=jnp.bfloat16)(images.reshape(images.shape[0], -1))


class Dropped(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(images.reshape(images.shape[0], -1))
        return nn.Dense(self.num_classes)(x)


class AlwaysDropped(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=False)(images.reshape(images.shape[0], -1)))


class AlwaysNormed(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(nn.BatchNorm(False)(images.reshape(images.shape[0], -1)))


class Returns(nn.Module):
    """Returns logits in the form that `what` names."""

    num_classes: int
    what: str

    @nn.compact
    def __call__(self, images):
        x = nn.Dense(self.num_classes + (self.what == "classes"))(images.reshape(images.shape[0], -1))
        return {"tuple": (x, x), "map": x[:, None], "classes": x, "integers": x.astype(int)}[self.what]


def setting(module, seed=0):
    """Returns float64 variables, images whose four shares differ in mean and scale, and labels."""
    generator = np.random.default_rng(seed)
    shape = (DEVICES * SHARE, 6, 6, 2)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, float), models.init_variables(module, shape, seed))
    share = np.arange(DEVICES).repeat(SHARE)[:, None, None, None]
    images = generator.normal(size=shape) * (1 + share) + share
    return variables, images, generator.integers(0, module.num_classes, shape[0])


def body(module, axis_name, mean_over):
    """Returns a training step; `mean_over` averages its loss and gradients over devices."""

    def loss(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        output, stats = models.call(module, variables, images, train=True, axis_name=axis_name)
        log_probs = jax.nn.log_softmax(output.logits)
        return -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean(), (stats, output.logits)

    def step(variables, images, labels):
        args = (variables["params"], variables["batch_stats"], images, labels)
        (value, (stats, logits)), gradients = jax.value_and_grad(loss, has_aux=True)(*args)
        return mean_over((value, gradients)), stats, logits

    return step


def mapped(how, function):
    if how == "pmap" and jax.local_device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices; tests/conftest.py emulates them")
    if how == "pmap":
        return jax.pmap(function, axis_name="devices", in_axes=(None, 0, 0), devices=jax.local_devices()[:DEVICES])
    return jax.jit(jax.vmap(function, axis_name="devices", in_axes=(None, 0, 0)))


def split(array):
    return array.reshape(DEVICES, SHARE, *array.shape[1:])


@functools.cache
def of_the_whole_batch(module):
    return jax.jit(body(module, None, lambda tree: tree))(*setting(module))


@pytest.mark.parametrize("how", ["vmap", "pmap"])
@pytest.mark.parametrize("module", [SMALL_RESNET, UserNet(5), Scanned(5)], ids=lambda module: type(module).__name__)
def test_batch_norm_over_an_axis_is_that_of_the_whole_batch(module, how):
    with jax.enable_x64(True):
        variables, images, labels = setting(module)
        (value, gradients), stats, logits = of_the_whole_batch(module)
        step = mapped(how, body(module, "devices", lambda tree: lax.pmean(tree, "devices")))
        (values, all_gradients), all_stats, all_logits = step(variables, split(images), split(labels))
        np.testing.assert_allclose(all_logits.reshape(logits.shape), logits, rtol=1e-9, atol=1e-10)
        for device in range(DEVICES):
            mine = jax.tree.map(lambda leaf: leaf[device], (values, all_gradients, all_stats))
            close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
            jax.tree.map(close, mine, (value, gradients, stats))


def test_batch_norm_without_an_axis_is_per_device():
    with jax.enable_x64(True):
        module = UserNet(5)
        variables, images, labels = setting(module)
        _, all_stats, _ = mapped("vmap", body(module, None, lambda tree: tree))(variables, split(images), split(labels))
        _, first, _ = jax.jit(body(module, None, lambda tree: tree))(variables, images[:SHARE], labels[:SHARE])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-9, atol=1e-12), all_stats, first)
        assert np.all(all_stats["shared"]["mean"][0] != all_stats["shared"]["mean"][1])


def test_a_batch_norm_that_names_an_axis_keeps_it():
    module = OwnAxis(5, axis_name="rows")
    variables, images, labels = setting(module)
    step = body(module, "columns", lambda tree: tree)
    for axis_name in ("rows", "columns"):
        step = jax.vmap(step, (None, 0, 0), axis_name=axis_name)
    grid = lambda array: array.reshape(2, 2, SHARE, *array.shape[1:])
    _, stats, _ = jax.jit(step)(variables, grid(images), grid(labels))
    mean = np.asarray(stats["BatchNorm_0"]["mean"])
    np.testing.assert_allclose(mean[:, 0], mean[:, 1], rtol=1e-5)
    assert np.all(mean[0] != mean[1])


def test_a_call_leaves_the_network_as_it_was():
    module = UserNet(5)
    variables, images, labels = setting(module)
    jax.eval_shape(mapped("vmap", body(module, "devices", lambda tree: tree)), variables, split(images), split(labels))
    jax.eval_shape(body(module, None, lambda tree: tree), variables, images, labels)  # no axis is bound here


@pytest.mark.parametrize(
    ("module", "scope"),
    [(models.create_model("mlp", 5), "none"), (SMALL_RESNET, "global"), (UserNet(5), "global")]
    + [(Scanned(5), "global"), (Bare(5), "none"), (OtherNorm(5), "per_device"), (AlwaysNormed(5), "global")],
    ids=lambda value: type(value).__name__,
)
def test_scope_of_batch_norm(module, scope):
    assert models.batch_norm_scope(module, (1, 6, 6, 2)) == scope


def test_bare_logits_without_train():
    variables, images, _ = setting(Bare(5))
    for train in (False, True):
        output, stats = models.call(Bare(5), variables, images, train=train, axis_name="nobody")
        assert isinstance(output, ModelOutput)
        assert (output.logits.shape, output.logits.dtype) == ((DEVICES * SHARE, 5), jnp.float32)
        assert (output.features, output.pooled, stats) == ({}, None, {})


def test_batch_stats_may_be_missing():
    variables, images, _ = setting(Bare(5))
    output, stats = models.call(Bare(5), {"params": variables["params"]}, images, train=True)
    assert stats == {}


def test_dropout_draws_in_training_only():
    module = Dropped(5)
    variables, images, _ = setting(module)

    def run(train, seed):
        output, _ = models.call(module, variables, images, train=train, rngs={"dropout": jax.random.key(seed)})
        return np.asarray(output.logits)

    assert np.all(run(False, 0) == run(False, 1))
    assert np.all(run(True, 0) == run(True, 0))
    assert np.any(run(True, 0) != run(True, 1))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (AlwaysDropped(5), "random keys"),
        (AlwaysNormed(5), "use_running_average=not train"),
        (Returns(5, "tuple"), "must return logits or a kdjax.types.ModelOutput, not a tuple"),
        (
            Returns(5, "map"),
            "logits (12, 1, 5) for 12 images and 5 classes; a network must make one prediction an example",
        ),
        (Returns(5, "classes"), "5 classes"),
        (Returns(5, "integers"), "logits of type int32; a network must return floats"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_network_that_cannot_be_used_is_named_in_one_line(module, says):
    variables, images, _ = setting(module)
    with pytest.raises(UserError) as excinfo:
        models.call(module, variables, images, train=False)
    assert says in str(excinfo.value)
    assert type(module).__name__ in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


@pytest.mark.parametrize("devices", [1, DEVICES])
def test_the_unbiased_running_variance_is_that_of_the_whole_batch(devices):
    """As in PyTorch, it is 0.9 times the old one plus 0.1 n / (n - 1) times the batch's, over n elements."""
    with jax.enable_x64(True):
        images = np.random.default_rng(0).normal(size=(DEVICES * SHARE, 6, 6, 3))
        variables = models.init_variables(SMALL_RESNET, images.shape, 0)

        def run(shard):
            _, stats = models.call(
                SMALL_RESNET, variables, shard, train=True, axis_name="d" if devices > 1 else None, unbiased=True
            )
            return stats

        shards = images.reshape(devices, -1, *images.shape[1:])
        stats = jax.jit(jax.vmap(run, axis_name="d"))(shards)
        stem = nn.Conv(4, (3, 3), padding=1, use_bias=False).apply({"params": variables["params"]["stem"]}, images)
        expected = 0.9 + 0.1 * np.asarray(stem).reshape(-1, 4).var(axis=0, ddof=1)
        for row in stats["stem_bn"]["var"]:
            np.testing.assert_allclose(row, expected, rtol=1e-10)
        biased = jax.jit(lambda images: models.call(SMALL_RESNET, variables, images, train=True)[1])(images)
        np.testing.assert_allclose(stats["stem_bn"]["mean"][0], biased["stem_bn"]["mean"], rtol=1e-10)


def test_frozen_statistics_are_not_corrected():
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            return nn.BatchNorm(use_running_average=True)(images)

    module, images = Frozen(), np.ones((4, 3), np.float32)
    variables = module.init(jax.random.key(0), images)
    _, stats = models.call(module, variables, images, train=True, unbiased=True)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
