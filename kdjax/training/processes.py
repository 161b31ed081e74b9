"""Several processes that train one run: starting them, what they tell one another, and noticing that one is lost.

Every process runs the same program. Process 0 is the writer: it alone touches the store and prints. The others ask it,
by `by_writer`, so that all of them see the same store and the same mistakes. Small messages go through jax's
coordination service, large ones over the devices.
"""

import contextlib
import itertools
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax import signals
from kdjax.errors import RunError, UserError

T = TypeVar("T")

LOST = 75  # exit code of a process that ends because another one is lost; launchers start such a run again
SMALL = 2**20  # bytes of the largest message that goes through the coordination service
CHUNK = 2**24  # bytes of a part of a larger one: one size, so that its broadcast is compiled once
PATIENCE = 600_000  # milliseconds to wait for a message; whether its sender is alive is the watch's to find out
BEATS = 10  # signs of life within the time after which a process counts as lost

_numbers = itertools.count()  # of messages: every process sends and receives all of them in the same order
_watch: "Watch | None" = None
_within_writer_first = False  # whether this process is in a block in which the others are not


def count() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def index() -> int:
    """Returns the number of this process, counted from 0."""
    return jax.process_index()


def is_writer() -> bool:
    """Whether this process writes the store, the log and the reports."""
    return index() == 0


def joined() -> bool:
    """Whether this process has joined others."""
    return _watch is not None


def start(coordinator: str, processes: int, process: int, heartbeat: int, *, stoppable: bool) -> None:
    """Joins the other processes; called before anything else of jax.

    Args:
      coordinator: HOST:PORT of process 0; '' where jax finds out all three by itself (Cloud TPU, Slurm, Kubernetes).
      processes: Number of processes.
      process: Number of this one, counted from 0.
      heartbeat: Seconds without a sign of life after which a process counts as lost.
      stoppable: Whether SIGTERM is noted for a step at which all processes stop, instead of ending this one.

    Raises:
      UserError: The processes do not find one another, or have different numbers of devices.
    """
    global _watch
    _separate_native_output()
    os.environ.setdefault("JAX_CPU_COLLECTIVES_IMPLEMENTATION", "gloo")
    jax.config.update("jax_cpu_collectives_implementation", os.environ["JAX_CPU_COLLECTIVES_IMPLEMENTATION"])
    jax.config.update("jax_enable_preemption_service", stoppable)
    # jax itself ends a process with pages of C++ text, so the watch below must be earlier.
    times = {"initialization_timeout": heartbeat + 30, "heartbeat_timeout_seconds": 2 * heartbeat + 10}
    times["shutdown_timeout_seconds"] = heartbeat
    named = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    named |= {"cluster_detection_method": "deactivate"}
    with _deadline(heartbeat, coordinator or "the coordinator", processes):
        try:
            jax.distributed.initialize(**(named if coordinator else _slurm_devices(os.environ)), **times)
            jax.devices()  # the processes tell one another of their devices
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the processes did not find one another: {error}; check --coordinator.") from error
    if count() > 1:
        _watch = Watch(heartbeat)
        _watch.start()
        _refuse_unequal()
        if not is_writer():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for the rest of the process


def _separate_native_output() -> None:
    """Lets C++ write to the file that KDJAX_NATIVE_LOG names, and Python where the process wrote before."""
    path = os.environ.get("KDJAX_NATIVE_LOG")
    if not path:
        return
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        kept = os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8")
        setattr(sys, "stdout" if number == 1 else "stderr", kept)
    signals.SAID_TO = sys.stderr.fileno()
    with open(path, "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


@contextlib.contextmanager
def _deadline(seconds: int, where: str, processes: int) -> Iterator[None]:
    """Ends this process with one line if the others do not come; jax would end it with pages of text."""
    line = f"not all of {processes or 'the'} processes came to {where} within {seconds} s (--heartbeat)."
    timer = threading.Timer(seconds, end, (f"start-up: {line}",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _slurm_devices(variables: Mapping[str, str]) -> dict[str, Any]:
    """Returns the devices of this process under Slurm, where jax takes one GPU for each process of a node.

    A process that is alone on its node gets all of the node's GPUs.
    """
    alone = variables.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    gpus = variables.get("SLURM_GPUS_ON_NODE", "")
    return {"local_device_ids": list(range(int(gpus)))} if alone and gpus.isdecimal() and int(gpus) > 1 else {}


def _refuse_unequal() -> None:
    counts = gather(jax.local_device_count())
    if len(set(counts)) > 1:
        raise UserError(f"the processes have {counts} devices; every process must have as many as the others.")


def end(line: str) -> NoReturn:
    """Prints a line and ends this process at once, before jax prints pages of C++ text; a launcher starts it again."""
    print(f"kdjax: {line}", file=sys.stderr, flush=True)
    os._exit(LOST)


def leave(code: int) -> None:
    """Ends one of several processes with an exit code; all of them leave together if all of them do within seconds."""
    if count() == 1:
        return
    with contextlib.suppress(Exception):
        _client().wait_at_barrier(f"kdjax/leave/{code}", 3000)
    if _watch is not None:
        _watch.stop()
    sys.stdout.flush()
    sys.stderr.flush()
    if is_writer():
        time.sleep(0.5)  # the others end first: they would be told that the coordinator is lost
    os._exit(code)


def finish() -> None:
    """Waits until all processes are done; after this they no longer watch one another."""
    if _watch is not None and count() > 1:
        barrier("finish")
        _watch.stop()
        sys.stdout.flush()
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()


def _client() -> Any:
    from jax._src import distributed  # the coordination service has no public name; orbax and flax use it likewise

    return distributed.global_state.client


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if count() > 1:
        _refuse_within_writer_first()
        _client().wait_at_barrier(f"kdjax/{name}/{next(_numbers)}", PATIENCE)


def gather(value: Any) -> list[Any]:
    """Returns each process's value, of at most a megabyte, in the order of the processes."""
    if count() == 1:
        return [value]
    _refuse_within_writer_first()
    key, client = f"kdjax/gather/{next(_numbers)}", _client()
    client.key_value_set_bytes(f"{key}/{index()}", pickle.dumps(value))
    return [pickle.loads(client.blocking_key_value_get_bytes(f"{key}/{i}", PATIENCE)) for i in range(count())]


def broadcast(value: Any) -> Any:
    """Returns the writer's value in every process; the values of the others are ignored."""
    if count() == 1:
        return value
    _refuse_within_writer_first()
    key, client = f"kdjax/broadcast/{next(_numbers)}", _client()
    content = pickle.dumps(value) if is_writer() else b""
    if is_writer():
        small = len(content) <= SMALL
        client.key_value_set_bytes(key, (b"s" + content) if small else b"l" + str(len(content)).encode())
    head = client.blocking_key_value_get_bytes(key, PATIENCE)
    return pickle.loads(head[1:] if head[:1] == b"s" else _over_devices(content, int(head[1:])))


def _over_devices(content: bytes, size: int) -> bytes:
    """Sends the writer's bytes over the devices, in parts of one size."""
    parts = []
    for first in range(0, size, CHUNK):
        part = np.zeros(CHUNK, np.uint8)
        own = np.frombuffer(content[first : first + CHUNK], np.uint8)
        part[: len(own)] = own
        parts.append(np.asarray(multihost_utils.broadcast_one_to_all(part)))
    return np.concatenate(parts).tobytes()[:size]


def by_writer(call: Callable[[], T]) -> T:
    """Calls a function in the writer, and returns its result or raises its error in every process."""
    if count() == 1:
        return call()
    found: tuple[Any, Exception | None] = (None, None)
    if is_writer():
        try:
            found = (call(), None)
        except Exception as error:
            found = (None, _portable(error))
    value, error = broadcast(found)
    if error is not None:
        raise error
    return value


def _portable(error: Exception) -> Exception:
    """Returns an error as it can be sent: one that pickle cannot rebuild becomes its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error


@contextlib.contextmanager
def writer_first() -> Iterator[None]:
    """Lets the writer go through a block before the others, such as one that downloads to a folder that all share.

    The block must not talk to the other processes: they are not in it at the same time.
    """
    global _within_writer_first
    if not is_writer():
        barrier("writer first")
    _within_writer_first = True
    try:
        yield
    finally:
        _within_writer_first = False
        if is_writer():
            barrier("writer first")


def _refuse_within_writer_first() -> None:
    """Raises an error where processes that are at different places would wait for one another for ever."""
    if _within_writer_first:
        raise RuntimeError("a block of writer_first talks to the other processes; this is a bug in kdjax.")


def compare(mark: Any, what: str) -> None:
    """Refuses to go on where the processes differ in something that must be the same, such as a hash.

    Raises:
      RunError: names the processes that differ from the writer.
    """
    marks = gather(mark)
    differing = [str(i) for i, other in enumerate(marks) if other != marks[0]]
    if differing:
        raise RunError(
            f"{what} of process {', '.join(differing)} differ from those of process 0: the processes would train "
            "different networks; start all of them with the same code, data and config."
        )


class StopPoint:
    """Asks, once a dispatch, whether all processes have come to a step at which they stop together."""

    def __init__(self):
        self._asked = itertools.count()

    def reached(self) -> bool:
        """Whether some process was told to stop, and this is the step for all of them; call it in every process."""
        return count() > 1 and multihost_utils.reached_preemption_sync_point(next(self._asked))


class Watch(threading.Thread):
    """Gives a sign of life of this process, and ends it with one line if another one gives none."""

    def __init__(self, heartbeat: float):
        super().__init__(name="kdjax watch", daemon=True)
        self._patience = 0.8 * heartbeat  # signs are asked for at intervals, and ending takes a moment
        self._interval = self._patience / BEATS
        self._ended = threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}  # process -> its last sign, and when it came
        self._client, self._own, self._count = _client(), index(), count()
        self._answered, self._lost = time.monotonic(), ""  # when process 0 last answered; what was found out then
        self._coordinator = f"process 0 of {self._count}, which coordinates the others,"
        self._silence = f"gave no sign of life for {self._patience:.0f} s"

    def stop(self) -> None:
        """Ends the watch, before the processes end in any order."""
        self._ended.set()

    def run(self) -> None:
        """Watches until `stop`."""
        threading.Thread(target=self._keep_looking, name="kdjax watch of signs", daemon=True).start()
        while not self._ended.wait(self._interval / 2):
            # A process that stands still answers nothing, and the thread that asks it waits for ever.
            silent = time.monotonic() - self._answered > self._patience
            lost = self._lost or (f"{self._coordinator} is lost ({self._silence}); {_ADVICE}" if silent else "")
            if lost and not self._ended.is_set():
                end(lost)

    def _keep_looking(self) -> None:
        for beat in itertools.count():
            if self._ended.wait(self._interval):
                return
            self._lost = self._look(beat)
            self._answered = time.monotonic()

    def _look(self, beat: int) -> str:
        """Returns what to say if a process is lost, else ''."""
        try:
            self._client.key_value_set(f"kdjax/alive/{self._own}", str(beat), allow_overwrite=True)
            signs = dict(self._client.key_value_dir_get("kdjax/alive/"))
        except Exception:
            return f"{self._coordinator} is lost; {_ADVICE}"
        now = time.monotonic()
        for process in range(self._count):
            sign = next((value for key, value in signs.items() if key.endswith(f"/{process}")), "")
            if self._seen.setdefault(process, (sign, now))[0] != sign:
                self._seen[process] = (sign, now)
        lost = [str(process) for process, (_, then) in self._seen.items() if now - then > self._patience]
        return f"process {', '.join(lost)} of {self._count} is lost ({self._silence}); {_ADVICE}" if lost else ""


_ADVICE = "start the run again to go on from its last checkpoint."


def explain(error: Exception) -> None:
    """Ends this process if an error comes of the loss of another one, with a line that says which.

    The collectives of a lost process fail within seconds, its sign of life is missed later: this waits for the watch.
    """
    if count() == 1 or _watch is None or not _is_of_a_collective(error):
        return
    _watch.join(2 * _watch._patience)  # it ends this process
    end(f"a collective failed and no process is known to be lost ({str(error).splitlines()[0]}); {_ADVICE}")


def _is_of_a_collective(error: Exception) -> bool:
    words = ("gloo", "nccl", "collective", "connection", "coordination", "peer", "deadline_exceeded")
    return not isinstance(error, (UserError, RunError)) and any(word in str(error).lower() for word in words)
