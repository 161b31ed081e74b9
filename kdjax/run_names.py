"""The default name of a run: what its config says, and what was changed from the config file, short and stable."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from kdjax.config import OPERATIONAL, WRAPPERS, defaults, teacher_name
from kdjax.config import plain_word as _plain

LONGEST = 100  # characters of all changes together; the rest is told by a hash, since folders' names have a limit
RESERVED = ("true", "false", "none", "empty", "removed", "inf", "nan")  # words that stand for other values than texts
_SECTIONS = ("losses", "data.protocols")  # the names in these need no section before them
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_MISSING = object()


def default_run_name(config: ConfigDict) -> str:
    """Returns the default name of a config's run, a function of the config: `<dataset>/<model>-<what>-s<seed>`.

    `<what>` is the config's short name for a run without teachers. Otherwise it is the losses joined by '+' (or the
    short name, if that was changed from the config file), the last part of each teacher's name, and the view if the
    config sets one. The fields that were changed from the config file follow, as in 'kd.temperature=2', and a split
    seed other than 0.

    Args:
      config: A whole config; `config.changed` has the fields that were changed, see `note_changes`.
    """
    fields: dict[str, Any] = config.to_dict()
    data, teachers, changed = fields["data"], fields["teachers"].values(), fields.get("changed", ())
    losses = "+".join(fields["losses"])
    what = fields["name"] or losses
    if teachers:
        runs = [teacher_name(teacher).rsplit("/", 1)[-1] for teacher in teachers]
        view = [_plain(data["view"].replace(":", ""))] if data["view"] else []
        what = "-".join([what if "name" in changed else losses, *runs, *view])
    split = f"-split{data['split_seed']}" if data["split_seed"] else ""
    model, body = fields["model"]["name"].replace(":", "."), fields["model"]["args"].get("body")
    if model in WRAPPERS and isinstance(body, str):
        model = f"{body.replace(':', '.')}_{model}"
    return f"{_folder(fields)}/{model}-{what}{_changes(fields, changed)}{split}-s{fields['seed']}"


def note_changes(config: ConfigDict, before: Mapping[str, Any]) -> None:
    """Notes in `config.changed` in which fields a run's config differs from its file; studies have no such field.

    Args:
      config: The config after its fields were overridden.
      before: The config as its file made it, as plain mappings.
    """
    if "changed" in config and "losses" in config:
        after: dict[str, Any] = config.to_dict()
        paths = (*after["changed"], *changed_fields(before, after))
        with config.unlocked():
            config.changed = tuple(sorted(set(paths)))


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Returns the dotted paths of the fields in which two configs differ and that decide what is trained.

    Args:
      before: A config as plain mappings.
      after: Another one.
    """
    if before["model"]["name"] != after["model"]["name"]:  # the arguments of another network do not count
        before = {**before, "model": {**before["model"], "args": {}}}
    paths = [path for path in _differing(before, after) if path.partition(".")[0] not in (*OPERATIONAL, "seed")]
    return [*paths, "teachers"] if set(before["teachers"]) != set(after["teachers"]) else paths


def _differing(before: Any, after: Any, path: str = "") -> Iterator[str]:
    a, b = ({} if value is _MISSING else value for value in (before, after))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in sorted({*a, *b}):
            yield from _differing(a.get(name, _MISSING), b.get(name, _MISSING), f"{path}.{name}" if path else name)
    elif before is _MISSING or after is _MISSING or before != after:
        yield path


def _changes(fields: Mapping[str, Any], changed: tuple[str, ...]) -> str:
    """Returns the changed fields with their values, each after a '-'."""
    words = [_change(fields, path) for path in changed if not _is_shown(fields, path)]
    text = "".join(f"-{word}" for word in words)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 9]}.{_hash(text)}"


def _is_shown(fields: Mapping[str, Any], path: str) -> bool:
    """Whether the rest of a name tells the value of a field already."""
    if path in ("data.name", "data.split_seed", "model.name", "seed"):
        return True
    if path in ("name", "data.view"):
        return bool(_value(fields, path)) and (path == "name" or bool(fields["teachers"]))
    section, _, rest = path.partition(".")
    label, _, field = rest.rpartition(".")
    teacher = fields["teachers"].get(label, {}) if section == "teachers" else {}
    run, logits = str(teacher.get("run", "")), str(teacher.get("logits", ""))
    if field == "run":  # only the last part of a run stands in the name
        return run.rpartition("/")[0] == _folder(fields) or bool(not run and logits)
    return field == "logits" and not run and re.fullmatch(r"[A-Za-z0-9._+-]+\.npy", logits) is not None


def _change(fields: Mapping[str, Any], path: str) -> str:
    """Returns 'kd.temperature=2': a changed field, without the section that needs no name, and its value."""
    value = list(fields["teachers"]) if path == "teachers" else _value(fields, path)
    for section in _SECTIONS:
        short = path.removeprefix(f"{section}.")
        label = short.partition(".")[0]
        if short != path and label not in _taken(fields, section):
            path = short
            break
    name = path if _FIELD.fullmatch(path) else f"{_plain(path)}.{_hash(path)}"
    return f"{name}={_word(value)}"


def _taken(fields: Mapping[str, Any], section: str) -> set[str]:
    """Returns the names that would be mistaken for others if they stood without their section."""
    return {*defaults(), *(() if section == "losses" else fields["losses"])}


def _value(fields: Mapping[str, Any], path: str) -> Any:
    value: Any = fields
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _word(value: Any) -> str:
    """Returns a value in characters of a folder's name; no two values have the same word, but 2 and 2.0."""
    if value is _MISSING:
        return "removed"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list) and not any(isinstance(item, tuple | list) for item in value):
        return "+".join([*map(_word, value), *([""] if len(value) == 1 else [])]) or "empty"
    text = value if isinstance(value, str) else repr(value)
    if isinstance(value, str) and len(text) <= 40 and _WORD.fullmatch(text) and text.lower() not in RESERVED:
        return text
    return f"{_plain(text)[:24]}.{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _folder(fields: Mapping[str, Any]) -> str:
    """Returns the first part of a run's name: the data set with its protocols."""
    protocols = [_protocol_name(name, arguments) for name, arguments in fields["data"]["protocols"].items()]
    return "".join([data_name(fields["data"]["name"]), *protocols])


def data_name(name: str) -> str:
    """Returns the data set's part of a run's name: its name, or the last part of its path if it is one.

    Args:
      name: The value of config.data.name.
    """
    kind, colon, path = name.partition(":")
    if colon and kind in ("folder", "list"):
        return _plain(path.rstrip("/").rpartition("/")[2].replace(":", "."))
    return name.replace(":", ".")


def _protocol_name(name: str, arguments: Mapping) -> str:
    """Returns '+long_tailed-100': a protocol and its plain arguments, short enough for the name of a folder."""
    plain = [value for value in arguments.values() if isinstance(value, int | float | str)]
    words = [f"{value:g}" if isinstance(value, float) else str(value).rsplit("/", 1)[-1] for value in plain]
    return "-".join([f"+{name.replace(':', '.')}", *map(_plain, words)])
