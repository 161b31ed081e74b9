"""The ensemble of held-out teachers: each example is taught by those that were not trained on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_world import batches_of, largest_difference, start

from kdjax import models
from kdjax.config import defaults
from kdjax.data import load_dataset
from kdjax.distillation.ensembles import make_ensemble
from kdjax.distillation.inputs import TeacherOutput
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.training import forward, population
from kdjax.training.loop import train, train_together
from kdjax.training.plan import make_plan, resolve
from kdjax.training.spec import StepContext
from kdjax.training.structure import combine
from kdjax.training.together import UNROLLED, VMAP
from kdjax.types import ModelOutput

NAMES = ("a", "b", "c")


def gaussian(folds: int = 0, leave_out: int = 0, **changed) -> ConfigDict:
    """Returns a cross-entropy run of a second, on all images or on those of all folds but one."""
    config = defaults()
    config.data.name = "gaussian"
    config.data.args = {"classes": 4, "dim": 6, "n_train": 200, "n_test": 40}
    config.data.validation = 0.2
    config.data.protocols = {"fold": {"folds": folds, "leave_out": leave_out}} if folds else {}
    config.model.args = {"hidden": (9,)}
    config.batch_size, config.eval_batch_size, config.epochs = 16, 40, 1
    config.losses = {"cross_entropy": {"weight": 1.0}}
    config.update(changed)
    return config


def fitted_crosswise(**changed) -> ConfigDict:
    terms = {"cross_entropy": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 4.0}}
    student = gaussian(ensemble="held_out", losses=terms, seed=3, **changed)
    student.teachers = {name: {"run": f"fold{i}"} for i, name in enumerate(NAMES)}
    return student


@pytest.fixture(scope="module")
def folds(tmp_path_factory, one_device):
    """A store with three teachers, each trained without a third of the images."""
    store = Store(tmp_path_factory.mktemp("folds"))
    teachers = [gaussian(3, i) for i in range(3)]
    train_together(teachers, store, names=["fold0", "fold1", "fold2"], devices=one_device, show=False)
    return store


def test_each_example_has_the_teacher_that_was_not_trained_on_it_and_others_have_the_mean(folds, one_device):
    plan = make_plan(resolve(fitted_crosswise()), folds, "", one_device)
    train_rows, test_rows = plan.dataset.splits["train"], plan.dataset.splits["test"]
    held_out = np.stack([plan.held_out[name] for name in NAMES])
    assert (held_out[:, train_rows].sum(axis=0) == 1).all() and held_out[:, test_rows].all()
    for i, name in enumerate(NAMES):
        trained_on = load_dataset(resolve(gaussian(3, i)).data, "").splits["train"]
        np.testing.assert_array_equal(np.flatnonzero(~plan.held_out[name]), trained_on)
    logits = np.random.default_rng(0).normal(size=(3, len(held_out[0]), 4)).astype(np.float32)
    outputs = {
        name: TeacherOutput(logits[i], 1.0, ModelOutput(logits[i]), {}, plan.held_out[name])
        for i, name in enumerate(NAMES)
    }
    rows = np.arange(len(held_out[0]), dtype=np.int32)
    joined = np.exp(make_ensemble(outputs, "held_out", rows, rows, 0).logits)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    alone = p[held_out[:, train_rows].argmax(axis=0), train_rows]
    np.testing.assert_allclose(joined[train_rows], alone, rtol=1e-5)
    np.testing.assert_allclose(joined[test_rows], p[:, test_rows].mean(axis=0), rtol=1e-5)


def test_the_teacher_that_the_step_uses_is_the_one_that_was_held_out(folds, one_device):
    """In the step, an example's target is that of the one teacher, whose network is run here by hand."""
    plan = make_plan(resolve(fitted_crosswise()), folds, "", one_device)
    batch, fixed = jax.tree.map(lambda leaf: leaf[0, 0], batches_of(plan, 1)), start(plan)[1]
    context = StepContext(batch, combine(plan.spec.structure, plan.numbers), plan.spec, None)
    networks = forward.run_networks(fixed._replace(held_out=plan.held_out), {}, context)
    joined = forward.ensemble_of(forward.read_teachers(networks, context), context).logits
    for place, row in enumerate(batch.index):
        (name,) = [name for name in NAMES if plan.held_out[name][row]]
        teacher = plan.teachers[name]
        expected = models.call(teacher.model, teacher.variables, plan.dataset.images[row][None], train=False)[0].logits
        np.testing.assert_allclose(jnp.exp(joined[place]), jax.nn.softmax(expected[0]), rtol=1e-5)


@pytest.mark.parametrize("layout", [VMAP, UNROLLED])
def test_students_of_held_out_teachers_are_the_same_alone_and_in_a_population(folds, one_device, monkeypatch, layout):
    monkeypatch.setitem(population.LAYOUTS, ("cpu", "narrow"), layout)
    students = [fitted_crosswise(), fitted_crosswise()]
    students[1].seed = 4
    if layout == UNROLLED:  # they differ in structure, and one does not ask which images a teacher has seen
        students[0].ensemble, students[0].data.order_seed, students[1].data.order_seed = "probs", 0, 0
    names = [f"{layout}{i}" for i in range(2)]
    with jax.enable_x64(True):
        alone = [
            train(config, folds, name=f"{name}-alone", devices=one_device, show=False)
            for config, name in zip(students, names, strict=True)
        ]
        together = train_together(students, folds, names=names, devices=one_device, show=False)
    assert folds.find(names[0]).manifest["population"]["members"] == names
    for name, one, other in zip(names, alone, together, strict=True):
        assert one["last"]["test"] == pytest.approx(other["last"]["test"], rel=1e-9)
        pair = [folds.find(run).restore_variables("last")[0] for run in (name, f"{name}-alone")]
        assert largest_difference(*pair) < 1e-9


def test_what_held_out_teachers_cannot_be_is_refused(folds, one_device):
    reads_more = {"cross_entropy": {"weight": 1.0}, "similarity": {"weight": 1.0}}
    with pytest.raises(UserError, match="config.losses.similarity reads more than a teacher's logits"):
        make_plan(resolve(ConfigDict({**fitted_crosswise().to_dict(), "losses": reads_more})), folds, "", one_device)
    for runs, words in (
        (("fold0",), "needs at least two teachers"),
        (("fold0", "fold0"), "all teachers were trained on 10[67] of the 160 training images"),
    ):
        config = fitted_crosswise()
        config.teachers = {f"t{i}": {"run": run} for i, run in enumerate(runs)}
        with pytest.raises(UserError, match=words):
            make_plan(resolve(config), folds, "", one_device)
