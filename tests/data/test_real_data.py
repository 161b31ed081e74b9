"""The doors on the real data sets, one training step each.

The sets are the original files of CIFAR-10 and CIFAR-100, and `cifar10_human.npz`: CIFAR-10 with the labels that people
gave as `soft` and `test_soft`. See `real_data` for where they are read from.
"""

import json

import pytest

from kdjax.data.overlap import overlaps
from kdjax.store import Store
from tests.data.real_data import DATA_DIR, load_or_skip

pytestmark = pytest.mark.slow
HUMAN = {"name": "arrays", "args": {"path": "cifar10_human.npz"}, "view": "none", "targets": "soft"}
# Name of the set -> argument of the configs, training images per class that make at least one batch, fields of data.
SETS = {
    "cifar100": ("cifar100", 1, {"name": "cifar100"}),
    "cifar10": ("cifar10", 10, {"name": "cifar10"}),
    "human": ("cifar10", 10, HUMAN),
}


@pytest.mark.parametrize("name", SETS)
def test_every_door_works_on_real_data(name, tmp_path, root, door):
    setting, per_class, fields = SETS[name]
    load_or_skip(**fields)
    places = (f"--data_dir={DATA_DIR}", f"--store={tmp_path}")
    one_step = ["--config.epochs=1", "--config.data.validation=0.1", "--config.select=last"]
    one_step += [f"--config.data.protocols={{'subset': {{'per_class': {per_class}}}}}"]
    one_step += [f"--config.data.{field}={value}" for field, value in fields.items()]

    def run(door_name: str, *arguments: str) -> str:
        done = door(f"kdjax.{door_name}", *arguments, cwd=root)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def train(door_name: str, config: str, run_name: str, *arguments: str) -> None:
        config = f"--config=configs/{config}.py:{setting},resnet8,resnet8"
        said = run(door_name, config, f"--run={run_name}", *one_step, *arguments, *places)
        assert "| last " in said and Store(tmp_path).find(run_name).steps() == [1]

    train("train_teacher", "mse_teacher", "teacher")
    train("train_student", "wttm_student", "student", "--config.teachers.a.run=teacher")
    assert "| student " in run("evaluate", "--run=student", *places)
    looked_at = ("--runs=teacher,student", "--what=fidelity,calibration", "--split=validation")
    run("analyze", *looked_at, f"--out={tmp_path}/found.json", *places)
    assert {"fidelity", "calibration"} <= set(json.loads((tmp_path / "found.json").read_text()))
    run("report", "--networks=0", f"--out={tmp_path}/page", *places)
    assert "<svg" in (tmp_path / "page" / "report.html").read_text()
    config = f"--config=configs/kd_student.py:{setting},resnet8,resnet8"
    run("show_views", config, "--config.data.view=crop_flip", f"--out={tmp_path}/views.png", *places)
    assert (tmp_path / "views.png").stat().st_size > 1000


def test_cifar100_has_ten_test_images_in_its_training_set():
    """Barz & Denzler, Do We Train on Test Data? Purging CIFAR of Near-Duplicates (2020) found ten exact duplicates."""
    dataset = load_or_skip(name="cifar100", validation=0.0, report_unshared=True)
    assert overlaps(dataset.images, dataset.splits) == {("train", "test"): 10}
    assert len(dataset.shared_test) == 10
