"""The README's commands, code and claims are run."""

import pathlib
import re
import shlex
import subprocess
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


DOORS = "train_teacher train_student evaluate run_study bench import_torch export show_model".split()
DOORS += ["show_views", "prepare_data", "train_generations", "analyze", "report"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """Every line of a bash block; '# smoke: ...' beside it says what the test runs in its place."""
    lines = [line.strip() for block in blocks("bash") for line in block.splitlines()]
    chosen = []
    for line in filter(None, lines):
        command, _, smoke = line.partition("# smoke:")
        chosen.append((smoke or command.partition("#")[0]).strip())
    return chosen


def python_commands() -> list[str]:
    return [command for command in commands() if command.startswith("python -m kdjax.")]


def test_the_readme_has_the_commands_it_should():
    doors = {command.split()[2] for command in python_commands()}
    assert doors >= {f"kdjax.{door}" for door in DOORS}
    others = [command for command in commands() if not command.startswith("python -m kdjax.")]
    allowed = ("./launch/quickstart.sh", "./launch/test.sh", "./launch/fetch_teachers.sh", "git clone", "cd ")
    assert all(command.startswith(allowed) for command in others), others


# Doors whose commands need no run that another command made; long, and their parts are tested in small elsewhere.
ALONE = ("run_study", "bench", "train_generations")


def stands_alone(command: str) -> bool:
    return command.split()[2] in [f"kdjax.{door}" for door in ALONE]


def test_every_command_of_a_run_runs_in_order(tmp_path, door):
    """From the project's folder, as printed, but for the place of the store."""
    run_commands([line for line in python_commands() if not stands_alone(line)], tmp_path, door)


@pytest.mark.slow
def test_every_study_and_benchmark_runs(tmp_path, command):
    run_commands([line for line in python_commands() if stands_alone(line)], tmp_path, command)


def run_commands(lines: list[str], tmp_path: pathlib.Path, run: Callable) -> None:
    (tmp_path / "mine").mkdir()
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README, flags=re.DOTALL):
        (tmp_path / "mine" / name).write_text(text)
    for line in lines:
        name, *arguments = shlex.split(line)[2:]
        own = "--config=my_config.py" in arguments
        store = [] if any(argument.startswith("--store") for argument in arguments) else [f"--store={tmp_path}/runs"]
        arguments = [re.sub("=(teacher.safe|views.png|report)", rf"={tmp_path}/\1", argument) for argument in arguments]
        arguments = [re.sub(r"^--store=runs", f"--store={tmp_path}/runs", argument) for argument in arguments]
        store = [] if name in ("kdjax.bench", "kdjax.show_views", "kdjax.prepare_data") else store
        done = run(name, *arguments, *store, cwd=tmp_path / "mine" if own else ROOT)
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"


def test_the_notebook_lines_run():
    code = next(
        block for block in blocks("python") if "from kdjax import losses" in block and not block.startswith("# ")
    )
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 6
    exec(compile(code, "README", "exec"), {})


def test_the_quickstart_runs_in_an_existing_venv(tmp_path):
    if not list((ROOT / ".venv").glob("kdjax-*")):
        pytest.skip("no .venv: launch/setup.sh has not been run here")
    line = ["launch/quickstart.sh", "--smoke", f"--store={tmp_path}/quickstart"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "quickstart" / "report.md").read_text()
    assert report.strip() in done.stdout and "| WTTM" in report
    again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0 and report.strip() in again.stdout
    page = [f"--store={tmp_path}/quickstart", f"--out={tmp_path}/page"]
    line = [".venv/bin/python", "-m", "kdjax.report", *page]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    html, row = (tmp_path / "page" / "report.html").read_text(), re.search(r"\| WTTM +\| MSE .*", report).group()
    last, best = (cell.strip() for cell in row.split("|")[4:6])
    assert f">{last}<" in html and f">{best}<" in html


def test_the_studies_of_the_claims_run_by_their_names(tmp_path):
    named = re.findall(r"`\./launch/study\.sh (\w+)`", README)
    assert len(named) >= 5 and all((ROOT / "configs" / "studies" / f"{name}.py").is_file() for name in named)
    if not list((ROOT / ".venv").glob("kdjax-*")):
        pytest.skip("no .venv: launch/setup.sh has not been run here")
    line = ["launch/study.sh", "noise:smoke", f"--store={tmp_path}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.md").read_text().splitlines()[0] in done.stdout
    typo = subprocess.run(["launch/study.sh", "noise:smok"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert typo.returncode == 2 and len(typo.stderr.splitlines()) == 1 and "'smok'" in typo.stderr


def test_the_claims_have_an_answer_each():
    table = README.split("Do the papers' claims hold here?")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 5
    for row in rows:
        assert re.search(r"\| (holds|does not hold|inside the noise|not run yet)", row), row


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
