"""The bench of populations measures every layout of runs that share a step."""


def test_every_layout_has_a_row(door):
    flags = ("--config=configs/kd_student.py:smoke", "--members=2", "--rounds=1", "--steps=2")
    done = door("kdjax.bench", "population", *flags)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line][2:]
    assert [row[0] for row in rows] == ["vmap", "unrolled", "mapped", "one by one"]
    assert [row[1] for row in rows] == ["yes", "", "", ""]
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows) and rows[-1][3] == "1.00"
