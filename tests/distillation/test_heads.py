"""Losses that apply the networks' classifiers: what they are given is what the networks compute."""

import jax
import numpy as np
import pytest
from test_methods import configured, make_plan, random_teacher, run

from kdjax import losses, models
from kdjax.distillation import adapters, distillers, methods, stages
from kdjax.distillation.distillers import make_distiller
from kdjax.errors import UserError
from kdjax.training import forward
from kdjax.training.plan import rehearse
from kdjax.training.spec import SpecTeacher


def test_a_classifier_is_read_as_the_logits_are():
    """Of the data's classes and at the teacher's temperature, so that it makes the logits that losses see."""
    teacher = random_teacher((6, 8, 12))
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    output = forward.run_teacher("a", teacher.model, teacher.variables, images, train=False)
    spec = SpecTeacher("a", teacher.model, "softmax", "none", 4, (2, 0))
    head = forward._read_head(forward.head_of(teacher.model, teacher.variables["params"]), spec, np.float32(3))
    seen = forward._read_logits(output.logits, spec, np.float32(3))
    np.testing.assert_allclose(adapters.classify(output.pooled, head), seen, rtol=1e-5, atol=1e-6)
    assert forward._read_head(head, spec._replace(output="clipped_logits"), 1.0) is None


def test_regions_begin_with_the_whole_map_and_class_maps_have_its_logits_as_their_mean():
    rng = np.random.default_rng(0)
    x, head = rng.normal(size=(2, 6, 6, 5)), (rng.normal(size=(5, 3)), rng.normal(size=3))
    given = {
        f"{side}_{what}": value for side in ("student", "teacher") for what, value in (("features", x), ("head", head))
    }
    logits = x.mean((1, 2)) @ head[0] + head[1]
    for levels, regions in ((1, 1), (2, 5), (3, 21)):
        found = adapters.Regions(levels=levels).apply({}, given)["student_regions"]
        assert found.shape == (2, regions, 3)
    np.testing.assert_allclose(found[:, 5:].mean(1), adapters.classify(x4(x).mean((1, 2)), head), rtol=1e-4, atol=1e-5)
    maps = adapters.ClassMaps().apply({}, given)["teacher_class_maps"]
    np.testing.assert_allclose(maps.mean((1, 2)), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses.catkd(maps, 0 * maps, size=1), (logits**2).mean(), rtol=1e-4)


# Two pre-activation networks, a plain one, and one with a convolution after its stages.
CLASSIFIED = [
    ("wrn_16_1", {}),
    ("densenet100_bc", {"depth": 22}),
    ("vgg8", {}),
    ("shufflenetv2", {"repeats": (1, 1, 1)}),
]


@pytest.mark.parametrize(("name", "args"), CLASSIFIED)
def test_the_map_that_a_classifier_reads_has_the_pooled_vector_as_its_mean(name, args):
    module = models.create_model(name, 5, **args)
    variables = models.init_variables(module, (1, 16, 16, 3), 0)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)

    def means(images):
        output, _ = models.call(module, variables, images, train=False)
        names = [name for name in output.features if not name.endswith("_preact")]
        return stages.classified_map(output, *methods.last_stage(names)).mean((1, 2)), output.pooled

    np.testing.assert_allclose(*jax.jit(means)(images), rtol=1e-4, atol=1e-5)


def test_a_transformers_classifier_reads_no_mean():
    module = models.create_model("deit_tiny", 5, patch=8, depth=4, dim=12)
    assert forward.head_of(module, models.init_variables(module, (1, 16, 16, 3), 0)["params"]) is None


def x4(x):
    return np.asarray(losses.adaptive_avg_pool(x, (4, 4)))


def test_the_students_classifier_learns_through_its_regions(config):
    plan = make_plan(configured(config, "sdd"), 1)
    inputs = forward.blank_inputs(
        plan.spec, plan.variables, {"a": plan.teachers["a"].variables}, plan.numbers, (8, 8, 3)
    )
    hyper = {term.key: {"temperature": 4.0} for term in plan.spec.terms}
    terms = [term for term in plan.spec.terms if term.key == "sdd"]

    def value(head):
        found, _ = make_distiller(terms).apply(plan.distiller, inputs._replace(head=head), hyper)
        return found["sdd"].mean()

    assert np.abs(jax.jit(jax.grad(value))(inputs.head)[1]).max() > 0


def test_a_classifier_that_does_not_fit_is_told_in_one_line(config):
    config = configured(config, "srrl")
    config.losses["srrl"]["stages"] = ("stage2",)
    with pytest.raises(UserError, match="classifier reads 12 numbers, and the map that is compared has 8"):
        rehearse(make_plan(config, 1))
    config.losses["srrl"]["stages"] = ()
    (term,) = (term for term in make_plan(config, 1).spec.terms if term.key == "srrl")
    with pytest.raises(UserError, match="config.losses.srrl: the teacher has no linear classifier 'fc'"):
        distillers._head(term, "teacher", None, np.zeros((2, 4, 4, 3)))


@pytest.mark.parametrize(("method", "cached"), [("ofa", True), ("ctkd", True), ("srrl", False)])
def test_a_teacher_of_whom_logits_alone_are_needed_is_run_once(config, method, cached):
    """Heads on the student's stages and a temperature are trained beside logits that were computed before."""
    config.data.view = "none"
    plan = make_plan(configured(config, method), 1)
    assert plan.spec.teachers[0].cached == cached
    _, rows = run(plan, plan.spec, 1)
    assert np.isfinite(rows[0][f"losses/{method}"])
