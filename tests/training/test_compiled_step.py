"""What the compiled step must not contain, read from the program itself: each of these has cost a factor before."""

import types

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from small_world import make_plan, student_config

from kdjax import models
from kdjax.store import Store
from kdjax.training.loop import train
from kdjax.training.member import initial_carry
from kdjax.training.population import Population, compiled_population
from kdjax.training.trainer import MOST_STEPS_A_DISPATCH, steps_a_dispatch

LOOPS = ("scan", "while")


def operations(jaxpr, inside: str = ""):
    """Yields (operation, the loop that it is in or '') of a program and of all programs in it."""
    for operation in jaxpr.eqns:
        yield operation, inside
        name = operation.primitive.name
        for inner in jaxprs_in_params(operation.params):
            yield from operations(getattr(inner, "jaxpr", inner), name if name in LOOPS else inside)


def is_plain_gradient(operation) -> bool:
    """Whether a convolution is one that differentiating a plain one makes: with axes in another order, or grouped."""
    order, rank = operation.params["dimension_numbers"], operation.invars[0].aval.ndim
    inner = tuple(range(1, rank - 1))
    channels_last, kernel = (0, rank - 1, *inner), (rank - 1, rank - 2, *range(rank - 2))
    grouped = operation.params["feature_group_count"] * operation.params["batch_group_count"] > 1
    return grouped or (order.lhs_spec, order.rhs_spec, order.out_spec) != (channels_last, kernel, channels_last)


@pytest.fixture(scope="module")
def population(image_file):
    """A convolutional student with BatchNorm, its teacher and augmentation, on two devices."""
    config = student_config()
    config.data.args, config.data.view = {"path": image_file}, "crop_flip"
    return Population([make_plan(config, tuple(jax.local_devices()[:2]))])


@pytest.fixture(scope="module")
def arguments(population):
    """Arguments of a step that makes two updates in one dispatch, which is a loop."""
    carry = population.place([initial_carry(population.plans[0])])
    return carry, population.fixed, population.batches(0, 0, 2)


@pytest.fixture(scope="module")
def lowered(population, arguments) -> str:
    return population.compiled(0).lower(*arguments).as_text()


def convolutions_in_loops(step, arguments):
    found = operations(jax.make_jaxpr(step)(*arguments).jaxpr)
    return [one for one, loop in found if loop and one.primitive.name == "conv_general_dilated"]


def test_no_gradient_of_a_plain_convolution_is_in_a_loop_on_cpu(population, arguments):
    inside = convolutions_in_loops(population.compiled(0), arguments)
    assert len(inside) > 6 and not any(map(is_plain_gradient, inside))
    spec = population.spec_at(0)  # on other platforms convolutions stay plain, and the test must see it
    other = spec._replace(members=(spec.members[0]._replace(platform="gpu"),))
    assert any(map(is_plain_gradient, convolutions_in_loops(compiled_population(other, population.devices), arguments)))


def test_nothing_calls_the_host_and_nothing_is_float64(population, arguments, lowered):
    names = {one.primitive.name for one, _ in operations(jax.make_jaxpr(population.compiled(0))(*arguments).jaxpr)}
    assert "dot_general" in names and not [name for name in names if "callback" in name or "feed" in name]
    assert "f32" in lowered and "f64" not in lowered and "callback" not in lowered


def test_all_that_is_carried_is_donated(arguments, lowered):
    assert lowered.count("tf.aliasing_output") == len(jax.tree.leaves(arguments[0]))


@pytest.fixture(scope="module")
def dispatch_of(population):
    """Returns the steps a dispatch of the plan with another network, number of steps, device, or adapters."""

    def steps(kernel: tuple, steps: int, model=None, platform="cpu", members=1, **changed) -> int:
        plan = population.plans[0]
        spec = plan.spec._replace(steps_per_epoch=steps, model=model or plan.spec.model)
        variables, devices = {"params": {"kernel": np.zeros(kernel)}}, (types.SimpleNamespace(platform=platform),)
        return steps_a_dispatch([plan._replace(spec=spec, variables=variables, devices=devices, **changed)] * members)

    return steps


@pytest.mark.parametrize("steps", [1, 255, 256, 257, 781, 10_009])
def test_a_dispatch_has_at_most_256_steps(dispatch_of, steps):
    for chunk in (dispatch_of((3, 3), steps), dispatch_of((3, 3, 1, 1), steps, platform="gpu")):
        assert 1 <= chunk <= MOST_STEPS_A_DISPATCH == 256
        assert -(-steps // chunk) == -(-steps // 256)  # and no more dispatches than that needs


def test_convolutions_loop_on_cpu_only_where_all_of_them_are_fast_there(dispatch_of, population):
    convolution, own = (3, 3, 1, 1), models.create_model("resnet8", 4)
    assert [dispatch_of(convolution, steps, own) for steps in (781, 703, 390, 7, 97)] == [11, 19, 15, 7, 1]
    assert dispatch_of(convolution, 390, own, members=4) == 5
    assert dispatch_of(convolution, 390) == 1  # a network of the user's own may have plain ones
    adapters = {"params": {"hint": {"kernel": np.zeros(convolution)}}, "state": {}}
    assert dispatch_of(convolution, 390, own, distiller=adapters) == 1


def test_the_second_epoch_and_its_evaluation_compile_nothing(image_file, tmp_path, one_device, caplog):
    config = student_config(epochs=2, eval_every=1)
    config.teachers, config.losses = {}, {"cross_entropy": {"weight": 1.0}}
    config.data.args, config.checkpoint.every_epochs = {"path": image_file}, 1
    compiled: list[int] = []

    def count(path: str, row: dict) -> None:
        compiled.append(sum("Compiling" in record.message for record in caplog.records))
        caplog.clear()

    with jax.log_compiles():
        train(config, Store(tmp_path), devices=one_device, show=False, sink=count)
    assert len(compiled) == 2 and compiled[0] > 0 and compiled[1] == 0
