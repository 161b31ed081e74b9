"""Benchmarks run and print their tables; they assert no times."""


def test_bench_step_prints_a_row_for_each_count_of_devices(command):
    config = "--config=configs/kd_student.py:smoke"
    done = command("kdjax.bench", "step", config, "--cpu_devices=2", "--rounds=2", "--steps=3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert "cores" in lines[0] and "jax" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["1", "2"]


def test_an_unknown_benchmark_is_one_line(command):
    done = command("kdjax.bench", "stop", "--config=configs/kd_student.py:smoke")
    assert done.returncode == 2 and "Did you mean 'step'" in done.stderr
