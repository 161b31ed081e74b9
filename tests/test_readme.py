"""Every command and every Python block of every README runs, in the order of its file, and every link has a target."""

import importlib.util
import os
import pathlib
import re
import shlex
import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
IGNORED = ("runs", "data", "report", "build")  # folders at the top that users' commands make
DOCUMENTS = [ROOT / "README.md"] + sorted(
    path
    for path in ROOT.rglob("README.md")
    if path.parent != ROOT
    and path.relative_to(ROOT).parts[0] not in IGNORED
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)

TEACHER = r"(python -m kdjax\.train_teacher --config=configs/\w+\.py)"
STUDENT = r"(python -m kdjax\.train_student --config=configs/(?:\w+_student|function_matching)\.py)"
RECIPE = r"(?:cifar10|cifar100|imagenet)\S*"  # the argument of a config for a large data set
SMOKE_TEACHERS = " && ".join(
    f"python -m kdjax.train_teacher --config=configs/{k}_teacher.py:smoke" for k in ("ce", "mse")
)
# What is run in place of a command that takes long or needs a data set: a regular expression of the whole command, and
# its smoke form, in which \1, \2, ... are the groups of the expression. The first row that matches counts; a form may
# be several commands, joined by '&&'.
SMOKE_FORMS = {
    r"\./launch/quickstart\.sh": r"./launch/quickstart.sh --smoke",
    r"\./launch/study\.sh (\w+)(?::\S+)?( .*)?": r"./launch/study.sh \1:smoke\2",
    r"(.* --config=configs/studies/\w+\.py)(?::\S+)?( .*)?": r"\1:smoke\2",
    r"(.* --config=configs/tolerant_generations\.py)( .*)?": r"\1:smoke\2",
    r"(python -m kdjax\.train_teacher --config=configs/ce_teacher\.py)": r"\1 --config.epochs=5 --run=digits/mlp-ce-s0",
    rf"{TEACHER}:{RECIPE}": r"\1:smoke",
    rf"{TEACHER}:{RECIPE} (.*)": r"\1:smoke \2 --run=smoke/teacher",
    rf"{STUDENT}:{RECIPE}( .*)?": rf"{SMOKE_TEACHERS} && \1:smoke\2",
    r".* --config=configs/student\.py:\w+,resnet32x4,resnet8x4": (
        "python -m kdjax.train_student --config=configs/student.py:kd --config.teachers.a.run=digits/mlp-mse-s0"
        " --config.epochs=1 --run=smoke/student"
    ),
    r"(.* --config=configs/rethink_\w+\.py):digits,(.*)": r"\1:smoke,\2",
    r"python -m kdjax\.bench data .*": (
        "python -m kdjax.bench data --config=configs/alone_student.py:cifar10,resnet8,resnet8 --only=crop_flip"
        " --rounds=1 --steps=1"
    ),
    r"python -m kdjax\.bench losses .*": (
        "python -m kdjax.bench losses --config=configs/student.py --only=kd --rounds=1 --steps=1"
    ),
    r"python -m kdjax\.bench models .*": (
        "python -m kdjax.bench models --config=configs/ce_teacher.py:smoke --only=mlp --rounds=1 --steps=1"
    ),
    r"python -m kdjax\.prepare_data .*": "python -m kdjax.prepare_data --help",
}

# Commands that no test here runs, and why.
NOT_RUN = {
    r"git clone .*|cd .*|source .*|(.*python -m )?pip install .*": "The tests run in what these prepare.",
    r"(\./)?launch/test\.sh.*|.*python -m pytest .*": "These run the tests.",
    r"python -m kdjax\.publish .*": "It needs the store of a whole study; test_publish.py publishes a smoke form.",
    r".*launch/study\.sh human_posterior.*": "It needs CIFAR-10H; test_human_study.py runs the study on made images.",
    r"\./launch/(tpu_pod|slurm)\.sh .*": "It needs a cluster; test_launch.py reads what it would run.",
    r"python -m kdjax\.run_study .*--executor=\w+.*": "It may need Slurm; tests/studies/test_executor.py runs both.",
    r"\./launch/local_processes\.sh .*": "tests/training runs several processes.",
    r"(\./)?launch/fetch_teachers\.sh.*": "It needs a network; test_fetch_teachers.py runs it against a local server.",
}

# These make their own runs, so that they need no other command, and take long even in their smoke forms: slow suite.
ALONE = r"(\./)?launch/.*|python -m kdjax\.(run_study|bench|train_generations) .*"
KNOWN = r"(\./)?launch/\w+\.sh.*|python -m kdjax\.\w+.*"
LONG = ALONE + r"|.*(cifar|imagenet).*|python -m kdjax\.prepare_data .*"
QUICK_ENOUGH = r"python -m kdjax\.(bench step|show_model) .*"  # of the long ones, those that run as they are printed

SECONDS = 60  # of processor time that one command may take in the ordinary suite
ADD_A_ROW = "Give it a smoke form in SMOKE_FORMS, or a reason in NOT_RUN, in tests/test_readme.py."
HINT = f"The commands of the READMEs must run in the order in which they stand. If this one takes long: {ADD_A_ROW}"
DOORS = "train_teacher train_student evaluate run_study bench import_torch export show_model".split()
DOORS += [
    "show_views",
    "prepare_data",
    "train_generations",
    "analyze",
    "report",
    "runs",
    "publish",
    "predict",
    "import_flax",
]


class Step(NamedTuple):
    """Something that a reader of a README types: a command, or a block of Python."""

    kind: str  # "command", "mention" (a command inside a sentence) or "python"
    text: str


def steps(text: str) -> Iterator[Step]:
    """Yields the commands and the Python blocks of a README in their order."""
    for found in re.finditer(r"```(\w*)\n(.*?)```|`((?:python -m kdjax\.|\./launch/)[^`\n]+)`", text, flags=re.DOTALL):
        language, block, mention = found.groups()
        if mention:
            yield Step("mention", mention.strip())
        elif language == "python":
            yield Step("python", textwrap.dedent(block))
        elif language in ("bash", "sh", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                if command := re.sub(r"\s+", " ", re.sub(r"(^|\s)#.*", "", line)).strip():
                    yield Step("command", command)


def matches(pattern: str, command: str) -> bool:
    return re.fullmatch(pattern, command) is not None


def has_placeholder(mention: str) -> bool:
    """Whether a command inside a sentence names what the reader fills in, such as METHOD or N."""
    return bool(re.search(r"\b[A-Z][A-Z_]*\b|\.\.\.|…|<", mention))


def form(command: str) -> str | None:
    """Returns what is run in place of a command, None where NOT_RUN says why it is not."""
    if any(matches(pattern, command) for pattern in NOT_RUN):
        return None
    for pattern, smoke in SMOKE_FORMS.items():
        if found := re.fullmatch(pattern, command):
            return found.expand(smoke).strip()
    assert matches(KNOWN, command), f"'{command}' is no command of kdjax. {ADD_A_ROW}"
    quick = "smoke" in command or matches(QUICK_ENOUGH, command) or not matches(LONG, command)
    assert quick, f"'{command}' takes long. {ADD_A_ROW}"
    return command


def check_mention(mention: str) -> None:
    """Checks the door and the config file of a command that cannot be run, since it has a placeholder."""
    if door := re.match(r"python -m (kdjax\.\w+)", mention):
        assert importlib.util.find_spec(door[1]), f"there is no {door[1]}: {mention}"
    for file in re.findall(r"(?:--config=|\./)([\w/]+\.(?:py|sh))", mention):
        assert (ROOT / file).is_file(), f"there is no {file}: {mention}"


def runnable(document: pathlib.Path, alone: bool) -> Iterator[tuple[str, str]]:
    """Yields what to run of a README: (kind, command or code), of its commands those that stand alone or the others."""
    for step in steps(document.read_text()):
        if step.kind == "mention" and has_placeholder(step.text):
            check_mention(step.text)
        elif step.kind != "python" and (command := form(step.text)):
            if matches(ALONE, command) == alone:
                yield from (("command", part) for part in command.split(" && "))
        elif step.kind == "python" and not alone:
            yield "python", step.text


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> pathlib.Path:
    """The project's folder as a user has it, but with no runs and no data: links to the files, and room beside them."""
    return make_workspace(tmp_path_factory.mktemp("project"))


def make_workspace(folder: pathlib.Path) -> pathlib.Path:
    for path in ROOT.iterdir():
        if path.name not in (*IGNORED, ".git", ".pytest_cache"):
            (folder / path.name).symlink_to(path)
    return folder


class TooLong(Exception):
    """A command of the ordinary suite took more than SECONDS of processor time."""


@pytest.fixture
def limited():
    """Calls a function, and interrupts it after SECONDS of processor time: a busy machine does not count."""

    def stop(*_):
        raise TooLong(f"more than {SECONDS} s of processor time")

    def call(function: Callable, *args, **kwargs):
        before = signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            return function(*args, **kwargs)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)

    return call


def names(paths: list[pathlib.Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_commands_and_python_run_in_order(document, workspace, door, limited, monkeypatch, one_device):
    """One store serves all files; the README at the top comes first, so the others may use the runs that it makes."""
    session: dict[str, object] = {"__name__": "README"}
    for kind, text in runnable(document, alone=False):
        if kind == "command":
            name, *arguments = shlex.split(text)[2:]
            done = limited(door, name, *arguments, cwd=workspace)
            assert done.returncode == 0, f"{document}: {text}\n{done.stderr[-2000:]}\n{HINT}"
        elif titled := re.match(r"# (\w+\.py)\n", text):
            (workspace / titled[1]).write_text(text)
        else:
            with monkeypatch.context() as patch:
                patch.chdir(workspace)
                patch.syspath_prepend(workspace)
                patch.setattr(jax, "local_devices", lambda: list(one_device))
                limited(exec, compile(text, str(document), "exec"), session)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_studies_benchmarks_and_scripts_run(document, tmp_path, command):
    folder = make_workspace(tmp_path)
    for text in dict.fromkeys(text for _, text in runnable(document, alone=True)):
        if text.startswith("python"):
            done = command(*shlex.split(text)[2:], cwd=folder, timeout=900, PYTHONPATH=str(folder))
        else:
            skip_without_a_venv()
            done = subprocess.run(shlex.split(text), cwd=folder, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{document}: {text}\n{done.stderr[-2000:]}"


def skip_without_a_venv() -> None:
    if not list((ROOT / os.environ.get("KDJAX_VENV", ".venv")).glob("kdjax-*")):
        pytest.skip("no environment: launch/setup.sh has not been run here")


def test_the_readmes_have_the_commands_they_should():
    texts = [step.text for document in DOCUMENTS for step in steps(document.read_text())]
    doors = {found[1] for text in texts if (found := re.match(r"python -m kdjax\.(\w+)", text))}
    assert doors >= set(DOORS)


def test_an_unknown_long_command_must_be_given_a_smoke_form():
    for command in ("python -m kdjax.evaluate --run=cifar100/a", "./launch/new.sh", "make all"):
        with pytest.raises(AssertionError, match="Give it a smoke form in SMOKE_FORMS"):
            form(command)
    assert form("python -m kdjax.run_study --config=configs/studies/a.py:x --store=b").endswith("a.py:smoke --store=b")
    assert form("./launch/test.sh -k identities") is None


def test_a_command_that_takes_long_is_interrupted(limited, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SECONDS", 0.05)
    with pytest.raises(TooLong):
        limited(lambda: [None for _ in iter(int, 1)])


def test_steps_of_a_readme_come_in_their_order():
    text = "`./launch/a.sh b` and `c`:\n```bash\npython -m kdjax.d \\\n  --e=f#g  # h\n# i\n```\n```python\n1\n```\n"
    found = [Step("mention", "./launch/a.sh b"), Step("command", "python -m kdjax.d --e=f#g"), Step("python", "1\n")]
    assert list(steps(text)) == found


def test_the_notebook_lines_run():
    blocks = [step.text for step in steps((ROOT / "README.md").read_text()) if step.kind == "python"]
    code = next(block for block in blocks if "from kdjax import losses" in block and not block.startswith("# "))
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 6
    exec(compile(code, "README", "exec"), {})


def test_the_quickstart_runs_in_an_existing_venv(tmp_path, door):
    skip_without_a_venv()
    line = ["launch/quickstart.sh", "--smoke", f"--store={tmp_path}/quickstart"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "quickstart" / "report.md").read_text()
    tables = report.partition("\n##")[0].strip()
    assert tables in done.stdout and "| TTM" in tables and "figures/gains.svg" in report
    again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0 and tables in again.stdout
    done = door("kdjax.report", f"--store={tmp_path}/quickstart", f"--out={tmp_path}/page")
    assert done.returncode == 0, done.stderr
    html, row = (tmp_path / "page" / "report.html").read_text(), re.search(r"\| TTM +\| MSE .*", report).group()
    last, best = (cell.strip() for cell in row.split("|")[4:6])
    assert f">{last}<" in html and f">{best}<" in html


def test_the_studies_of_the_claims_run_by_their_names(tmp_path):
    texts = [step.text for document in DOCUMENTS for step in steps(document.read_text())]
    named = [found[1] for text in texts if (found := re.match(r"\./launch/study\.sh (\w+)", text))]
    assert len(named) >= 5 and all((ROOT / "configs" / "studies" / f"{name}.py").is_file() for name in named)
    skip_without_a_venv()
    line = ["launch/study.sh", "noise:smoke", f"--store={tmp_path}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.md").read_text().splitlines()[0] in done.stdout
    typo = subprocess.run(["launch/study.sh", "noise:smok"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert typo.returncode == 2 and len(typo.stderr.splitlines()) == 1 and "'smok'" in typo.stderr


def test_the_claims_have_an_answer_each():
    """The table of claims, in whichever README it stands."""
    tables = [text.split("| claim |")[1] for document in DOCUMENTS if "| claim |" in (text := document.read_text())]
    assert tables
    for table in tables:
        rows = [line for line in table.split("\n\n")[0].splitlines() if line.startswith("|")][1:]
        assert len(rows) >= 5
        for row in rows:
            assert re.search(r"\| (holds|does not hold|inside the noise|not run yet)", row), row


def test_every_link_to_a_file_leads_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
