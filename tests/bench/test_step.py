"""Benchmarks run and print their tables; they assert no times."""

from types import SimpleNamespace

import pytest

from kdjax.bench.results import Table, load, save


def test_bench_step_prints_a_row_for_each_count_of_devices(command):
    config = "--config=configs/kd_student.py:smoke"
    done = command("kdjax.bench", "step", config, "--cpu_devices=2", "--rounds=2", "--steps=3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert "cores" in lines[0] and "jax" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["1", "2"]


def test_an_unknown_benchmark_is_one_line(door):
    done = door("kdjax.bench", "stop", "--config=configs/kd_student.py:smoke")
    assert done.returncode == 2 and "Did you mean 'step'" in done.stderr


@pytest.mark.slow
def test_bench_losses_prints_a_row_for_a_method(door):
    done = door("kdjax.bench", "losses", "--config=configs/student.py", "--only=dist", "--rounds=1")
    assert done.returncode == 0 and "| dist " in done.stdout, done.stderr


def test_bench_models_prints_a_row_for_a_network(door):
    config = "--config=configs/ce_teacher.py:smoke"
    done = door("kdjax.bench", "models", config, "--only=mlp", "--rounds=1", "--steps=1")
    assert done.returncode == 0 and "1,887,332" in done.stdout, done.stderr


def test_bench_store_prints_two_rows_for_each_network(door):
    done = door("kdjax.bench", "store", "--rounds=1")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if line.startswith("| MLP")]
    assert [row[2] for row in rows] == ["orbax", "packed"] * 2
    assert [row[3] for row in rows[1::2]] == ["2", "2"] and all(int(row[3]) >= 20 for row in rows[::2])


def test_bench_convolutions_prints_a_row_for_each_kind(door, tmp_path):
    from kdjax.bench.convolutions import KINDS

    file = str(tmp_path / "convolutions.json")
    done = door("kdjax.bench", "convolutions", "--rounds=1", "--steps=1", f"--json={file}")
    assert [row[0] for row in load(file)[0].rows] == list(KINDS)
    assert done.returncode == 0 and all(f"| {name} " in done.stdout for name in KINDS), done.stderr


def test_bench_population_prints_a_row_for_each_layout(door):
    flags = ("--config=configs/kd_student.py:smoke", "--members=2", "--rounds=1", "--steps=2")
    done = door("kdjax.bench", "population", *flags)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line][2:]
    assert [row[0] for row in rows] == ["vmap", "unrolled", "mapped", "one by one"]
    assert [row[1] for row in rows] == ["yes", "", "", ""]
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows) and rows[-1][3] == "1.00"


def test_bench_compare_prints_the_ratios_of_two_outputs(door, tmp_path):
    before, after, other = (str(tmp_path / name) for name in ("a.json", "b.json", "c.json"))
    header = ("network", "milliseconds", "best", "chosen")
    rows = [("resnet8", "1,200.0", "2.0 [1.0]", "yes"), ("mlp", "0.0", 3, "")]
    save(SimpleNamespace(json=before), "a machine", Table(header, [*rows, ("vgg8", 1, 1, "")]))
    changed = [("resnet8", "600.0", "3.0 [1.0]", "yes"), ("mlp", "0.0", 6, "yes")]
    save(SimpleNamespace(json=after), "a machine", Table(header, changed))
    save(SimpleNamespace(json=other), "a machine", Table(("another",), [("row",)]))
    done = door("kdjax.bench", "compare", before, after)
    assert done.returncode == 0, done.stderr
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    assert cells[2:] == [["resnet8", "0.500", "1.500", "yes"], ["mlp", "1.000", "2.000", "→ yes"]]
    assert f"{after} lacks: vgg8" in done.stdout
    assert door("kdjax.bench", "compare", before, other).returncode == 2
    assert "is missing" in door("kdjax.bench", "compare", before).stderr
    assert "cannot be read" in door("kdjax.bench", "compare", before, str(tmp_path / "none.json")).stderr
