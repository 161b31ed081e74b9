"""What all tests share: four emulated devices, and one compilation cache for them and the commands they start."""

import gc
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile

# Before jax is imported. Emulated devices deadlock in the all-reduce with fewer threads than twice their number.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["NPROC"] = "8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="kdjax-compiled-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # Nobody reads where a program's lines came from.

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
gc.set_threshold(50_000)  # Tracing makes many small objects and few cycles: collecting as often as usual costs a lot.


# The files that take longest, longest first.
LONGEST = (
    "test_readme",
    "test_methods",
    "test_networks",
    "test_cli",
    "test_configs",
    "test_analyze",
    "test_fetch_teachers",
)


def pytest_collection_modifyitems(items):
    """Lets the longest files come first, so that no process is left alone with one of them at the end."""
    place = {f"{name}.py": index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The project's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def image_file(tmp_path_factory) -> str:
    """A file of 64 + 24 small images of four classes, with soft labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    labels = np.arange(88) % 4
    images = rng.integers(0, 256, (88, 8, 8, 3)).astype(np.uint8)
    images[:, :, :, 0] = images[:, :, :, 0] // 4 + 40 * labels[:, None, None].astype(np.uint8)
    soft = rng.dirichlet(np.ones(4), 88)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(
        path, images=images[:64], labels=labels[:64], soft=soft[:64],
        test_images=images[64:], test_labels=labels[64:], test_soft=soft[64:],
    )  # fmt: skip
    return str(path)


@pytest.fixture
def config(image_file):
    """The config of a small student of four layers with one teacher, on `image_file`."""
    from small_world import student_config

    config = student_config()
    config.data.args = {"path": image_file}
    config.data.view = "crop_flip"
    return config


@pytest.fixture(scope="session")
def one_device():
    return tuple(jax.local_devices()[:1])


@pytest.fixture(scope="session")
def command():
    """Runs `python -m kdjax.DOOR ARGS...` as a user would, on one device; returns the completed process."""

    def run(*arguments: str, cwd=ROOT, timeout=240, **variables) -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        for name in ("JAX_NUM_CPU_DEVICES", "NPROC"):
            if name not in variables:
                env.pop(name, None)
        line = [sys.executable, "-m", *arguments]
        return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture
def door(monkeypatch, capsys, one_device):
    """Does in this process what `command` does in one of its own, for laws that need none: no imports to wait for."""

    def run(name: str, *arguments: str, cwd=ROOT) -> subprocess.CompletedProcess:
        from absl.testing import flagsaver

        from kdjax import cli

        code, handler, modules, flags = 0, signal.getsignal(signal.SIGTERM), set(sys.modules), set(cli.FLAGS)
        with flagsaver.flagsaver(), monkeypatch.context() as patch:
            patch.setattr(cli, "_OWN", [])  # each door has flags of its own
            patch.setattr(jax, "local_devices", lambda: list(one_device))
            patch.setattr(sys, "argv", [name, *arguments])
            patch.delitem(sys.modules, name, raising=False)  # runpy warns of a module that is imported already
            patch.chdir(cwd)
            patch.syspath_prepend(cwd)
            try:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            except SystemExit as left:
                code = left.code
            finally:
                signal.signal(signal.SIGTERM, handler)
                for flag in set(cli.FLAGS) - flags:  # another door may mean another thing by its name
                    delattr(cli.FLAGS, flag)
                for module in set(sys.modules) - modules:
                    if (pathlib.Path(cwd) / f"{module}.py").exists():  # a user's own, which the next test writes anew
                        del sys.modules[module]
        return subprocess.CompletedProcess([name, *arguments], code, *capsys.readouterr())

    return run
