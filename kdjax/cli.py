"""What all commands share: flags, one-line errors and exit codes. Flags are parsed before jax is imported."""

import itertools
import json
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from kdjax.errors import Interrupted, RunError, UserError, nearest

FLAGS = flags.FLAGS
_OWN = []  # names of the flags that kdjax defines; --help lists these and not absl's
_STOPPED = "stopped at once, without saving; everything that was saved before is complete."


def define(definition: Callable, name: str, *args, **kwargs) -> None:
    """Defines a flag, unless it is defined already, and lists it in --help."""
    if name not in FLAGS:
        definition(name, *args, **kwargs)
        _OWN.append(name)


def define_common_flags() -> None:
    """Defines the flags of every command."""
    define(flags.DEFINE_string, "store", "runs", "Directory of the runs.")
    define(flags.DEFINE_string, "data_dir", "data", "Directory of the data sets.")
    devices = "Number of emulated CPU devices, at most one for each core."
    define(flags.DEFINE_integer, "cpu_devices", 1, devices, lower_bound=1)
    define(flags.DEFINE_boolean, "debug", False, "Print the traceback of an error.")


def define_config_flag() -> None:
    """Defines --config, a file, and the overrides of its fields."""
    words = "Config file, as FILE or FILE:ARGUMENT. --config.any.field=value overrides a field of it."
    define(config_flags.DEFINE_config_file, "config", None, words)


def define_training_flags() -> None:
    """Defines the flags of the commands that train one run."""
    define_common_flags()
    define_config_flag()
    define(flags.DEFINE_string, "run", "", "Name of the run. The default is made from the config and its seed.")
    tensorboard = "Also write TensorBoard files (needs: pip install 'kdjax[tensorboard]')."
    define(flags.DEFINE_boolean, "tensorboard", False, tensorboard)


def run(main: Callable[..., None], argv: list[str] | None = None, takes: str = "") -> None:
    """Parses the flags, prepares jax's environment, calls `main`, and exits with the right code after an error.

    Exit codes: 0 for success, 1 for a run that failed, 2 for a mistake of the user, 130 and 143 for a run that SIGINT
    or SIGTERM stopped.

    Args:
      main: Function of the command. It receives the command's positional argument, if it takes one.
      argv: Command line; the default is sys.argv.
      takes: Name of the positional argument, for messages; '' if the command takes none.
    """
    # During training the loop handles signals and saves. Before and after that there is nothing to save.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    debug = "--debug" in (argv or sys.argv)
    try:
        arguments = _parse(argv or sys.argv, takes)
        prepare_environment(FLAGS.cpu_devices)
        main(*arguments)
    except (UserError, flags.Error) as error:
        _leave(2, error, debug)
    except Interrupted as stop:
        _leave(128 + stop.signum, stop, debug)
    except KeyboardInterrupt:
        _leave(128 + signal.SIGINT, _STOPPED, debug)
    except SystemExit as leaving:
        if leaving.code != 128 + signal.SIGTERM:
            raise
        _leave(128 + signal.SIGTERM, _STOPPED, debug)
    except RunError as error:
        _leave(1, error, debug)
    except OSError as error:
        _leave(2, f"{error.strerror or error}: {error.filename or ''} (is the disk full or read-only?)", debug)
    except Exception as error:  # a bug in kdjax or in the user's own code is reported in one line as well
        _leave(1, f"{type(error).__name__}: {error} (--debug shows where)", debug)


def _leave(code: int, message: object, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(f"kdjax: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def _parse(argv: list[str], takes: str) -> list[str]:
    """Parses the flags and returns the arguments beside them."""
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv[1:]):
        _print_help(argv[0], takes)
        sys.exit(0)
    _make_configs_importable(argv)
    rest = _parse_flags(argv)
    expected = 2 if takes else 1
    if len(rest) > expected:
        raise UserError(f"unexpected argument '{rest[expected]}'; flags begin with '--'.")
    if len(rest) < expected:
        raise UserError(f"{takes} is missing: python -m kdjax.{_door(argv[0])} {takes} [flags]")
    if "config" in FLAGS and FLAGS.config is None:
        raise UserError("--config is missing; name a file, such as --config=configs/mse_teacher.py.")
    logging.set_verbosity(logging.WARNING)
    return rest[1:]


def _parse_flags(argv: list[str]) -> list[str]:
    """Lets absl parse the flags, and makes one line of whatever goes wrong in the config file or its overrides."""
    try:
        return FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        name = error.flagname.partition(".")[0]
        raise UserError(f"unknown flag --{error.flagname}.{nearest(name, _OWN)}") from error
    except UserError:
        raise
    except flags.Error as error:
        if "Traceback" not in str(error):
            raise
        line = str(error).strip().splitlines()[-1]  # absl puts the whole traceback of a config file in its message
        raise UserError(f"--config: the file failed: {line} (--debug shows where)") from error
    except Exception as error:  # a config file is the user's code and can raise anything
        words = (
            _override_fault(argv) or f"--config: the file failed: {type(error).__name__}: {error} (--debug shows where)"
        )
        raise UserError(words) from error


def _override_fault(argv: list[str]) -> str:
    """Returns what is wrong with the first override of a field that the config lacks, or '' if there is none."""
    paths = [argument.lstrip("-").partition("=")[0] for argument in argv[1:] if argument.startswith("-")]
    overrides = [path for path in paths if path.startswith("config.")]
    argument = _config_argument(argv)
    if not overrides or not argument:
        return ""
    try:  # absl has not kept the config, so it is read once more, without the overrides
        config = FLAGS["config"].parser.parse(argument)
    except Exception:  # the file itself is at fault
        return ""
    for path in overrides:
        if config is not None and (missing := _missing_field(config, path)):
            return f"--{path}: {missing} An override can only change a field that the config file sets."
    return ""


def _missing_field(config: ConfigDict, path: str) -> str:
    """Returns which part of a dotted path the config lacks, with the nearest field, or '' if it has them all."""
    value, where = config, "config"
    for field in (part.partition("[")[0] for part in path.split(".")[1:]):
        if not isinstance(value, ConfigDict):
            return f"{where} is not a mapping, so it has no field '{field}'."
        if field not in value:
            return f"{where} has no field '{field}'.{nearest(field, value)}"
        value, where = value[field], f"{where}.{field}"
    return ""


def _config_argument(argv: list[str]) -> str | None:
    """Returns the value of --config on the command line, or None if the flag is not there."""
    for argument, following in itertools.zip_longest(argv[1:], argv[2:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":  # '--config=FILE' or '--config FILE'
            return value if equals else following
    return None


def _make_configs_importable(argv: list[str]) -> None:
    """Checks that the config file exists and lets it import `configs.common`, whatever the current folder is."""
    argument = _config_argument(argv)
    if argument is not None:
        path = pathlib.Path(argument.partition(":")[0]).resolve()
        if not path.is_file():
            others = [other.name for other in path.parent.glob("*.py")]
            raise UserError(f"--config: there is no file {path}.{nearest(path.name, others) if others else ''}")
        roots = [parent for parent in path.parents if (parent / "configs" / "common.py").is_file()]
        sys.path[:0] = [str(root) for root in roots[:1]]


def _door(command: str) -> str:
    """Returns the name of the command after 'kdjax.'."""
    path = pathlib.Path(command)
    return path.parent.name if path.stem == "__main__" else path.stem


def _print_help(command: str, takes: str) -> None:
    print(f"usage: python -m kdjax.{_door(command)} {takes + ' ' if takes else ''}[flags]\n")
    for name in _OWN:
        flag = FLAGS[name]
        default = "" if flag.default in (None, "", []) else f" (default: {flag.default})"
        print(f"  --{name}: {flag.help}{default}")


def prepare_environment(cpu_devices: int) -> None:
    """Sets the variables that jax reads when it is imported: emulated devices, threads, compilation cache."""
    if cpu_devices > 1:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(cpu_devices)
        # Emulated devices wait for one another in the all-reduce. With fewer threads than this they deadlock.
        os.environ["NPROC"] = str(max(2 * cpu_devices, os.cpu_count() or 1))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache_dir() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _cache_dir() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "kdjax"


def parse_json(flag: str, text: str) -> dict:
    """Returns the mapping that a flag gives in JSON.

    Args:
      flag: Name of the flag, for messages.
      text: Value of the flag.

    Raises:
      UserError: The text is not JSON, or not a mapping.
    """
    example = f"--{flag}='{{\"depth\": 20}}'"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--{flag}={text} is not JSON ({error}); write it as {example}.") from error
    if not isinstance(value, dict):
        raise UserError(f"--{flag}={text} must be a mapping, such as {example}.")
    return value


def train_from_flags() -> None:
    """Trains the run that the flags describe and prints its result."""
    from kdjax.reporting.tables import result_table
    from kdjax.store import Store
    from kdjax.training.loop import train
    from kdjax.training.tensorboard import make_sink

    sink = make_sink() if FLAGS.tensorboard else None
    result = train(FLAGS.config, Store(FLAGS.store), name=FLAGS.run, data_dir=FLAGS.data_dir, sink=sink)
    print(result_table(result))


def run_study_from_flags() -> None:
    """Runs the study that the flags name; its tables and figures are in <store>/report.md."""
    from kdjax.store import Store
    from kdjax.studies.kinds import run_study
    from kdjax.studies.runner import RunCounter, Runner

    with RunCounter(show=True) as counter:
        text = run_study(FLAGS.config, Runner(Store(FLAGS.store), FLAGS.data_dir, counter))
    print(text)
