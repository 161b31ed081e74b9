"""What every door shares: flags, one-line errors, exit codes. Flags are parsed before jax is imported."""

import itertools
import json
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable

from absl import flags, logging
from ml_collections import config_flags

from kdjax.errors import Interrupted, RunError, UserError, nearest

FLAGS = flags.FLAGS
_OWN = []  # names of the flags that kdjax defines, for --help
_AT_ONCE = "stopped at once, without saving; what was saved before is whole."


def define(definition: Callable, name: str, *args, **kwargs) -> None:
    """Defines a flag once and lists it in --help."""
    if name not in FLAGS:
        definition(name, *args, **kwargs)
        _OWN.append(name)


def define_common_flags() -> None:
    """Defines what every door takes."""
    define(flags.DEFINE_string, "store", "runs", "Directory of the checkpoint store.")
    define(flags.DEFINE_string, "data_dir", "data", "Directory of data sets that are not embedded.")
    define(flags.DEFINE_integer, "cpu_devices", 1, "Emulated CPU devices, at most one a core.", lower_bound=1)
    define(flags.DEFINE_boolean, "debug", False, "Show the traceback of an error.")


def define_config_flag() -> None:
    """Defines --config, a file and its overrides."""
    define(
        config_flags.DEFINE_config_file,
        "config",
        None,
        "A config file, FILE or FILE:ARGUMENT; --config.any.field=value overrides a field.",
    )


def define_training_flags() -> None:
    """Defines what both stages of training take."""
    define_common_flags()
    define_config_flag()
    define(flags.DEFINE_string, "run", "", "Name of the run; by default one made from the config and its seed.")
    define(
        flags.DEFINE_boolean, "tensorboard", False, "Also write TensorBoard files (pip install 'kdjax[tensorboard]')."
    )


def run(main: Callable[..., None], argv: list[str] | None = None, takes: str = "") -> None:
    """Parses flags, prepares jax's environment, calls `main`, and leaves with the right exit code.

    `takes` is what a door calls its one argument beside the flags, which is handed to `main`.

    0: done. 1: a run that failed. 2: a user's mistake. 130, 143: stopped by SIGINT, SIGTERM after saving.
    """
    # A signal that comes before or after training has nothing to save.
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
        _leave(130, _AT_ONCE, debug)
    except SystemExit as leaving:
        if leaving.code != 128 + signal.SIGTERM:
            raise
        _leave(leaving.code, _AT_ONCE, debug)
    except RunError as error:
        _leave(1, error, debug)
    except OSError as error:
        _leave(2, f"{error.strerror or error}: {error.filename or ''} (is the disk full or read-only?)", debug)
    except Exception as error:  # a bug of ours or of a user's own code: still one line
        _leave(1, f"{type(error).__name__}: {error} (--debug shows where)", debug)


def _leave(code: int, message: object, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"kdjax: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def _parse(argv: list[str], takes: str) -> list[str]:
    """Returns what stands beside the flags."""
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv[1:]):
        _print_help(argv[0], takes)
        sys.exit(0)
    _make_configs_importable(argv)
    try:
        rest = FLAGS(argv)
        config = FLAGS.config if "config" in FLAGS else ()
    except flags.UnrecognizedFlagError as error:
        name = error.flagname.partition(".")[0]
        raise UserError(f"unknown flag --{error.flagname}.{nearest(name, _OWN)}") from error
    except UserError:
        raise
    except flags.Error as error:  # of a config file's own mistake absl tells the whole traceback
        lines = str(error).strip().splitlines()
        if "Traceback" not in str(error):
            raise
        raise UserError(f"--config: the file failed: {lines[-1]} (--debug shows where)") from error
    except Exception as error:  # a config file is the user's code: anything may go wrong in it
        raise UserError(_config_message(error)) from error
    expected = 2 if takes else 1
    if len(rest) > expected:
        raise UserError(f"unexpected argument '{rest[expected]}'; flags begin with '--'.")
    if len(rest) < expected:
        raise UserError(f"{takes} is missing: python -m kdjax.{_door(argv[0])} {takes} [flags]")
    if config is None:
        raise UserError("--config is missing; name a file, such as --config=configs/mse_teacher.py.")
    logging.set_verbosity(logging.WARNING)
    return rest[1:]


def _config_message(error: Exception) -> str:
    cause = error.args[0] if error.args else error
    if isinstance(cause, KeyError) and cause.args:  # ml_collections wraps its own message once more
        cause = cause.args[0]
    words = " ".join(str(cause).split())
    if isinstance(error, KeyError | AttributeError):
        words += "; an override changes a field that the config file has: write it there first"
    return f"--config: {words}"


def _make_configs_importable(argv: list[str]) -> None:
    """Lets a config file, which must be there, import `configs.common` from whatever folder the command runs in."""
    for argument, following in itertools.zip_longest(argv[1:], argv[2:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":  # '--config=FILE' or '--config FILE'
            path = pathlib.Path((value if equals else following).partition(":")[0]).resolve()
            if not path.is_file():
                others = [other.name for other in path.parent.glob("*.py")]
                raise UserError(f"--config: there is no file {path}.{nearest(path.name, others) if others else ''}")
            roots = [parent for parent in path.parents if (parent / "configs" / "common.py").is_file()]
            sys.path[:0] = [str(root) for root in roots[:1]]


def _door(command: str) -> str:
    path = pathlib.Path(command)
    return path.parent.name if path.stem == "__main__" else path.stem


def _print_help(command: str, takes: str) -> None:
    print(f"usage: python -m kdjax.{_door(command)} {takes + ' ' if takes else ''}[flags]\n")
    for name in _OWN:
        flag = FLAGS[name]
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        print(f"  --{name}: {flag.help}{default}")


def prepare_environment(cpu_devices: int) -> None:
    """Sets what jax reads when it is imported: emulated devices, threads, compilation cache."""
    if cpu_devices > 1:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(cpu_devices)
        # Emulated devices wait for one another in the all-reduce: with fewer threads than this they deadlock.
        os.environ["NPROC"] = str(max(2 * cpu_devices, os.cpu_count() or 1))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache_dir() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _cache_dir() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "kdjax"


def parse_json(flag: str, text: str) -> dict:
    """Returns the mapping that a flag gives in JSON."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--{flag}={text} is not JSON ({error}); such as --{flag}='{{\"depth\": 20}}'.") from error
    if not isinstance(value, dict):
        raise UserError(f"--{flag}={text} must be a mapping, such as --{flag}='{{\"depth\": 20}}'.")
    return value


def train_from_flags() -> None:
    """Trains the run that the flags name and prints its result."""
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
