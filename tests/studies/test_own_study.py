"""A study of the user's own: one file, named in its config by module:attribute."""

import pytest

from configs.studies import quickstart
from kdjax.errors import UserError
from kdjax.studies.kinds import read_study

STUDY = '''"""How much does a longer training gain?"""

import dataclasses

from kdjax.reporting.figures import Figure, Series, curves
from kdjax.reporting.tables import markdown, spread
from kdjax.studies.fields import RunConfig
from kdjax.studies.runner import FinishedRun, Job, Runner, seeded


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthStudy:
    title: str = "Length of training"
    seeds: int = 2
    lengths: tuple[int, ...]
    network: RunConfig

    def run(self, runner: Runner) -> list[FinishedRun[int]]:
        return runner.run_jobs([self._job(m, seed) for m in self.lengths for seed in range(self.seeds)])

    def _job(self, epochs: int, seed: int) -> Job[int]:
        config = seeded(self.network, seed)
        config.epochs = epochs
        return Job(epochs, f"length/{epochs}-s{seed}", config)

    def report(self, outcome: list[FinishedRun[int]]) -> str:
        rows = [(str(m), spread(self._accuracies(outcome, m))) for m in self.lengths]
        return f"# {self.title}\\n\\n" + markdown(("epochs", "accuracy"), rows) + "\\n"

    def figures(self, outcome: list[FinishedRun[int]]) -> list[Figure]:
        series = Series("network", self.lengths, [self._accuracies(outcome, m) for m in self.lengths])
        return [curves("length", "Accuracy", "A band is the standard deviation.", {("epochs", "[%]"): [series]})]

    def _accuracies(self, outcome: list[FinishedRun[int]], epochs: int) -> list[float]:
        return [100 * run.score("last", "test") for run in outcome if run.key == epochs]


def function(study):
    return study
'''

CONFIG = """from ml_collections import ConfigDict

from configs import ce_teacher


def get_config():
    study = ConfigDict()
    study.kind = "length_study:LengthStudy"
    study.lengths = (1, 2)
    study.network = ce_teacher.get_config("smoke")
    return study
"""


def test_one_file_is_a_study(tmp_path, door):
    (tmp_path / "length_study.py").write_text(STUDY)
    (tmp_path / "config.py").write_text(CONFIG)
    line = (f"--config={tmp_path}/config.py", f"--store={tmp_path}/runs")
    done = door("kdjax.run_study", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "runs" / "report.md").read_text()
    assert report.startswith("# Length of training") and "| 2 " in report and "(figures/length.svg)" in report
    assert report.partition("\n##")[0] in done.stdout and "with a figure" in done.stdout
    assert "[4/4] length/2-s1" in done.stderr
    again = door("kdjax.train_generations", *line, cwd=tmp_path)  # the same door by another name
    assert again.returncode == 0 and again.stdout == done.stdout
    wrong = door("kdjax.run_study", *line, "--config.lengths=(1, 0.5)", cwd=tmp_path)
    assert wrong.returncode == 2 and "config.lengths[1] must be an integer, not 0.5." in wrong.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("croos", "unknown study.kind 'croos'. Did you mean 'cross'"),
        ("nowhere:Study", "study.kind 'nowhere:Study': importing nowhere failed"),
        ("length_study:LengthStudi", "length_study has no 'LengthStudi'. Did you mean 'LengthStudy'"),
        ("length_study:function", "must name a dataclass with the methods run, report and figures"),
        ("length_study:RunConfig", "must name a dataclass with the methods run, report and figures"),
    ],
)
def test_what_is_no_study_is_refused(kind, words, tmp_path, monkeypatch):
    (tmp_path / "length_study.py").write_text(STUDY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "length_study", raising=False)
    study = quickstart.get_config("smoke")
    study.kind = kind
    with pytest.raises(UserError, match=words):
        read_study(study)
