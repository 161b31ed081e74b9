"""What to do about a teacher that the store lacks: the command that makes it, or what is not known of that command."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kdjax.config_files import Override, apply_overrides, read
from kdjax.errors import UserError
from kdjax.run_names import default_run_name

COMMAND = re.compile(r"(?P<door>python -m \S+) --config=(?P<file>[^\s:]+)(?::(?P<argument>\S+))? --run=(?P<run>\S+)")
CHANGE = re.compile(r"-([A-Za-z_][\w.]*)=([^=]*?)(?=-[A-Za-z_][\w.]*=|-s\d+$)")  # a changed field in a default name
SEED = re.compile(r"-s(\d+)$")  # the end of a run's default name


def how_to_make(label: str, fields: Mapping[str, Any], store: str) -> str:
    """Returns a sentence with the command that trains a missing teacher.

    A config has the command of its own teacher. If the user named another run, the command is that of the run whose
    default name this is; if no config file is found to have it, the sentence says what has to be named.

    Args:
      label: The teacher's name in config.teachers.
      fields: Its fields.
      store: Folder of the store, which the command must fill even if it is not the default one.
    """
    made_by, run = fields.get("made_by", ""), fields["run"]
    own = COMMAND.fullmatch(made_by)
    if made_by and (own is None or own["run"] == run):
        return f"Make it with: {made_by} --store={store}"
    commands = (_command(own, file, argument, run) for file, argument in _candidates(own, run)) if own else ()
    if command := next(filter(None, commands), ""):
        return f"Make it with: {command} --store={store}"
    other = f" (that of '{own['run']}' is: {made_by})" if own else ""
    return (
        f"Its config file is not known{other}: train it with python -m kdjax.train_teacher --config=FILE --run={run} "
        f"--store={store}, FILE being that teacher's config; or name another run in config.teachers.{label}.run."
    )


def _candidates(own: re.Match, run: str) -> Iterator[tuple[str, str]]:
    """Yields (config file, argument) that may make the run, from what differs between its name and the own one's."""
    file, argument, run = own["file"], own["argument"] or "", CHANGE.sub("", run)
    before, now = (re.split("[-/]", SEED.sub("", name)) for name in (own["run"], run))
    changed = {a: b for a, b in zip(before, now) if a != b} if len(before) == len(now) else {"": ""}
    if "" not in changed:
        words = [changed.get(word, word) for word in argument.split(",") if word]
        yield _replaced(file, changed), ",".join(words)
        yield re.sub(r"\w+_teacher\.py$", "teacher.py", file), ",".join([*changed.values(), *words])


def _replaced(file: str, changed: Mapping[str, str]) -> str:
    for a, b in changed.items():
        file = re.sub(rf"(?<=/){re.escape(a)}(?=_teacher\.py$)", b, file)
    return file


def _command(own: re.Match, file: str, argument: str, run: str) -> str:
    """Returns the command if the config file exists and its default name is that of the run, else ''."""
    found = SEED.search(run)
    try:
        config = read(f"{file}:{argument}" if argument else file)
        seed = int(found[1]) if found else config.seed
        seeded = "" if seed == config.seed else f" --config.seed={seed}"
        config.seed = seed
        changes = [_override(config, path, text) for path, text in CHANGE.findall(run)]
        apply_overrides(config, changes)
        name = default_run_name(config)
    except (UserError, AttributeError, KeyError, TypeError):  # no such file, or not the config of a run
        return ""
    changed = "".join(f" {change.argument}" for change in changes)
    file = f"{file}:{argument}" if argument else file
    return f"{own['door']} --config={file}{seeded}{changed} --run={run}" if name == run else ""


def _override(config: Any, path: str, text: str) -> Override:
    """Returns the override that a changed field in a run's name stands for; losses have no section there."""
    path = f"losses.{path}" if path.partition(".")[0] in config.losses else path
    return Override(f"--config.{path}={text}", path, text)
