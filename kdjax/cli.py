"""What all commands share: flags, one-line errors and exit codes. Flags are parsed before jax is imported."""

import gc
import importlib.util
import itertools
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import config_flags

from kdjax import config_files, own_code, signals
from kdjax.errors import Interrupted, RunError, UserError, nearest

FLAGS = flags.FLAGS
AUTO = "auto"
# Tracing makes many small objects and few cycles, for which Python looks by itself after far fewer objects.
OBJECTS_A_COLLECTION = 50_000
_OWN = []  # names of the flags that kdjax defines; --help lists these and not absl's


def define(definition: Callable, name: str, *args, **kwargs) -> None:
    """Defines a flag, unless it is defined already, and lists it in --help."""
    if name not in FLAGS:
        definition(name, *args, **kwargs)
        _OWN.append(name)


def define_common_flags(cpu_devices: str = "1") -> None:
    """Defines the flags of every command.

    Args:
      cpu_devices: Default of --cpu_devices.
    """
    define(flags.DEFINE_string, "store", "runs", "Directory of the runs.")
    define(flags.DEFINE_string, "data_dir", "data", "Directory of the data sets.")
    devices = "Number of emulated CPU devices, at most one for each core; 'auto': as many as a run is worth."
    define(flags.DEFINE_string, "cpu_devices", cpu_devices, devices)
    define(flags.DEFINE_boolean, "debug", False, "Print the traceback of an error.")


def define_config_flag() -> None:
    """Defines --config, a file, and the overrides of its fields."""
    words = "Config file, as FILE or FILE:ARGUMENT. --config.any.field=value overrides a field of it."
    # No arguments for absl: it would look for overrides itself, and cannot add a field or say what is wrong with one.
    define(config_flags.DEFINE_config_file, "config", None, words, sys_argv=[])


def define_trust_flag() -> None:
    """Defines --trust, of the commands that rebuild what a store names."""
    words = "Packages that are imported if a run in the store names them; what --config names is trusted already."
    define(flags.DEFINE_list, "trust", [], words)


def define_process_flags() -> None:
    """Defines the flags of the commands that several processes can run together, on one host or on many."""
    words = "HOST:PORT of process 0 of several. Found out on Cloud TPU, and under Slurm and Kubernetes."
    define(flags.DEFINE_string, "coordinator", "", words)
    words = "Number of processes; 1 for a process of its own also where several were started."
    define(flags.DEFINE_integer, "processes", 0, words, lower_bound=0)
    define(flags.DEFINE_integer, "process", -1, "Number of this process, from 0.", lower_bound=-1)
    words = "Seconds without a sign of life after which a process counts as lost and the run ends."
    define(flags.DEFINE_integer, "heartbeat", 60, words, lower_bound=2)


def define_executor_flags() -> None:
    """Defines the flags of the commands that can train their runs as jobs of their own."""
    words = "Train the runs as jobs: 'local' on this host, 'slurm' under Slurm (needs: pip install 'kdjax[slurm]')."
    define(flags.DEFINE_enum, "executor", "", ["", "local", "slurm"], words)
    define(flags.DEFINE_integer, "workers", 1, "Number of jobs that run at the same time, at most.", lower_bound=1)
    words = "Parameters of the jobs of Slurm: partition=gpu,gpus_per_node=1,time=MINUTES and others of submitit."
    define(flags.DEFINE_list, "slurm", [], words)


def define_training_flags() -> None:
    """Defines the flags of the commands that train one run."""
    define_common_flags(AUTO)
    define_process_flags()
    define_config_flag()
    define_trust_flag()
    define(flags.DEFINE_string, "run", "", "Name of the run. The default is made from the config and its seed.")
    tensorboard = "Also write TensorBoard files (needs: pip install 'kdjax[tensorboard]')."
    define(flags.DEFINE_boolean, "tensorboard", False, tensorboard)
    wandb = "Also log to Weights & Biases, offline with WANDB_MODE=offline (needs: pip install 'kdjax[wandb]')."
    define(flags.DEFINE_boolean, "wandb", False, wandb)


def run(main: Callable[..., None], argv: list[str] | None = None, takes: str = "") -> None:
    """Parses the flags, prepares jax's environment, calls `main`, and exits with the right code after an error.

    Exit codes: 0 for success, 1 for a run that failed, 2 for a mistake of the user, 130 and 143 for a run that SIGINT
    or SIGTERM stopped.

    Args:
      main: Function of the command. It receives the command's positional arguments, if it takes any.
      argv: Command line; the default is sys.argv.
      takes: Names of the positional arguments, for messages, an optional one in brackets; '' if the command takes none.
    """
    with signals.watching():
        _run(main, argv or sys.argv, takes)


def _run(main: Callable[..., None], argv: list[str], takes: str) -> None:
    debug = "--debug" in argv
    try:
        arguments = _parse(argv, takes)
        prepare_environment(_cpu_devices())
        _join_processes()
        main(*arguments)
        _finish_processes()
    except (UserError, flags.Error) as error:
        _leave(2, error, debug)
    except Interrupted as stop:
        _leave(128 + stop.signum, stop, debug)
    except RunError as error:
        _leave(1, error, debug)
    except Exception as error:  # a bug in kdjax or in the user's own code is reported in one line as well
        if not isinstance(error, OSError):
            _explain_loss(error)  # first, since a lost process fails a step that the user's own code may have called
        if place := own_code.place_of(error):
            _leave(2, f"{place}: {type(error).__name__}: {error} (--debug shows the traceback)", debug)
        if isinstance(error, OSError):
            _leave(2, f"{error.strerror or error}: {error.filename or ''} (is the disk full or read-only?)", debug)
        _leave(1, f"{type(error).__name__}: {error} (--debug shows where)", debug)


def _leave(code: int, message: object, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    who = f"process {_processes().index()}: " if _several() and _processes().index() else ""
    print(f"kdjax: {who}{' '.join(str(message).split())}", file=sys.stderr, flush=True)
    if _several():
        _processes().leave(code)
    sys.exit(code)


def _parse(argv: list[str], takes: str) -> list[str]:
    """Parses the flags and returns the arguments beside them."""
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv[1:]):
        _print_help(argv[0], takes)
        sys.exit(0)
    argv, overrides = config_files.split_overrides(argv)
    if (file := _config_argument(argv)) is not None:
        config_files.make_importable(file.partition(":")[0])
    rest = _parse_flags(argv)
    places = takes.split()
    if len(rest) > 1 + len(places):
        raise UserError(f"unexpected argument '{rest[1 + len(places)]}'; flags begin with '--'.")
    if len(rest) < 1 + len([place for place in places if not place.startswith("[")]):
        raise UserError(f"{takes} is missing: python -m kdjax.{_door(argv[0])} {takes} [flags]")
    if "config" in FLAGS and FLAGS.config is None:
        raise UserError("--config is missing; name a file, such as --config=configs/mse_teacher.py.")
    if overrides and "config" not in FLAGS:
        raise UserError(f"{overrides[0].argument}: this command takes no --config.")
    for name in ("store", "data_dir"):
        if name in FLAGS and not FLAGS[name].value:
            raise UserError(f"--{name}= is empty; name a folder, such as --{name}={FLAGS[name].default}.")
    if overrides:
        config_files.apply_overrides(FLAGS.config, overrides)
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
        if "Non-boolean" in str(error):  # absl's message has a Python tuple
            raise UserError(f"{str(error).partition(':')[0]}: it takes true or false.") from error
        if "Traceback" not in str(error):
            raise
        line = str(error).strip().splitlines()[-1]  # absl puts the whole traceback of a config file in its message
        raise UserError(f"--config: the file failed: {line} (--debug shows where)") from error
    except Exception as error:  # a config file is the user's code and can raise anything
        line = f"--config: the file failed: {type(error).__name__}: {error} (--debug shows where)"
        raise UserError(line) from error


def _config_argument(argv: list[str]) -> str | None:
    """Returns the value of --config on the command line, or None if the flag is not there."""
    for argument, following in itertools.zip_longest(argv[1:], argv[2:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":  # '--config=FILE' or '--config FILE'
            return value if equals else following
    return None


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


def chooses_devices() -> bool:
    """Whether each run may choose how many of the devices it uses: --cpu_devices=auto."""
    return FLAGS.cpu_devices == AUTO


def _cpu_devices() -> int:
    """Returns how many CPU devices to emulate: what --cpu_devices says; for 'auto' one for each core."""
    text = FLAGS.cpu_devices
    if text == AUTO:
        if (given := os.environ.get("JAX_NUM_CPU_DEVICES", "")).isdecimal():
            return int(given)
        return 1 if _joins_others() else _cores()  # several processes share the cores of a host already
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--cpu_devices={text}: it is a number from 1, or '{AUTO}'.")
    return int(text)


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def prepare_environment(cpu_devices: int) -> None:
    """Sets the variables that jax reads when it is imported: emulated devices, threads, compilation cache."""
    gc.set_threshold(OBJECTS_A_COLLECTION)
    if cpu_devices > 1:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(cpu_devices)
        # Emulated devices wait for one another in the all-reduce. With fewer threads than this they deadlock.
        os.environ["NPROC"] = str(max(2 * cpu_devices, os.cpu_count() or 1))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := _cache_dir()) is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def cluster(variables: Mapping[str, str], tpu: bool) -> str:
    """Returns in what kind of cluster several processes of this program were started, '' for none.

    Args:
      variables: The environment's.
      tpu: Whether this host has TPU chips.
    """
    if "SLURM_STEP_NODELIST" in variables and int(variables.get("SLURM_NTASKS", "1")) > 1:
        return "Slurm"
    if "KUBERNETES_SERVICE_HOST" in variables and "JOB_COMPLETION_INDEX" in variables:
        return "Kubernetes"
    if tpu and variables.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return "Cloud TPU"
    return ""


def _has_tpu() -> bool:
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _joins_others() -> bool:
    """Whether this process is one of several that work as one."""
    if "coordinator" not in FLAGS or FLAGS.processes == 1:
        return False
    return bool(FLAGS.coordinator) or bool(cluster(os.environ, _has_tpu()))


def _join_processes() -> None:
    """Starts what several processes need to work as one, if there are several."""
    if "coordinator" not in FLAGS or FLAGS.processes == 1:
        return
    named = bool(FLAGS.coordinator)
    if named and not (1 < FLAGS.processes > FLAGS.process >= 0 and FLAGS.coordinator.rpartition(":")[2].isdecimal()):
        raise UserError(
            "--coordinator=HOST:PORT needs --processes=N and --process=I from 0 to N - 1, not "
            f"--coordinator={FLAGS.coordinator} --processes={FLAGS.processes} --process={FLAGS.process}."
        )
    if not named and (FLAGS.processes or FLAGS.process >= 0):
        raise UserError("--processes and --process need --coordinator=HOST:PORT, the address of process 0.")
    if not _joins_others():
        return
    stoppable = "config" in FLAGS  # what trains can stop at a step; anything else may end at once
    _processes().start(FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.heartbeat, stoppable=stoppable)
    if not _processes().is_writer():
        logging.set_verbosity(logging.ERROR)


def _processes() -> Any:
    from kdjax.training import processes

    return processes


def _several() -> bool:
    """Whether this process has joined others; jax is not imported in order to find that out."""
    return "kdjax.training.processes" in sys.modules and _processes().joined()


def _finish_processes() -> None:
    if _several():
        _processes().finish()


def _explain_loss(error: Exception) -> None:
    if _several():
        _processes().explain(error)


def _cache_dir() -> pathlib.Path | None:
    """Returns the folder of the cache; None, with a warning, for a user without a home folder."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return pathlib.Path(home or pathlib.Path.home() / ".cache") / "kdjax"
    except RuntimeError:  # as in a container whose user has no entry in /etc/passwd
        line = "compiled programs are not kept, since this user has no home folder: set JAX_COMPILATION_CACHE_DIR"
        print(f"kdjax: {line} to keep them.", file=sys.stderr)
        return None


def confirm(question: str) -> bool:
    """Asks a question on the terminal and returns whether the answer is yes.

    Raises:
      UserError: There is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise UserError(f"{question} There is no terminal to ask on; repeat with --yes.")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


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
    from kdjax.training.processes import is_writer
    from kdjax.training.sinks import SINKS, make_sink

    sink = make_sink([name for name in SINKS if FLAGS[name].value and is_writer()])
    options = {"name": FLAGS.run, "data_dir": FLAGS.data_dir, "sink": sink, "choose_devices": chooses_devices()}
    result = train(FLAGS.config, Store(FLAGS.store, FLAGS.trust), **options)
    print(result_table(result))


def run_study_from_flags() -> None:
    """Runs the study that the flags name; its tables and figures are in <store>/report.md."""
    if FLAGS.executor == "local":  # several processes share a GPU; each would take most of its memory at once
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from kdjax.store import Store
    from kdjax.studies.kinds import run_study
    from kdjax.studies.runner import RunCounter
    from kdjax.training.parallel import local_devices
    from kdjax.training.processes import is_writer
    from kdjax.training.shared_store import shared

    local_devices()  # what is wrong with them must not be taken for a mistake in the study
    with RunCounter(show=is_writer()) as counter:
        runner = _runner(shared(Store(FLAGS.store, FLAGS.trust)), FLAGS.data_dir, counter, chooses_devices())
        text = run_study(FLAGS.config, runner)
    print(text)


def _runner(*args: Any) -> Any:
    """Returns the runner of a study that the flags ask for.

    Raises:
      UserError: The flags do not fit together, or the executor cannot be used here.
    """
    if not FLAGS.executor:
        for name in ("workers", "slurm"):
            if FLAGS[name].value != FLAGS[name].default:
                raise UserError(f"--{name} is of --executor=local or --executor=slurm; add one of them.")
        from kdjax.studies.runner import Runner

        return Runner(*args)
    from kdjax.studies import executor

    if _joins_others():
        raise UserError("--executor starts processes of its own; start the command once, without --coordinator.")
    if FLAGS.executor == "slurm":
        return executor.SlurmRunner(*args, workers=FLAGS.workers, parameters=_parameters(FLAGS.slurm))
    if FLAGS.slurm:
        raise UserError("--slurm is of --executor=slurm.")
    return executor.LocalRunner(*args, workers=FLAGS.workers)


def _parameters(given: list[str]) -> dict[str, str | int]:
    """Returns the parameters in NAME=VALUE, whole numbers as such."""
    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, (name, _, value) in zip(given, pairs) if not name or not value]:
        raise UserError(f"--slurm={wrong[0]}: write NAME=VALUE,..., such as --slurm=partition=gpu,gpus_per_node=1.")
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}
