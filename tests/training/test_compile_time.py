"""The time in which jax compiles, which an epoch's images per second leave out."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from kdjax.config_files import load_config
from kdjax.store import Store
from kdjax.training.compile_time import COMPILING, CompileTime, compile_time
from kdjax.training.loop import train


def test_a_program_is_counted_when_it_is_compiled_and_not_when_it_runs_again():
    inner = jax.jit(lambda x: jnp.sin(x) * 3.25)
    outer = jax.jit(lambda x: inner(x) + inner(2 * x).sum())
    x = jnp.ones(5)
    with compile_time() as first:
        began = time.perf_counter()
        outer(x).block_until_ready()
        elapsed = time.perf_counter() - began
    with compile_time() as second:
        outer(x).block_until_ready()
    assert 0 < first.seconds <= elapsed
    assert second.seconds == 0
    counted = first.seconds
    jax.jit(lambda x: x - 7.5)(x).block_until_ready()
    assert first.seconds == counted  # the context is closed


def test_events_within_one_another_count_once_and_those_of_others_not_at_all(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    found = CompileTime()
    for end, seconds in ((10.0, 1.0), (11.0, 0.5), (12.0, 4.0), (15.0, 2.0)):  # the third holds the two before it
        now[0] = end
        found.note(f"{COMPILING}jaxpr_trace_duration", seconds)
    found.note("/jax/another/event", 5.0)
    elsewhere = threading.Thread(target=found.note, args=(f"{COMPILING}jaxpr_trace_duration", 9.0))
    elsewhere.start()
    elsewhere.join()
    assert found.seconds == pytest.approx(6.0)


def test_the_images_per_second_of_the_first_epoch_leave_out_compilation(root, tmp_path, one_device):
    """A batch size of its own compiles a program of its own, which takes many times as long as the epoch."""
    config = load_config(f"{root}/configs/ce_teacher.py:smoke", batch_size=21, epochs=2)
    store = Store(tmp_path)
    train(config, store, name="a", devices=one_device, show=False)
    first, second = store.find("a").metrics()
    images = 21 * first["step"]
    training = images / first["images_per_second"]
    assert images / second["images_per_second"] < first["seconds"] / 3  # it was compiled in the first epoch
    assert training < first["seconds"] / 3
