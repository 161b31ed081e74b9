"""A user's own losses, models, data sets and schedules, from a folder outside the project."""

import re
import sys
import types

import pytest

from kdjax import own_code

MODULE = """
import flax.linen as nn
import jax
import numpy as np

from kdjax.data import Rows


def sharp_kd(student_logits, teacher_logits, *, alpha: float = 1.0):
    teacher = jax.nn.softmax(alpha * teacher_logits)
    return -(teacher * jax.nn.log_softmax(student_logits)).sum(-1)


class TinyNet(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.Dense(self.width)(images.reshape(images.shape[0], -1))
        hidden = nn.BatchNorm(use_running_average=not train)(hidden)
        hidden = nn.Dropout(0.1, deterministic=not train)(nn.relu(hidden))
        return nn.Dense(self.num_classes)(hidden)


class Linear(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(images)


def halves(data_dir, *, count: int = 64):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 6
    images = rng.normal(labels[:, None], 1.0, (count, 8)).astype(np.float32)
    return Rows(images=images, labels=labels.astype(np.int32), soft=None, num_classes=6, num_train=count // 2)


def half_after(epoch, *, epochs, drop):
    return 1.0 - 0.5 * (epoch >= drop)
"""

CONFIG = """
from kdjax.config import defaults


def get_config():
    config = defaults()
    config.name = "mine"
    config.epochs = 2
    config.batch_size = 16
    config.data.name = "mine:halves"
    config.data.args = {"count": 128}
    config.data.validation = 0.25
    config.model.name = "mine:TinyNet"
    config.model.args = {"width": 8}
    config.schedule.name = "mine:half_after"
    config.schedule.args = {"drop": 1}
    config.losses = {"cross_entropy": {"weight": 1.0}}
    return config
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "teacher.py").write_text(CONFIG)
    student = CONFIG.replace('"mine"', '"student"').replace("mine:TinyNet", "mine:Linear").replace('{"width": 8}', "{}")
    teachers = """    config.teachers = {"a": {"run": "mine"}}
    config.losses.sharp = {"loss": "mine:sharp_kd", "weight": 1.0, "alpha": 2.0}
"""
    (tmp_path / "student.py").write_text(student.replace("    return config\n", teachers + "    return config\n"))
    return tmp_path


def test_a_teacher_and_a_student_of_ones_own(folder, door):
    done = door("kdjax.train_teacher", "--config=teacher.py", "--run=mine", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = door("kdjax.train_student", "--config=student.py", "--config.losses.sharp.alpha=3", cwd=folder)
    assert done.returncode == 0, done.stderr
    from kdjax.store import Store

    store = Store(folder / "runs")
    assert store.find("mine").manifest["model"]["batch_norm"] == "global"
    student = store.find("mine.halves/mine.Linear-cross_entropy+sharp-mine-sharp.alpha=3-s0")
    assert student.manifest["config"]["losses"]["sharp"]["alpha"] == 3.0
    assert student.metrics()[1]["learning_rate"] == pytest.approx(0.025)


@pytest.mark.parametrize(
    "override, words",
    [
        ("model.name=mine:TinyNot", "Did you mean 'TinyNet'"),
        ("model.name=yours:TinyNet", "importing yours failed"),
        ("model.args.width=wide", "width"),
        ("data.name=mine:quarters", "has no 'quarters'"),
        ("schedule.name=mine:half_afte", "Did you mean 'half_after'"),
    ],
)
def test_mistakes_in_it_are_one_line(override, words, folder, door):
    done = door("kdjax.train_teacher", "--config=teacher.py", f"--config.{override}", cwd=folder)
    assert done.returncode in (1, 2) and words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_field_that_the_schema_lacks_is_refused_in_a_users_own_file(folder, door):
    (folder / "teacher.py").write_text(
        CONFIG.replace("    return config", "    config.optimizer.lr = 0.1\n    return config")
    )
    done = door("kdjax.train_teacher", "--config=teacher.py", cwd=folder)
    assert done.returncode == 2 and "config.optimizer has no field 'lr'" in done.stderr


def test_variables_of_a_script_count_where_its_code_reads_them_alone(monkeypatch):
    """A notebook reuses the names of its variables; an attribute of such a name is another thing."""
    main = types.ModuleType("__main__")
    source = "scale = 2.0\nname = 'a'\ndef loss(x): return scale * x.name\n"
    exec(compile(source, "<cell>", "exec"), vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    names = {"config.losses.a.loss": "__main__:loss"}
    before = own_code.source_hashes(names)
    main.name = "b"
    assert own_code.source_hashes(names) == before
    main.scale = 3.0
    assert own_code.source_hashes(names) != before


BROKEN = """

def misspelt(logits, labels):
    wrong = logits.summ(-1)
    return wrong


def silent(logits, labels):
    return labels


def nothing(logits):
    pass


def broken(data_dir):
    return open("no such file")


class Failing(Linear):
    def __call__(self, images):
        return images @ np.zeros((3, 2))
"""


@pytest.mark.parametrize(
    "override, words",
    [
        ("losses.own={'loss': 'mine:misspelt', 'weight': 1.0}", "{file}, line {wrong}, in misspelt: AttributeError: "),
        ("losses.own={'loss': 'mine:silent', 'weight': 1.0}", "loss 'own' must return a jax array of floats, .* int32"),
        ("losses.own={'loss': 'mine:nothing', 'weight': 1.0}", "must return a jax array of floats, .* not a NoneType"),
        ("data.name=mine:broken", "FileNotFoundError: .* 'no such file' .*mine.py, line [0-9]+, in broken"),
        ("model.name=mine:Failing", "{file}, line [0-9]+, in __call__: TypeError: "),
    ],
)
def test_an_error_inside_it_names_its_file_and_line(override, words, folder, door):
    (folder / "mine.py").write_text(MODULE + BROKEN)
    wrong = 1 + (MODULE + BROKEN).splitlines().index("    wrong = logits.summ(-1)")
    args = [] if override.startswith("losses") else ["--config.data.args={}"]
    done = door("kdjax.train_teacher", "--config=teacher.py", *args, f"--config.{override}", cwd=folder)
    *notes, line = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr and line.startswith("kdjax: ")
    assert re.search(words.format(file=re.escape(str(folder / "mine.py")), wrong=wrong), line), line


def test_the_place_of_an_error_is_the_users_last_line_before_that_of_others(tmp_path):
    (tmp_path / "theirs.py").write_text("import json\n\ndef read():\n    return json.loads('{')\n")
    space = {}
    exec(compile((tmp_path / "theirs.py").read_text(), str(tmp_path / "theirs.py"), "exec"), space)
    try:
        space["read"]()
    except ValueError as error:
        assert own_code.place_of(error) == f"{tmp_path / 'theirs.py'}, line 4, in read"
    try:
        own_code.refuse_untrusted({"config.model.name": "a:b"}, own_code.NOBODY, "it")
    except Exception as error:
        assert own_code.place_of(error.with_traceback(error.__traceback__.tb_next)) == ""
