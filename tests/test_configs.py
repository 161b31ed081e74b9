"""Every config is built, and its first steps are made."""

import importlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags  # noqa: F401  (what a door parses configs with)

from configs import published, student
from kdjax.config import check, default_run_name, printed
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.studies.cross import make_stages, published_accuracy
from kdjax.studies.kinds import read_study
from kdjax.studies.runner import RunCounter, Runner
from kdjax.training.loop import train
from kdjax.training.plan import make_plan, resolve, traced
from kdjax.training.state import rate_at

TEACHERS = ("ce_teacher", "mse_teacher", "tolerant_teacher")
BRANCHED = ("hsakd_teacher",)  # for networks with auxiliary classifiers only
STUDENTS = ("alone_student", "kd_student", "ttm_student", "wttm_student", "function_matching")
# Differ from another in a loss alone, which the smoke configs train too.
LIKE_ANOTHER = {
    name: pytest.param(name, marks=pytest.mark.slow) for name in ("tolerant_teacher", "kd_student", "ttm_student")
}


RETHINK = ("rethink_teacher", "rethink_1_teachers", "rethink_2_teachers", "rethink_3_teachers")


def get(name: str, argument: str | None) -> ConfigDict:
    import importlib

    return importlib.import_module(f"configs.{name}").get_config(argument)


def test_no_config_is_forgotten(root):
    names = {path.stem for path in (root / "configs").glob("*.py")} - {"common", "published", "rethink"}
    assert names == {*TEACHERS, *BRANCHED, *STUDENTS, *RETHINK, "student", "tolerant_generations"}


@pytest.mark.parametrize("name", TEACHERS + STUDENTS)
@pytest.mark.parametrize("argument", [None, "smoke", "cifar10", "cifar100", "cifar100,resnet110,resnet20"])
def test_every_config_passes_the_schema(name, argument):
    config = get(name, argument)
    check(config)
    resolve(config)
    assert config.name in default_run_name(config) or config.teachers


def test_hsakds_networks_have_auxiliary_classifiers():
    for pair in (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4")):
        teacher = get("hsakd_teacher", ",".join(["cifar100", *pair]))
        config = get("student", ",".join(["hsakd", *pair]))
        resolve(teacher)
        resolve(config)
        assert (teacher.model.name, config.model.name) == tuple(f"{name}_aux" for name in pair)
        assert config.teachers.a.run == default_run_name(teacher)
        assert config.teachers.a.made_by.endswith(f"--run={config.teachers.a.run}")
    with pytest.raises(UserError, match="are built for resnet20, .* not for vgg"):
        get("student", "hsakd,vgg13,vgg8")


def test_weak_and_strong_teachers_and_their_student(tmp_path, one_device):
    """Missing teachers name the command that makes them; made by it, they are found."""
    store = Store(tmp_path)
    config = get("rethink_2_teachers", "smoke,ws,to_strong")
    with pytest.raises(UserError, match="rethink_teacher.py:smoke,w,1 --run=digits/resnet8-rethink-w-smoke-s1"):
        train(config, store, devices=one_device, show=False)
    for teacher in config.teachers.values():
        argument, run = teacher.made_by.partition(".py:")[2].split(" --run=")
        made = get("rethink_teacher", argument)
        assert default_run_name(made) == run
        train(made, store, devices=one_device, show=False)
    train(config, store, devices=one_device, show=False)
    other = get("rethink_2_teachers", "smoke,ws,to_weak")
    assert default_run_name(other) != default_run_name(config)


def test_the_released_values_are_named():
    config = get("rethink_3_teachers", "cifar100,wss,to_strong,as_released")
    resolve(config)
    assert config.teacher_batch_norm == "batch" and config.losses.kd.temperature == 3.0
    assert len(config.notes) == 4
    rates = [float(rate_at(epoch * 10 + 5, traced(resolve(config)), 10)) for epoch in (0, 1, 6, 7, 188, 189, 194)]
    np.testing.assert_allclose(rates, [0.025, 0.0375, 0.1, 0.1, 0.1, 0.01, 0.001], rtol=1e-5)
    plain = get("rethink_3_teachers", "cifar100,wss,to_strong")
    assert plain.teacher_batch_norm == "running" and not plain.notes and plain.losses.kd.temperature == 10.0
    assert get("rethink_teacher", "cifar100,s,2,as_released").epochs == 45
    assert get("rethink_teacher", "cifar100,s,2").epochs == get("rethink_teacher", "cifar100,w,1").epochs
    with pytest.raises(UserError, match="'wx' is no word"):
        get("rethink_2_teachers", "digits,wx")


@pytest.mark.parametrize("name", (*TEACHERS, *BRANCHED, *STUDENTS, *RETHINK, "tolerant_generations"))
def test_every_config_opens_like_a_lab_notebook(name):
    import importlib

    text = importlib.import_module(f"configs.{name}").__doc__
    for word in ("Command:", "Expect:", "Hardware:"):
        assert word in text
    assert "QUICKSTART" not in text
    assert "Paper:" in text or name == "alone_student"


def test_weights_of_the_papers_pairs():
    assert get("ttm_student", "cifar100").losses.ttm.to_dict() == {"weight": 100.0, "gamma": 0.1}
    assert get("wttm_student", "cifar100,resnet56,resnet20").losses.wttm.weight == 1.5
    assert get("kd_student", "cifar100").losses.cross_entropy.weight == 0.1


@pytest.mark.parametrize("method", [method for method in student.METHODS if method != "hsakd"])
def test_every_method_of_every_pair_passes_the_schema(method):
    for dataset, pairs in (("cifar100", published.PAIRS), ("imagenet", published.IMAGENET_PAIRS)):
        for pair in pairs:
            config = get("student", ",".join([method, *pair, dataset]))
            resolve(config)
            slow = pair[1] in ("mobilenetv2_half", "shufflenetv1", "shufflenetv2")
            assert config.optimizer.learning_rate == {"cifar100": 0.01 if slow else 0.05, "imagenet": 0.1}[dataset]
            assert bool(config.teachers) == (method != "alone")
    resolve(get("student", method))


def test_a_flag_reaches_every_methods_weight():
    for method in student.METHODS:
        config = get("student", f"{method},resnet56,resnet20")
        for key in config.losses:
            config.losses[key].weight = 0.125
        weights = resolve(config).losses
        assert all(w.weight == 0.125 or w.weight["value"] == 0.125 for w in weights.values())
    assert resolve(get("student", "dkd,resnet56,resnet20")).losses.dkd.weight.epochs == 20


def test_published_numbers_and_weights_stand_in_the_config():
    config = get("student", "wttm_crd,resnet32x4,resnet8x4")
    assert config.published.accuracy == 76.65 and config.published.teacher == 79.42
    assert config.losses.wttm.to_dict() == {"weight": 4.0, "gamma": 0.2}
    assert get("student", "dkd,vgg13,vgg8").losses.dkd.beta == 6.0
    assert get("student", "itrd,resnet50_cifar,vgg8").losses.itrd.mutual_weight == 0.0
    assert get("student", "wttm,resnet50,mobilenetv1,imagenet").losses.wttm.to_dict()["gamma"] == 0.7
    assert get("ce_teacher", "cifar100").published.accuracy == 79.42
    assert get("alone_student", "cifar100").published.accuracy == 72.50
    assert get("wttm_student", "imagenet").published.accuracy == 72.19
    assert not get("mse_teacher", "cifar100").published and not get("wttm_student", "digits").published
    for rows in published.ACCURACY.values():
        assert len(rows) == len(published.PAIRS)
    for rows in published.IMAGENET_ACCURACY.values():
        assert len(rows) == len(published.IMAGENET_PAIRS)


def test_what_a_paper_prints_is_of_its_own_teachers():
    """The tables' teachers were trained with cross-entropy; of weights that were imported nobody knows better."""
    study = read_study(get("studies.teacher_loss_table", None))
    jobs = [job for stage in make_stages(study) for job in stage]
    found = {(job.key.student, job.key.teacher): published_accuracy(study, job) for job in jobs}
    assert found["wttm", "CE"] == 76.06 and found["alone", ""] == 72.50 and found["", "CE"] == 79.42
    assert found["wttm", "MSE"] is None and found["", "MSE"] is None
    assert printed(study.students["wttm"].published, [()]) == 76.06


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("wtm,resnet8,resnet8", "Did you mean 'ttm'|Did you mean 'wttm'"),
        ("kd,resnet8", "should be METHOD"),
        ("kd,resnet8,resnet9", "Did you mean 'resnet"),
    ],
)
def test_a_wrong_argument_is_named(argument, message):
    with pytest.raises(UserError, match=message):
        get("student", argument)


def test_every_smoke_config_trains(tmp_path, one_device):
    store = Store(tmp_path)
    for name in TEACHERS + STUDENTS:
        result = train(get(name, "smoke"), store, devices=one_device, show=False)
        assert np.isfinite(result["last"]["test"]["loss"])


@pytest.mark.parametrize("name", [LIKE_ANOTHER.get(name, name) for name in TEACHERS + STUDENTS])
def test_the_cifar_recipe_makes_its_first_steps(name, cifar_store, one_device, fake_cifar100):
    """The real recipe but for its length and its networks' depth, on a tarball of random images."""
    store = cifar_store
    config = get(name, "cifar100,resnet8,resnet8")
    config.epochs, config.batch_size, config.eval_batch_size = 1, 50, 50
    if config.teachers:
        teacher = get("ce_teacher" if "-ce-" in config.teachers.a.run else "mse_teacher", "cifar100,resnet8,resnet8")
        teacher.epochs, teacher.batch_size, teacher.eval_batch_size = 1, 50, 50
        train(teacher, store, data_dir=fake_cifar100, devices=one_device, show=False)
    plan = make_plan(resolve(config), store, fake_cifar100, one_device)
    assert plan.spec.view == (config.data.view or "crop_flip") and plan.spec.steps_per_epoch == 2
    result = train(config, store, data_dir=fake_cifar100, devices=one_device, show=False)
    assert np.isfinite(result["last"]["train"]["loss"]) and "max_over_epochs_on_test" in result


@pytest.fixture(scope="module")
def cifar_store(tmp_path_factory) -> Store:
    """One for all recipes, so that their teachers are trained once."""
    return Store(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def fake_cifar100(tmp_path_factory) -> str:
    """CIFAR-100's binary tarball with 100 training and 20 test images."""
    import io
    import tarfile

    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz") as tar:
        for file, count in (("train.bin", 100), ("test.bin", 20)):
            labels = (np.arange(count) % 100).astype(np.uint8)
            rows = np.concatenate(
                [labels[:, None] // 5, labels[:, None], rng.integers(0, 256, (count, 3072), dtype=np.uint8)], axis=1
            )
            info = tarfile.TarInfo(f"cifar-100-binary/{file}")
            info.size = rows.size
            tar.addfile(info, io.BytesIO(rows.tobytes()))
    return str(folder)


def test_the_quickstart_study_in_small(tmp_path):
    from configs.studies import quickstart

    stages = make_stages(read_study(quickstart.get_config("smoke")))
    jobs = [job for stage in stages for job in stage]
    assert len(jobs) == 2 * (2 + 1 + 3 * 2)
    assert len({job.name for job in jobs}) == len(jobs)
    first = [[job for job in stage if job.key.seed == 0] for stage in stages]
    counter, again = RunCounter(), RunCounter()
    Runner(Store(tmp_path), "", counter).run_stages(first)
    assert counter.finished == [job.name for stage in first for job in stage]
    runs = Runner(Store(tmp_path), "", again).run_stages(first)
    assert again.finished == counter.finished and all(run.result["last"]["step"] == 8 for run in runs)


def test_a_misspelt_argument_is_refused_by_every_config(root):
    """A typo in 'smoke' must not begin the whole study."""
    files = [path for path in sorted((root / "configs").rglob("*.py")) if "def get_config" in path.read_text()]
    assert len(files) > 20
    for path in files:
        module = importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
        with pytest.raises(UserError, match="smok"):
            module.get_config("smok")
