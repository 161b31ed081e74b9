"""Code of the user's own, `package.module:attribute`: where a config names it, who may name it, and its source's hash.

A config is code, and so is all that it names. A store is data: what a manifest in it names is imported only if a config
of the user's names the same in this process, or if the user trusts its package.
"""

import contextlib
import dataclasses
import dis
import functools
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import textwrap
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kdjax.errors import UserError, lookup

MAIN = "__main__"  # the module of a script or a notebook: another process has another one by this name
NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# The argument that may stand in the name of a data set, which is then no code: 'folder:PATH' is short for 'folder' with
# config.data.args = {'path': PATH}.
SHORT = {"folder": "path", "list": "path", "tfds": "name"}


def names_in(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns field -> 'package.module:attribute' of the code that a run's config, as plain mappings, names."""
    model = config.get("model", {})
    found = {"config.model.name": model.get("name"), "config.model.args.body": model.get("args", {}).get("body")}
    found["config.schedule.name"] = config.get("schedule", {}).get("name")
    found |= names_in_data(config.get("data", {}))
    for key, term in config.get("losses", {}).items():
        weight = term.get("weight")
        found[f"config.losses.{key}.loss"] = term.get("loss", key)
        found[f"config.losses.{key}.weight"] = weight.get("schedule") if isinstance(weight, Mapping) else None
    return {field: name for field, name in found.items() if is_code(name)}


def names_in_data(data: Mapping[str, Any]) -> dict[str, str]:
    """Returns field -> 'package.module:attribute' of the code that a run's config.data, as plain mappings, names."""
    name = data.get("name")
    found = {} if is_short(name) else {"config.data.name": name}
    found |= {f"config.data.protocols.{protocol}": protocol for protocol in data.get("protocols", {})}
    return {field: name for field, name in found.items() if is_code(name)}


def is_short(name: Any) -> bool:
    """Whether the name of a data set has an argument of its loader, as 'folder:PATH' has."""
    return isinstance(name, str) and ":" in name and name.partition(":")[0] in SHORT


def is_code(name: Any) -> bool:
    """Whether a name in a config stands for code of the user's own."""
    return isinstance(name, str) and ":" in name


def names_of_main(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns field -> '__main__:attribute' of the code in a run's config that no other process can import."""
    return {field: name for field, name in names_in(config).items() if name.startswith(f"{MAIN}:")}


_NAMED: set[str] = set()  # what the configs of this process name


def note_named(config: Mapping[str, Any]) -> None:
    """Notes all that a config of the user's names, anywhere in it; a store may then name it too.

    Args:
      config: The config of a run or of a study, as plain mappings; never one that a store keeps.
    """
    _NAMED.update(_texts(config))


def noted() -> tuple[str, ...]:
    """Returns what `note_named` has noted, for another process that works on the same configs."""
    return tuple(sorted(_NAMED))


def note(names: Iterable[str]) -> None:
    """Notes what `noted` returned in the process of the configs."""
    _NAMED.update(names)


class Trust(NamedTuple):
    """What a store may name.

    Attributes:
      names: Packages, modules and 'package.module:attribute'.
    """

    names: frozenset[str] = frozenset()

    def allows(self, name: str) -> bool:
        """Whether 'package.module:attribute' may be imported although only a store names it now."""
        parts = name.partition(":")[0].split(".")
        packages = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        return name in _NAMED or bool({name, *packages} & self.names)


NOBODY = Trust()  # of a store that may name no code


def _texts(value: Any) -> Iterator[str]:
    """Yields every key and text of a config that has the form 'package.module:attribute'."""
    if isinstance(value, str):
        if NAME.fullmatch(value):
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def refuse_untrusted(names: Mapping[str, str], trust: Trust, owner: str) -> None:
    """Refuses code that a store names and the user does not, before it is imported.

    Args:
      names: Field -> 'package.module:attribute', as `names_in` returns them.
      trust: What may be imported.
      owner: What names it, such as "run 'a'", for the message.

    Raises:
      UserError: Names the first field that is not trusted, and the flag that allows it.
    """
    for field, name in names.items():
        if not trust.allows(name):
            package = name.partition(":")[0].partition(".")[0]
            raise UserError(
                f"{owner} names code, {field} = '{name}', which is not imported because a store names it: if you trust "
                f"it, add --trust={package} (trust=('{package}',) in Python), or use a config that names it."
            )


def place_of(error: BaseException) -> str:
    """Returns 'FILE, line N, in FUNCTION', the place in code of the user's own that an error came from; '' if none did.

    Args:
      error: An error that was raised.
    """
    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(code, line) for code, line in places if _is_users(code.co_filename)]
    return f"{own[-1][0].co_filename}, line {own[-1][1]}, in {own[-1][0].co_name}" if own else ""


def _is_users(file: str) -> bool:
    """Whether a source file is neither installed nor a part of kdjax."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = (os.path.dirname(os.path.abspath(__file__)), *installed)
    return os.path.isfile(file) and not os.path.abspath(file).startswith(tuple(f"{path}{os.sep}" for path in folders))


def source_hashes(names: Mapping[str, str]) -> dict[str, str]:
    """Imports code and returns 'package.module:attribute' -> the hash of its source; code without a source is left out.

    The hash covers the object, and the functions, classes and constants of the same package that it uses. Comments,
    blank lines and indentation do not count.

    Args:
      names: Field -> 'package.module:attribute', as `names_in` returns them.

    Raises:
      UserError: There is no such module or attribute, or importing it failed.
    """
    found = {}
    for field, name in names.items():
        source = _source_of(lookup({}, name, field.removesuffix(".name").removeprefix("config.")), name)
        if source:
            found[name] = hashlib.sha256(source.encode()).hexdigest()
    return found


def _source_of(value: Any, name: str) -> str:
    package = name.partition(":")[0].partition(".")[0]
    texts: dict[int, str] = {}
    _collect(value, package, texts)
    return "\n".join(texts.values())


def _collect(value: Any, package: str, texts: dict[int, str]) -> None:
    """Adds the source of an object and of all that it uses to `texts`, each once, in the order of their use."""
    value = inspect.unwrap(value.__func__ if isinstance(value, types.MethodType) else value)
    if id(value) in texts:
        return
    texts[id(value)] = ""
    if isinstance(value, functools.partial):
        value = (value.func, value.args, value.keywords)
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list | tuple | set | frozenset):
        for item in value if isinstance(value, list | tuple) else sorted(value, key=repr):
            _collect(item, package, texts)
    elif isinstance(value, bool | int | float | complex | str | bytes | None):
        texts[id(value)] = repr(value)
    elif hasattr(value, "tobytes") and not isinstance(value, type):  # an array
        texts[id(value)] = hashlib.sha256(value.tobytes()).hexdigest()
    else:
        is_code = isinstance(value, type | types.FunctionType)
        if dataclasses.is_dataclass(value) and not is_code:
            _collect_fields(value, package, texts)
        _collect_code(value if is_code else type(value), package, texts)  # an instance may be called


def _collect_fields(value: Any, package: str, texts: dict[int, str]) -> None:
    """Adds the fields of a dataclass's instance, such as a flax module; code that is installed counts by its name."""
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        texts[hash((id(value), field.name))] = f"{field.name}={_label(part)}"
        _collect(part, package, texts)


def _label(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_label, value))}]"
    if isinstance(value, bool | int | float | complex | str | None):
        return repr(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _collect_code(value: Any, package: str, texts: dict[int, str]) -> None:
    if not _is_own(value.__module__ or "", package):
        return
    texts[id(value)] = _text_of(value)
    for function in _methods(value) if isinstance(value, type) else [value]:
        for used in _used(function):
            _collect(used, package, texts)
    for base in value.__bases__ if isinstance(value, type) else ():
        _collect(base, package, texts)


def _is_own(module: str, package: str) -> bool:
    """Whether a module is of the package, or is another one of the user's: neither installed nor a part of kdjax."""
    root = module.partition(".")[0]
    if root == package:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return root != "kdjax" and file is not None and not any(file.startswith(path) for path in installed)


def _methods(kind: type) -> list[Callable]:
    found = [getattr(item, "__func__", getattr(item, "fget", item)) for item in vars(kind).values()]
    return [inspect.unwrap(item) for item in found if callable(item) and hasattr(item, "__code__")]


def _used(function: Callable) -> Iterator[Any]:
    """Yields the global objects that a function uses, and those of the modules that it uses."""
    code, space = function.__code__, function.__globals__
    names = sorted(name for name in set(_names(code)) if not name.startswith("__"))
    # A notebook gives its variables other values all the time: attributes of the same names must not count there.
    loaded = set(_loaded_globals(code)) if space.get("__name__") == MAIN else set(names)
    for name in names:
        if name in space and name in loaded:
            value = space[name]
            if isinstance(value, types.ModuleType):
                yield from (vars(value)[other] for other in names if other in vars(value))
            else:
                yield value
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield cell.cell_contents


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _loaded_globals(code: types.CodeType) -> Iterator[str]:
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _loaded_globals(constant)


def _text_of(value: Any) -> str:
    """Returns the source without comments on lines of their own, blank lines and indentation of the whole."""
    try:
        source = textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):  # made by exec, or by a tool
        name = f"{value.__module__}.{getattr(value, '__qualname__', '')}"
        in_notebook = isinstance(value, type) and value.__module__ == MAIN  # there only functions have a source
        return "\n".join([name, *map(_text_of, _methods(value))]) if in_notebook else name
    lines = (line.rstrip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
