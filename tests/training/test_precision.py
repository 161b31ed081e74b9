"""The type that teachers compute in: the student's unless the config says another; never narrower than float64."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import fresh_teacher

from kdjax import models
from kdjax.data import load_dataset
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.training.loop import train
from kdjax.training.plan import resolve
from kdjax.training.teachers import Teacher, freeze, match_precision

CODE = """
import json, sys
import jax, numpy as np
from ml_collections import ConfigDict
from kdjax.store import Store
from kdjax.training import forward
from kdjax.training.plan import make_plan, resolve
from kdjax.training.population import Population

config, store = resolve(ConfigDict(json.loads(sys.argv[1]))), Store(sys.argv[2])
plan = make_plan(config, store, "", jax.local_devices()[:1])
fixed = Population([plan]).fixed
dtypes = lambda tree: sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)})
output = forward.blank_inputs(
    plan.spec, plan.variables, {"a": plan.teachers["a"].variables}, plan.numbers, plan.dataset.input_shape)
print(json.dumps({"student": dtypes(plan.variables), "teacher": dtypes(fixed.teachers["0:a"]),
                  "logits": dtypes(output.teachers["a"].logits)}))
"""


def test_a_float32_teacher_is_float64_beside_a_float64_student(config, tmp_path, one_device, root):
    store = Store(tmp_path)
    teacher = config.copy_and_resolve_references()
    teacher.teachers, teacher.losses, teacher.epochs = {}, {"cross_entropy": {"weight": 1.0}}, 1
    train(teacher, store, name=config.teachers.a.run, devices=one_device, show=False)
    stored = store.find(config.teachers.a.run).restore_variables("last")[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {np.dtype(np.float32)}
    path = os.pathsep.join([str(root), str(root / "tests")])
    env = {**os.environ, "JAX_ENABLE_X64": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", CODE, json.dumps(config.to_dict()), str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"student": ["float64"], "teacher": ["float64"], "logits": ["float64"]}


def test_a_teachers_values_stay_and_beside_a_float32_student_its_type_too(config):
    teacher = fresh_teacher(load_dataset(resolve(config).data, ""))
    assert match_precision(teacher, teacher.variables) is teacher
    wide = {"params": {"kernel": np.zeros(1, np.float64)}}
    for before, after in zip(
        jax.tree.leaves(teacher.variables), jax.tree.leaves(match_precision(teacher, wide).variables), strict=True
    ):
        assert after.dtype == np.float64
        np.testing.assert_array_equal(before.astype(np.float64), after)


SHAPE = (1, 8, 8, 3)


@pytest.mark.parametrize(
    "students, asked, trained, expected",
    [
        ("bfloat16", "student", "float32", jnp.bfloat16),
        ("float32", "student", "bfloat16", None),
        ("bfloat16", "trained", "float32", None),
        ("float32", "bfloat16", "float32", jnp.bfloat16),
        ("bfloat16", "float32", "bfloat16", None),
    ],
)
def test_the_config_says_the_type_that_teachers_compute_in(config, students, asked, trained, expected):
    config.model.dtype, config.teacher_dtype = students, asked
    model = models.create_model("resnet8", 4, widths=(4, 4, 6, 8), dtype=trained)
    teacher = Teacher(model, models.init_variables(model, SHAPE, 0), 4, "softmax", {}, None)
    frozen = freeze(teacher, resolve(config), teacher.variables, SHAPE)
    assert frozen.model.dtype == expected
    assert frozen is freeze(teacher, resolve(config), teacher.variables, SHAPE)  # students share one twin
    stem = frozen.variables["params"]["stem"]["kernel"]
    assert stem.dtype == (expected or np.float32) and not frozen.variables["batch_stats"]
    config.teacher_batch_norm = "batch"
    assert "folded" not in freeze(teacher, resolve(config), teacher.variables, SHAPE).variables


def test_a_network_that_takes_no_type_keeps_its_own_and_is_refused_where_the_config_names_one(config):
    own = _WithoutType(4)
    teacher = Teacher(own, {"params": {"a": np.zeros(1, np.float32)}}, 4, "softmax", {}, None)
    config.model.dtype = "bfloat16"
    assert freeze(teacher, config, teacher.variables, SHAPE).model is own
    config.teacher_dtype = "bfloat16"
    with pytest.raises(UserError, match="_WithoutType takes no dtype"):
        freeze(teacher, config, teacher.variables, SHAPE)


class _WithoutType(nn.Module):
    num_classes: int
