"""The runner: stages, runs that jobs share, choices by validation, what a user sees, and errors that say which run."""

import pytest

from configs import ce_teacher, kd_student
from kdjax.errors import DivergedError, RunError, UserError
from kdjax.store import Store
from kdjax.studies.fields import RunConfig
from kdjax.studies.runner import Job, RunCounter, Runner, Trial, choose_settings, located, seeded

TEACHER = "gaussian/teacher"


def small(seed: int = 0, rate: float = 0.05) -> RunConfig:
    config = seeded(ce_teacher.get_config("smoke"), seed)
    config.epochs, config.optimizer.learning_rate = 1, rate
    return config


def started() -> RunConfig:
    config = small()
    config.init_from = TEACHER
    return config


def student(**changed) -> RunConfig:
    config = RunConfig(kd_student.get_config("smoke").to_dict())
    config.epochs = 1
    config.teachers = {"a": {"run": TEACHER}}
    config.update(changed)
    return config


def test_stages_are_trained_in_turn_and_results_are_in_the_jobs_order(tmp_path):
    teachers = [Job("t1", f"{TEACHER}-1", small(1)), Job("t0", TEACHER, small())]
    counter = RunCounter()
    runs = Runner(Store(tmp_path), "", counter).run_stages([teachers, [Job("s", "gaussian/student", student())]])
    assert [run.key for run in runs] == ["t1", "t0", "s"]
    assert [run.name for run in runs] == counter.finished and counter.total == 3
    stored = Store(tmp_path)
    assert all(run.result == stored.run(run.name).result for run in runs)
    assert runs[2].score("last", "test") == runs[2].result["last"]["test"]["accuracy"]


def test_runs_that_diverge_count_at_what_they_reached(tmp_path):
    """The rest of the stage is finished, and what is left of a run is that of its last epoch that was evaluated."""
    late = small(3)
    late.epochs, late.schedule.name, late.schedule.milestones, late.schedule.factor = 4, "step", (2,), 1e30
    jobs = [Job("a", "a", small()), Job("b", "b", small(1, 1e30)), Job("c", "c", late), Job("d", "d", small(2, 1e30))]
    jobs += [Job("e", "e", small(4))]
    found = {run.key: run.result for run in Runner(Store(tmp_path)).run_all(jobs)}
    assert list(found) == list("abcde") and {key for key in found if found[key].get("diverged")} == set("bcd")
    assert found["b"]["last"]["test"]["accuracy"] == 1 / 6  # chance, for six classes
    rows = Store(tmp_path).run("c").metrics()
    assert found["c"]["last"]["epoch"] == 2 == len(rows) and found["c"]["last"]["test"] == rows[-1]["test"]
    with pytest.raises(DivergedError, match="run 'b'") as error:
        Runner(Store(tmp_path)).run_jobs([job for job in jobs if job.key in "bd"])
    assert set(error.value.runs) == {"b", "d"}


def test_jobs_of_one_name_share_a_run(tmp_path):
    counter = RunCounter()
    runs = Runner(Store(tmp_path), "", counter).run_jobs([Job(i, TEACHER, small()) for i in range(3)])
    assert [run.key for run in runs] == [0, 1, 2] and runs[0].result is runs[2].result
    assert counter.total == 1 and counter.finished == [TEACHER]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([[("a", TEACHER, small(0)), ("b", TEACHER, small(1))]], f"different configs would be called '{TEACHER}'"),
        ([[("a", TEACHER, small(0))], [("b", TEACHER, small(1))]], f"different configs would be called '{TEACHER}'"),
        (
            [[("t", TEACHER, small()), ("s", "gaussian/x", student())]],
            f"needs run '{TEACHER}', which must be in an earlier",
        ),
        ([[("t", TEACHER, small()), ("s", "gaussian/x", started())]], f"needs run '{TEACHER}', which must be in an"),
    ],
)
def test_stages_that_cannot_be_are_refused_before_anything_is_trained(tmp_path, stages, words):
    with pytest.raises(UserError, match=words):
        Runner(Store(tmp_path), "").run_stages([[Job(*job) for job in stage] for stage in stages])
    assert not list(tmp_path.iterdir())


def test_an_error_says_which_run(tmp_path):
    runner = Runner(Store(tmp_path), "")
    wrong = Job("s", "gaussian/wrong", student(losses={"kdd": {"weight": 1.0}}))
    with pytest.raises(UserError, match="run 'gaussian/wrong': .*unknown loss 'kdd'"):
        runner.run_jobs([wrong])
    with pytest.raises(UserError, match="run 'gaussian/wrong': .*unknown loss 'kdd'"):
        runner.check([Job("t", TEACHER, small()), wrong])
    runner.run_jobs([Job("t", TEACHER, small())])
    with pytest.raises(UserError, match=f"^Run '{TEACHER}' exists with another config .config.seed: 0 -> 1"):
        runner.check([Job("t", TEACHER, small(1))])


def test_a_place_is_said_once_and_the_kind_of_error_stays():
    with pytest.raises(RunError, match="^run 'a': the loss was not finite$"), located("run 'a'"):
        raise RunError("run 'a': the loss was not finite")
    with pytest.raises(RunError, match="^config.alone: it failed$"), located("config.alone"):
        raise RunError("it failed")
    with pytest.raises(ZeroDivisionError), located("config.alone"):
        raise ZeroDivisionError


def test_a_setting_is_chosen_by_mean_validation_accuracy(tmp_path):
    rates, seeds = (1e-6, 0.05), (7, 8)
    trials = [
        Job(Trial(row, rate, seed), f"choosing/{row}-lr{rate:g}-s{seed}", small(seed, rate))
        for row in ("a", "b") for rate in (rates if row == "a" else rates[::-1]) for seed in seeds
    ]  # fmt: skip
    runner = Runner(Store(tmp_path), "")
    chosen = choose_settings(runner, trials, reported_seeds=range(5))
    means = {
        rate: sum(
            runner.store.run(f"choosing/a-lr{rate:g}-s{seed}").result["best"]["validation"]["accuracy"]
            for seed in seeds
        )
        for rate in rates
    }
    assert len(set(means.values())) == 2
    assert chosen == {row: max(means, key=lambda rate: means[rate]) for row in ("a", "b")}
    with pytest.raises(UserError, match="seed 7 would both choose a setting and be reported"):
        choose_settings(runner, trials, reported_seeds=(1, 7))


def test_a_tie_falls_on_the_first_setting(tmp_path):
    same = small(3)
    trials = [Job(Trial("row", setting, 3), "choosing/one", same) for setting in (0.2, 0.1)]
    assert choose_settings(Runner(Store(tmp_path), ""), trials, ()) == {"row": 0.2}


def test_the_total_grows_with_the_stages(capsys):
    with RunCounter(show=True) as counter:
        counter.begin(1)
        counter.finish("a")
        counter.begin(2)
        counter.finish("b")
    assert capsys.readouterr().err.splitlines() == ["[1/1] a", "[2/3] b"]
    silent = RunCounter()
    silent.begin(1)
    silent.finish("a")
    assert capsys.readouterr().err == ""


def test_a_copy_has_another_seed_and_the_original_its_own():
    config = ce_teacher.get_config("smoke")
    before = config.to_dict()
    copy = seeded(config, 5, 9)
    assert (copy.seed, copy.data.split_seed) == (5, 9) and config.to_dict() == before
    assert seeded(copy, 6).data.split_seed == 9
