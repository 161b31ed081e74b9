"""Benchmarks run and print their tables; they assert no times."""

import pytest


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


def test_bench_convolutions_prints_a_row_for_each_kind(door):
    from kdjax.bench.convolutions import KINDS

    done = door("kdjax.bench", "convolutions", "--rounds=1", "--steps=1")
    assert done.returncode == 0 and all(f"| {name} " in done.stdout for name in KINDS), done.stderr


def test_bench_population_prints_a_row_for_each_layout(door):
    flags = ("--config=configs/kd_student.py:smoke", "--members=2", "--rounds=1", "--steps=2")
    done = door("kdjax.bench", "population", *flags)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line][2:]
    assert [row[0] for row in rows] == ["vmap", "unrolled", "mapped", "one by one"]
    assert [row[1] for row in rows] == ["yes", "", "", ""]
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows) and rows[-1][3] == "1.00"
