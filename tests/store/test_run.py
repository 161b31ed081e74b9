"""A run's manifest, metrics, result and lock, also after a killed process and on a disk that cannot be written."""

import json
import subprocess
import sys

import numpy as np
import pytest

from kdjax.errors import UserError
from kdjax.store import FORMAT, Store

CONFIG = {
    "seed": 0,
    "optimizer": {"learning_rate": 0.1, "momentum": 0.9},
    "schedule": {"milestones": (1, 2)},
    "checkpoint": {"every": 1},
}


@pytest.fixture
def run(tmp_path):
    return Store(tmp_path).run("digits/a")


def test_begin_writes_the_manifest_once(run):
    assert run.manifest is None and run.result is None and run.metrics() == []
    run.begin({"config": CONFIG, "command": "first"})
    assert run.manifest["format"] == FORMAT and run.manifest["command"] == "first"
    run.begin({"config": CONFIG | {"checkpoint": {"every": 5}}, "command": "second"})  # the same experiment
    assert run.manifest["command"] == "first"
    assert not list(run.path.glob("*.tmp"))


def test_begin_refuses_another_config_and_names_its_fields(run):
    run.begin({"config": CONFIG})
    with pytest.raises(UserError) as error:
        run.begin({"config": CONFIG | {"seed": 1, "optimizer": {"learning_rate": 0.2, "momentum": 0.9}}})
    line = str(error.value)
    assert "config.seed: 0 -> 1" in line and "config.optimizer.learning_rate: 0.1 -> 0.2" in line
    assert "momentum" not in line and "--run" in line and "\n" not in line
    assert run.manifest["config"]["seed"] == 0


@pytest.mark.parametrize(
    "text, words",
    [('{"format": 99}', "format 99"), ("{}", "format None"), ('{"form', "damaged"), ("[]", "damaged")],
)
def test_a_manifest_from_elsewhere_is_refused(run, text, words):
    run.path.mkdir(parents=True)
    (run.path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=words):
        run.begin({"config": CONFIG})


def test_metrics_are_valid_json_and_cut_to_an_epoch(run):
    for epoch in range(4):
        run.append_metrics({"epoch": np.int32(epoch), "loss": np.float32(0.1), "nan": float("nan"), "inf": [-np.inf]})
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert strict == run.metrics() and strict[3]["nan"] is None and strict[3]["inf"] == [None]
    assert np.float32(strict[3]["loss"]) == np.float32(0.1)
    run.cut_metrics(1)
    assert [row["epoch"] for row in run.metrics()] == [0, 1]
    run.cut_metrics(-1)
    assert run.metrics() == []


@pytest.mark.parametrize("torn", ['{"epoch": 1, "lo', '{"epoch": 1, "lo\n', '{"epoch": 1}'])
def test_a_torn_last_line_is_dropped(run, torn):
    run.cut_metrics(5)  # there is no file yet
    run.append_metrics({"epoch": 0})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert run.metrics() == [{"epoch": 0}]
    run.cut_metrics(5)
    run.append_metrics({"epoch": 1})
    assert run.metrics() == [{"epoch": 0}, {"epoch": 1}]


@pytest.mark.parametrize("damaged", ['{"epo', "[1]", "null"])
def test_a_damaged_line_in_the_middle_is_named(run, damaged):
    run.append_metrics({"epoch": 0})
    (run.path / "metrics.jsonl").write_text(f'{{"epoch": 0}}\n{damaged}\n{{"epoch": 2}}\n')
    with pytest.raises(UserError, match="metrics.jsonl:2 is damaged"):
        run.metrics()


def test_result_round_trips(run):
    run.write_result({"last": {"test": np.float64(0.1)}})
    assert run.result == {"last": {"test": 0.1}}


def test_a_second_process_is_refused_until_the_first_is_killed(run, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"another process is training it .pid {holder.pid}"), run.lock():
            pytest.fail("two processes hold one run")
    finally:
        holder.kill()
        holder.wait()
    with run.lock(), pytest.raises(UserError, match="another process"), Store(tmp_path).run("digits/a").lock():
        pytest.fail("one run is held twice")
    with run.lock():
        pass


HOLDER = """
import sys, time
from kdjax.store import Store
with Store(sys.argv[1]).run("digits/a").lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("")
    run = Store(tmp_path / "runs").run("a")
    actions = [
        lambda: run.begin({"config": {}}),
        lambda: run.append_metrics({"epoch": 0}),
        lambda: run.write_result({}),
        lambda: run.lock().__enter__(),
        lambda: run.save(1, {"a": np.zeros(2)}, {}),
    ]
    for action in actions:
        with pytest.raises(UserError, match="^Cannot write .*there is a file where a folder should be") as error:
            action()
        assert "\n" not in str(error.value)
    assert Store(tmp_path / "runs").runs() == [] and run.steps() == []


def test_a_failed_write_leaves_the_old_file_and_no_part(run, monkeypatch):
    run.write_result({"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        run.write_result({"a": 2})
    assert run.result == {"a": 1} and [path.name for path in run.path.iterdir()] == ["result.json"]
