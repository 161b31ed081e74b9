"""Teachers beside a float64 student are float64 as well."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
from small_world import fresh_teacher

from kdjax.data import load_dataset
from kdjax.store import Store
from kdjax.training.loop import train
from kdjax.training.plan import resolve
from kdjax.training.teachers import match_precision

CODE = """
import json, sys
import jax, numpy as np
from ml_collections import ConfigDict
from kdjax.store import Store
from kdjax.training import forward, loop
from kdjax.training.plan import make_plan, resolve

config, store = resolve(ConfigDict(json.loads(sys.argv[1]))), Store(sys.argv[2])
plan = make_plan(config, store, "", jax.local_devices()[:1])
fixed = loop.place_fixed(plan)
dtypes = lambda tree: sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)})
output = forward.blank_inputs(
    plan.spec, plan.variables, {"a": plan.teachers["a"].variables}, plan.numbers, plan.dataset.input_shape)
print(json.dumps({"student": dtypes(plan.variables), "teacher": dtypes(fixed.teachers["a"]),
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
