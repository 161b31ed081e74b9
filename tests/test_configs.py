"""Builds every config, checks it, and trains its first steps."""

import importlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags  # noqa: F401  (the commands parse configs with it)

from configs import common, published, student, teacher
from kdjax.config import CHOICES, RANGES, check, defaults, printed, unlike_recipe
from kdjax.config_files import load_config
from kdjax.errors import UserError
from kdjax.run_names import default_run_name
from kdjax.store import Store
from kdjax.studies.cross import make_stages, published_accuracy
from kdjax.studies.kinds import read_study
from kdjax.studies.runner import RunCounter, Runner
from kdjax.training.loop import train
from kdjax.training.plan import make_plan, resolve, traced
from kdjax.training.state import rate_at

TEACHERS = ("ce_teacher", "mse_teacher", "tolerant_teacher")
AUXILIARY = ("hsakd_teacher", "sskd_teacher")  # for networks with auxiliary classifiers only
STUDENTS = ("alone_student", "kd_student", "ttm_student", "wttm_student", "function_matching")
# These differ from another config only in a loss, which the smoke configs train too.
LIKE_ANOTHER = {
    name: pytest.param(name, marks=pytest.mark.slow) for name in ("tolerant_teacher", "kd_student", "ttm_student")
}
RETHINK = ("rethink_teacher", "rethink_1_teachers", "rethink_2_teachers", "rethink_3_teachers")


def get(name: str, argument: str | None) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(argument)


def test_no_config_is_forgotten(root):
    names = {path.stem for path in (root / "configs").glob("*.py")} - {"common", "published", "rethink"}
    assert names == {*TEACHERS, *AUXILIARY, *STUDENTS, *RETHINK, "student", "teacher", "tolerant_generations"}


@pytest.mark.parametrize("name", TEACHERS + STUDENTS)
@pytest.mark.parametrize("argument", [None, "smoke", "cifar10", "cifar100", "cifar100,resnet110,resnet20"])
def test_every_config_passes_the_schema(name, argument):
    config = get(name, argument)
    check(config)
    resolve(config)
    assert config.name in default_run_name(config) or config.teachers


def test_hsakds_networks_have_auxiliary_classifiers():
    for pair in published.PAIRS:
        teacher = get("hsakd_teacher", ",".join(["cifar100", *pair]))
        config = get("student", ",".join(["hsakd", *pair]))
        resolve(teacher)
        resolve(config)
        for network, made in zip(pair, (teacher.model, config.model), strict=True):
            own = network in common.WITH_AUXILIARY
            assert made.name == f"{network}_aux" if own else (made.name, made.args.body) == ("aux", network)
        assert config.teachers.a.run == default_run_name(teacher)
        assert config.teachers.a.made_by.endswith(f"--run={config.teachers.a.run}")
    with pytest.raises(UserError, match="stages of convolutional networks, and mlp has none"):
        get("student", "hsakd,digits")


def test_weak_and_strong_teachers_and_their_student(tmp_path, one_device):
    """The error of a missing teacher has the command that trains it; the run of that command is then found."""
    store = Store(tmp_path)
    config = get("rethink_2_teachers", "smoke,ws,to_strong")
    with pytest.raises(UserError, match="rethink_teacher.py:smoke,w,1 --run=digits/resnet8-rethink-w-smoke-s1"):
        train(config, store, devices=one_device, show=False)
    for entry in config.teachers.values():
        argument, run = entry.made_by.partition(".py:")[2].split(" --run=")
        made = get("rethink_teacher", argument)
        assert default_run_name(made) == run
        train(made, store, devices=one_device, show=False)
    train(config, store, devices=one_device, show=False)
    other = get("rethink_2_teachers", "smoke,ws,to_weak")
    assert default_run_name(other) != default_run_name(config)


def test_the_values_of_the_released_code_are_listed_in_the_notes():
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
    with pytest.raises(UserError, match="unknown word 'wx'"):
        get("rethink_2_teachers", "digits,wx")


@pytest.mark.parametrize("name", (*TEACHERS, *AUXILIARY, *STUDENTS, *RETHINK, "teacher", "tolerant_generations"))
def test_every_config_opens_like_a_lab_notebook(name):
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
            rates = {"cifar100": 0.01 if slow else 0.05, "imagenet": 0.1}
            own = student.METHODS[method].optimizer if dataset == "cifar100" else {}
            assert config.optimizer.learning_rate == own.get("learning_rate", rates[dataset])
            assert bool(config.teachers) == (method != "alone")
    resolve(get("student", method))


@pytest.mark.parametrize("method", teacher.METHODS)
def test_every_teacher_of_the_table_resolves(method):
    for argument in (method, f"{method},resnet32x4,resnet8x4", f"{method},imagenet", f"{method},smoke"):
        config = get("teacher", argument)
        check(config)
        resolve(config)
        assert method in config.name and bool(config.teachers) == (method == "born_again")


def test_the_rows_that_are_files_are_those_files():
    for method in ("ce", "mse", "tolerant"):
        for setting in ("digits", "smoke", "cifar100,resnet56,resnet20"):
            assert get("teacher", f"{method},{setting}").to_dict() == get(f"{method}_teacher", setting).to_dict()


def test_the_parts_of_crossfitted_teachers_are_different_runs():
    one, two = (get("teacher", f"cross_fitted,{part}") for part in "12")
    assert (one.data.protocols.fold.leave_out, two.data.protocols.fold.leave_out) == (0, 1)
    assert default_run_name(one) != default_run_name(two)
    with pytest.raises(UserError, match="only cross_fitted has a part that is left out, not gce"):
        get("teacher", "gce,2")


@pytest.mark.parametrize("methods", [("ce", "mcmi"), pytest.param(tuple(teacher.METHODS), marks=pytest.mark.slow)])
def test_every_teacher_of_the_table_trains_and_teaches(methods, tmp_path, one_device):
    """The smoke forms and a student by KD, in a store where the fine-tuned ones find where they begin."""
    store = Store(tmp_path)
    for method in methods:
        images = ",digits,resnet8,resnet8" if method == "sftn" else ",smoke"  # branches need maps
        config = get("teacher", method + images)
        config.epochs = min(config.epochs, 2)
        result = train(config, store, devices=one_device, show=False)
        assert np.isfinite(result["last"]["test"]["loss"]), method
    pupil = get("student", "kd,smoke")
    made = default_run_name(get("teacher", "mcmi,smoke"))
    pupil.teachers.a.run = made
    assert np.isfinite(train(pupil, store, devices=one_device, show=False)["last"]["test"]["loss"])


def test_a_flag_reaches_every_methods_weight():
    for method in student.METHODS:
        config = get("student", f"{method},resnet56,resnet20")
        for key in config.losses:
            config.losses[key].weight = 0.125
        weights = resolve(config).losses
        found = [
            w.weight if isinstance(w.weight, float) else w.weight.get("value", w.weight.get("start"))
            for w in weights.values()
        ]
        assert set(found) == {0.125}, method
    assert resolve(get("student", "dkd,resnet56,resnet20")).losses.dkd.weight.epochs == 20
    assert get("student", "wkdl,resnet56,resnet20").losses.wkdl.fall_epochs == (149, 239)


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


def test_every_published_number_has_its_provenance():
    for dataset, tables in published.TABLES.items():
        for row in tables.accuracy:
            for pair in tables.pairs:
                entry = published.entry(row, dataset, *pair)
                if not entry:
                    continue
                assert entry["source"] and entry["view"] and isinstance(entry["epochs"], int)
                assert entry["selection"] in ("last epoch", "best epoch", "") and isinstance(entry["runs"], int)


def test_the_provenance_of_the_rows():
    def of(row, teacher, student, dataset="cifar100"):
        return published.entry(row, dataset, teacher, student)

    assert of("crd", "vgg13", "vgg8")["selection"] == "last epoch" and of("crd", "vgg13", "vgg8")["runs"] == 5
    assert of("crd", "vgg13", "mobilenetv2_half")["runs"] == 3 and of("crd", "vgg13", "vgg8")["epochs"] == 240
    for pair in published.PAIRS:
        assert of("dkd", *pair).get("selection", "best epoch") == "best epoch"
    from_lskd = of("dkd", "resnet110", "resnet20")
    assert from_lskd["accuracy"] == 71.06 and "LSKD" in from_lskd["source"]
    assert of("dkd", "resnet34", "resnet18", "imagenet")["selection"] == "best epoch"
    nkd = of("nkd", "resnet50", "mobilenetv1", "imagenet")
    assert nkd["alone"] == 69.21 and "teacher" not in nkd
    assert of("dist", "resnet50", "mobilenetv1", "imagenet")["alone"] == 70.13
    assert of("wttm", "resnet50", "mobilenetv1", "imagenet")["alone"] == 68.87


def test_a_published_number_belongs_to_the_teachers_it_was_measured_with():
    """The tables' teachers were trained with cross-entropy; the losses of imported weights are not known."""
    study = read_study(get("studies.teacher_loss_table", None))
    jobs = [job for stage in make_stages(study) for job in stage]
    found = {(job.key.student, job.key.teacher): published_accuracy(study, job) for job in jobs}
    assert found["wttm", "CE"] == 76.06 and found["alone", ""] == 72.50 and found["", "CE"] == 79.42
    assert found["wttm", "MSE"] is None and found["", "MSE"] is None
    assert printed(study.students["wttm"].published, [()]) == 76.06


def test_a_published_number_belongs_to_the_config_as_its_file_makes_it(tmp_path):
    file = "configs/wttm_student.py:cifar100,resnet56,resnet20"
    kept = {"seed": 3, "select": "last", "teachers.a.run": "my/teacher", "checkpoint.every_epochs": 1}
    assert unlike_recipe(load_config(file, **kept).to_dict()) == []
    changed = {"epochs": 1, "losses.wttm.gamma": 0.2, "data.protocols.subset.per_class": 1, "model.name": "resnet8"}
    first, *others = unlike_recipe(load_config(file, **changed).to_dict())
    assert first == "epochs 1 instead of 240" and sorted(others) == [
        "data.protocols.subset.per_class 1 instead of unset",
        "losses.wttm.gamma 0.2 instead of 0.3",
        "model.name resnet8 instead of resnet20",
    ]
    own = tmp_path / "own.py"
    own.write_text(
        "from configs import alone_student\n\ndef get_config():\n    config = alone_student.get_config()\n"
        "    config.published = {'accuracy': 97.0}\n    return config\n"
    )
    assert unlike_recipe(load_config(str(own)).to_dict()) == []
    assert unlike_recipe(load_config(str(own), batch_size=32).to_dict()) == ["batch_size 32 instead of 64"]


def test_a_study_of_another_recipe_has_no_published_numbers():
    config = get("studies.teacher_loss_table", None)
    config.students["alone"].epochs = 1
    study = read_study(config)
    found = {job.key[:2]: published_accuracy(study, job) for stage in make_stages(study) for job in stage}
    assert found["alone", ""] is None and found["wttm", "CE"] == 76.06


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


@pytest.mark.parametrize(
    "name, one, other",
    [
        ("mse_teacher", "cifar100,vgg13,vgg8", "vgg13,vgg8"),
        ("mse_teacher", "cifar10,vgg13,vgg8", "vgg13,vgg8,cifar10"),
        ("alone_student", "imagenet,resnet50,mobilenetv1", "resnet50,imagenet,mobilenetv1"),
        ("student", "dkd,vgg13,vgg8", "cifar100,vgg13,vgg8,dkd"),
        ("student", "kd", "digits"),
        ("rethink_2_teachers", "smoke,ws,to_strong", "to_strong,ws,smoke"),
        ("rethink_teacher", "digits,s,2,as_released", "2,as_released,s"),
    ],
)
def test_the_words_of_an_argument_may_be_in_any_order(name, one, other):
    assert get(name, one).to_dict() == get(name, other).to_dict()


def test_smoke_is_a_data_set_of_every_config(root):
    for path in (root / "configs").glob("*.py"):
        if "def get_config" in path.read_text() and path.stem not in AUXILIARY:
            assert get(path.stem, "smoke").to_dict() != get(path.stem, None).to_dict()
    assert get("student", "dkd,smoke").data.name == "gaussian"


@pytest.mark.parametrize(
    "argument, message",
    [
        ("cifar10,cifar100", r"should be \[DATASET\]\[,TEACHER,STUDENT\]: 'cifar10' and 'cifar100' are two words"),
        ("digits,mlp,mlp,mlp", "name 2 networks or none, not 3"),
        ("cifar10,mlp,mlp", "'mlp' is not a network of cifar10. There are: .*vgg8"),
        ("imagenet,resnet34,resnet20", "'resnet20' is not a network of imagenet. Did you mean 'resnet"),
        ("smoke,mlp,mlp", "'mlp' is not a network of smoke"),
    ],
)
def test_what_an_argument_may_not_say(argument, message):
    with pytest.raises(UserError, match=message):
        common.parse(argument)


def test_a_check_names_every_wrong_field():
    config = defaults()
    config.losses = {"kd": {"weight": 1.0}}
    check(config)
    config.epochs, config.batch_size, config.model.init = 0, 0, "papr"
    with pytest.raises(UserError) as error:
        check(config)
    words = str(error.value)
    assert "config.epochs must be at least 1, not 0." in words and "config.batch_size must be at least 1" in words
    assert "config.model.init must be 'paper', 'torch' or 'flax', not 'papr'. Did you mean 'paper'?" in words
    config.optimizer.lr, config.modle = 0.1, 1
    with pytest.raises(
        UserError, match="config has no field 'modle'. Did you mean 'model'.*config.optimizer has no.*'lr'"
    ):
        check(config)


@pytest.mark.parametrize("field", [*CHOICES, *RANGES])
def test_every_choice_and_range_is_checked(field):
    config = defaults()
    config.losses = {"kd": {"weight": 1.0}}
    config.teachers = {"NAME": {"run": "digits/mlp-ce-s0"}}
    config.warmup.losses = {"kd": 1.0}
    config.warmup.epochs = 1
    for value in CHOICES.get(field, ()):
        with config.unlocked():
            config.update_from_flattened_dict({field: value})
        check(config)
    wrong = "neither" if field in CHOICES else type(config_value(config, field))(-2)
    with config.unlocked():
        config.update_from_flattened_dict({field: wrong})
    with pytest.raises(UserError, match=rf"config\.{field} must be .*not {wrong!r}"):
        check(config)


def config_value(config: ConfigDict, field: str):
    for part in field.split("."):
        config = config[part]
    return config


def test_every_smoke_config_trains(tmp_path, one_device):
    store = Store(tmp_path)
    for name in TEACHERS + STUDENTS:
        result = train(get(name, "smoke"), store, devices=one_device, show=False)
        assert np.isfinite(result["last"]["test"]["loss"])


@pytest.mark.parametrize("name", [LIKE_ANOTHER.get(name, name) for name in TEACHERS + STUDENTS])
def test_the_cifar_recipe_makes_its_first_steps(name, cifar_store, one_device, fake_cifar100):
    """The real recipe with one epoch and shallow networks, on a tarball of random images."""
    store = cifar_store
    config = get(name, "cifar100,resnet8,resnet8")
    config.epochs, config.batch_size, config.eval_batch_size, config.score_train = 1, 50, 50, True
    if config.teachers:
        teacher = get("ce_teacher" if "-ce-" in config.teachers.a.run else "mse_teacher", "cifar100,resnet8,resnet8")
        teacher.epochs, teacher.batch_size, teacher.eval_batch_size = 1, 50, 50
        train(teacher, store, data_dir=fake_cifar100, devices=one_device, show=False)
    plan = make_plan(resolve(config), store, fake_cifar100, one_device)
    assert plan.spec.view == (config.data.view or "crop_flip") and plan.spec.steps_per_epoch == 2
    result = train(config, store, name=f"recipe/{name}", data_dir=fake_cifar100, devices=one_device, show=False)
    assert np.isfinite(result["last"]["train"]["loss"]) and "max_over_epochs_on_test" in result


@pytest.fixture(scope="module")
def cifar_store(tmp_path_factory) -> Store:
    """One store for all recipes, so that their teachers are trained once."""
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
    from configs.studies import quickstart_full

    stages = make_stages(read_study(quickstart_full.get_config("smoke")))
    jobs = [job for stage in stages for job in stage]
    assert len(jobs) == 2 * (2 + 1 + 3 * 2)
    assert len({job.name for job in jobs}) == len(jobs)
    first = [[job for job in stage if job.key.seed == 0] for stage in stages]
    counter, again = RunCounter(), RunCounter()
    Runner(Store(tmp_path), "", counter).run_stages(first)
    assert [len(stage) for stage in first] == [4, 14]
    for stage, finished in ((first[0], counter.finished[:4]), (first[1], counter.finished[4:])):
        assert sorted(finished) == sorted(job.name for job in stage)  # populations finish together
    runs = Runner(Store(tmp_path), "", again).run_stages(first)
    assert sorted(again.finished) == sorted(counter.finished) and all(run.result["last"]["step"] == 8 for run in runs)


def test_a_misspelt_argument_is_refused_by_every_config(root):
    """A typo in 'smoke' must not start the whole study."""
    files = [path for path in sorted((root / "configs").rglob("*.py")) if "def get_config" in path.read_text()]
    assert len(files) > 20
    for path in files:
        module = importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
        with pytest.raises(UserError, match="smok"):
            module.get_config("smok")
