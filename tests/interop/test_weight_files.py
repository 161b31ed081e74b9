"""Weight files: every form gives the same arrays, hostile files run nothing, and damaged files are one-line errors."""

import argparse
import collections
import json
import os
import pickle
import re
import resource
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from kdjax.errors import UserError
from kdjax.interop import torch_pickle
from kdjax.interop.weight_files import file_sha256, read_weights, unwrap, write_weights

F4 = np.arange(6, dtype="<f4")


class Op(bytes):
    """Opcodes of a pickle that leave one object on its stack."""


def emit(value) -> bytes:
    """Pickles plain values and Ops in protocol 2."""
    if isinstance(value, Op):
        return value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(emit, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(emit, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(emit(part) for pair in value.items() for part in pair) + b"u"
    return pickle.dumps(value, 2)[2:-1]


def name(path: str) -> Op:
    module, _, attribute = path.rpartition(".")
    return Op(f"c{module}\n{attribute}\n".encode())


def call(path: str, *args) -> Op:
    return Op(name(path) + emit(args) + b"R")


def build(made: Op, state) -> Op:
    return Op(made + emit(state) + b"b")


def ordered(entries: dict) -> Op:
    filled = call("collections.OrderedDict") + b"(" + emit(entries)[2:]
    return build(Op(filled), {"_metadata": {"": {"version": 1}}})


def storage(key: str, size: int, kind: str = "FloatStorage") -> Op:
    return Op(emit(("storage", name(f"torch.{kind}"), key, "cpu", size)) + b"Q")


def tensor(key="0", size=6, shape=(2, 3), strides=(3, 1), offset=0, kind="FloatStorage") -> Op:
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage(key, size, kind), offset, shape, strides, False, hooks)


def pickled(tree) -> bytes:
    return b"\x80\x02" + emit(tree) + b"."


def zip_form(path, tree, storages, order="little", **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best/data.pkl", pickled(tree))
        archive.writestr("best/byteorder", order)
        for key, array in storages.items():
            archive.writestr(f"best/data/{key}", array.tobytes())
        for member, content in members.items():
            archive.writestr(f"best/{member}", content)
    return path


def legacy_form(path, tree, storages):
    head = [torch_pickle.MAGIC, torch_pickle.PROTOCOL, {"little_endian": True}]
    parts = [*map(pickled, head), pickled(tree), pickled(sorted(storages))]
    parts += [struct.pack("<q", storages[key].size) + storages[key].tobytes() for key in sorted(storages)]
    path.write_bytes(b"".join(parts))
    return path


def safetensors_form(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        read_weights(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and len(line) < 600
    assert all(word in line for word in words), line


def same(got, want):
    assert list(got) == list(want)
    for key, value in want.items():
        assert type(got[key]) is np.ndarray and got[key].dtype == value.dtype and got[key].shape == value.shape, key
        assert got[key].tobytes() == value.tobytes() and got[key].flags.c_contiguous and got[key].flags.writeable, key


both = pytest.mark.parametrize("form", [zip_form, legacy_form])


@both
def test_tensors_of_every_kind(tmp_path, form):
    arrays = {
        "FloatStorage": F4,
        "DoubleStorage": np.array([1e300, -0.0]),
        "HalfStorage": np.array([1.5, -2.0, 6e-8], "f2"),
        "BFloat16Storage": np.array([1.5, -3.0, 1e30], ml_dtypes.bfloat16),
        "LongStorage": np.array([2**62, -1]),
        "IntStorage": np.array([-(2**31)], "i4"),
        "ShortStorage": np.array([-5, 5], "i2"),
        "CharStorage": np.array([-128, 127], "i1"),
        "ByteStorage": np.array([0, 255], "u1"),
        "BoolStorage": np.array([True, False, True]),
        "ComplexFloatStorage": np.array([1 + 2j], "c8"),
    }
    tree = {kind: tensor(kind, a.size, a.shape, (1,), kind=kind) for kind, a in arrays.items()}
    path = form(tmp_path / "w.pth", ordered(tree), arrays)
    widened = {"HalfStorage", "BFloat16Storage"}
    same(read_weights(path), {k: a.astype("f4") if k in widened else a for k, a in arrays.items()})


@both
def test_views_scalars_and_shared_storages(tmp_path, form):
    count = np.array([7])
    tree = {
        "whole": tensor(),
        "transposed": tensor(shape=(3, 2), strides=(1, 3)),
        "part": tensor(shape=(2,), strides=(2,), offset=1),
        "expanded": tensor(shape=(2, 3), strides=(0, 1), offset=3),
        "empty": tensor(shape=(0, 3), strides=(3, 1), offset=6),
        "scalar": tensor("1", 1, (), (), kind="LongStorage"),
        "parameter": call("torch._utils._rebuild_parameter", tensor(), True, call("collections.OrderedDict")),
    }
    whole = F4.reshape(2, 3)
    want = {
        "whole": whole,
        "transposed": np.array(whole.T, order="C"),
        "part": F4[[1, 3]],
        "expanded": F4[[3, 4, 5, 3, 4, 5]].reshape(2, 3),
        "empty": np.zeros((0, 3), "f4"),
        "scalar": np.array(7),
        "parameter": whole,
    }
    got = read_weights(form(tmp_path / "w.bin", tree, {"0": F4, "1": count}))
    same(got, want)
    got["whole"][:] = -1
    assert (got["parameter"] == whole).all()


def test_a_big_endian_file(tmp_path):
    arrays = {"0": F4.astype(">f4"), "1": np.array([1 + 2j], ">c8")}
    tree = {"w": tensor(), "z": tensor("1", 1, (1,), (1,), kind="ComplexFloatStorage")}
    got = read_weights(zip_form(tmp_path / "w.pth", tree, arrays, order="big"))
    same(got, {"w": F4.reshape(2, 3), "z": np.array([1 + 2j], "c8")})


@both
def test_all_that_training_code_puts_beside_the_weights(tmp_path, form):
    defaults = collections.defaultdict(dict, {"a": {1: 2.5}})
    args = argparse.Namespace(lr=0.1, names=["a"], size=(3,))
    numbers = {"step": np.float64(2.5), "array": np.arange(3.0), "flag": np.bool_(True), "words": np.array(["a"])}
    beside = {"defaults": defaults, "args": args, "set": {1, 2}, "bytes": b"ab", "none": b"", **numbers}
    tree = {
        "state_dict": ordered({"module.w": tensor(), "module.b": tensor(shape=(2,), strides=(3,))}),
        "epoch": 240,
        "best_acc1": tensor(shape=(), strides=()),
        "optimizer": {"state": {0: {"momentum_buffer": tensor()}}, "param_groups": [{"params": [0]}]},
        "device": call("torch.device", "cuda", 0),
        "size": call("torch.Size", [2, 3]),
        "dtype": name("torch.float16"),
        "milestones": call("collections.Counter", {150: 1}),
        **{key: Op(pickle.dumps(value, 2)[2:-1]) for key, value in beside.items()},
    }
    got = read_weights(form(tmp_path / "w.tar", tree, {"0": F4}))
    same(got, {"w": F4.reshape(2, 3), "b": F4[[0, 3]]})


@both
@pytest.mark.parametrize("room", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_arrays_in_a_pickle(tmp_path, form, room):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
        "s": np.array(2.5, "f4"),
        "swapped": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 2)),
        "bool": np.array([True, False]),
    }
    there = np.zeros(0).__reduce__()[0].__module__
    raw = {key: pickle.dumps(array, 2)[2:-1].replace(there.encode(), room.encode()) for key, array in arrays.items()}
    got = read_weights(form(tmp_path / "w.pth", {key: Op(value) for key, value in raw.items()}, {}))
    same(got, {key: np.array(a.astype(a.dtype.newbyteorder("=")), order="C") for key, a in arrays.items()})


def stack_global(module: str, attribute: str) -> Op:
    return Op(emit(module) + emit(attribute) + b"\x93")


def hostile(trace) -> dict:
    """Returns trees that would make the file `trace`, or reach something that can, if anything in them were run."""
    shell, code = f"touch {trace}", f"open({str(trace)!r}, 'w')"
    system, execute = call("os.system", shell), call("builtins.exec", code)
    return {
        "posix.system": call("posix.system", shell),
        "os.system": {"w": tensor(), "x": system},
        "builtins.exec": execute,
        "builtins.eval": call("builtins.eval", code),
        "__builtin__.eval": call("__builtin__.eval", code),
        "builtins.getattr": call("builtins.getattr", name("collections.OrderedDict"), "__init__"),
        "builtins.open": call("builtins.open", str(trace), "w"),
        "nt.system": Op(stack_global("nt", "system") + emit((shell,)) + b"R"),
        "os.path.os.system": Op(stack_global("os", "path.os.system") + emit((shell,)) + b"R"),
        "torch._utils._rebuild": Op(stack_global("torch", "_utils._rebuild_tensor_v2") + emit(()) + b"R"),
        "subprocess.Popen": Op(name("subprocess.Popen") + emit(([["touch", str(trace)]],)) + b"\x81"),
        "os.popen": Op(b"(" + emit(shell) + b"ios\npopen\n"),
        "os.spawnlp": Op(b"(" + name("os.spawnlp") + emit(shell) + b"o"),
        "torch.storage._load_from_bytes": call("torch.storage._load_from_bytes", pickle.dumps(1)),
        "functools.partial": call("collections.defaultdict", call("functools.partial", system), {}),
        "copyreg._reconstructor": call("copyreg._reconstructor", name("builtins.object"), execute, None),
        "argparse.ArgumentParser": call("argparse.ArgumentParser"),
        "numpy.load": call("numpy.load", str(trace)),
        "os.remove": build(tensor(), {"hooks": call("os.remove", str(trace))}),
        "os.abort": build(call("numpy.dtype", "f8", False, True), (3, "<", call("os.abort"), None, None, -1, -1, 0)),
        "os.kill": {"state": call("torch._utils._rebuild_parameter", tensor(), True, call("os.kill", 0, 9))},
        "os.mkdir": Op(emit(("storage", call("os.mkdir", str(trace)), "0", "cpu", 6)) + b"Q"),
    }


@both
@pytest.mark.parametrize("what", hostile(""))
def test_a_hostile_pickle_runs_nothing(tmp_path, form, what):
    trace = tmp_path / "trace"
    refused(form(tmp_path / "w.pth", hostile(trace)[what], {"0": F4}), what, "nothing of it was run")
    assert not trace.exists()


def test_a_hostile_pickle_that_python_itself_wrote(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'trace'}",)

    for protocol in (2, 3, 4, 5):
        raw = pickle.dumps({"w": Hostile()}, protocol)
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("data.pkl", raw)
        refused(tmp_path / "w.pth", "names posix.system, which weights do not need")
        (tmp_path / "plain.pkl").write_bytes(raw)
        refused(tmp_path / "plain.pkl", "plain pickle")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("part", range(5))
def test_a_hostile_pickle_at_every_place_of_the_legacy_form(tmp_path, part):
    parts = [torch_pickle.MAGIC, torch_pickle.PROTOCOL, {}, {"w": tensor()}, ["0"]]
    parts[part] = (parts[part], call("os.system", f"touch {tmp_path / 'trace'}"))
    (tmp_path / "w.pth").write_bytes(b"".join(map(pickled, parts)))
    refused(tmp_path / "w.pth", "os.system")
    assert not (tmp_path / "trace").exists()


def state_of_attributes(**attributes) -> tuple:
    """Returns a state that pickle would set with setattr."""
    return None, attributes


@both
@pytest.mark.parametrize(
    "odd",
    [
        build(tensor(), state_of_attributes(_offset=10**6)),
        build(tensor(), {"shape": (9,)}),
        build(storage("0", 6), state_of_attributes(size=10**6)),
        build(name("torch.FloatStorage"), state_of_attributes(dtype=1)),
        build(name("torch._utils._rebuild_tensor_v2"), state_of_attributes(_function=name("builtins.set"))),
        build(name("collections.OrderedDict"), state_of_attributes(_function=name("builtins.set"))),
        build(name("argparse.Namespace"), state_of_attributes(shape=(1,))),
        build(name("argparse.Namespace"), {"shape": (1,)}),
        build(name("builtins.set"), {"a": 1}),
        build(Op(emit([1])), {"a": 1}),
        Op(emit("0") + b"Q"),  # persistent ids of other shapes
        Op(b"P0\n"),
        Op(emit(("module", name("torch.FloatStorage"), "a.py", "import os")) + b"Q"),
        Op(emit(("storage", "FloatStorage", "0", "cpu", 6)) + b"Q"),
        Op(emit(("storage", name("torch.FloatStorage"), ["0"], "cpu", 6)) + b"Q"),
        Op(emit(("storage", name("torch.FloatStorage"), "0", "cpu", -6)) + b"Q"),
        Op(emit(("storage", name("torch.FloatStorage"), "0", "cpu", 6, ("1", 0, 3))) + b"Q"),
        call("torch._utils._rebuild_tensor_v2", [1.0] * 6, 0, (6,), (1,), False, {}),
        call("torch._utils._rebuild_tensor_v2", storage("0", 6), 0, (6,), (1,), False, {}, {"conj": True}),
        call("_codecs.encode", "abc", "rot13"),
        call("_codecs.encode", tensor(), "latin1"),
        call("numpy.dtype", "O8", False, True),
        call("builtins.set", [[1]]),
        Op(b"\x82\x01"),  # an extension of copyreg
        Op(b"0" * 3),  # an empty stack
        Op(b"r" + b"\xff" * 4),  # a memo of four thousand million entries
        Op(b"\x8e" + b"\xff" * 7 + b"\x7f"),  # the largest number of bytes
    ],
)
def test_odd_objects_are_damage(tmp_path, form, odd):
    tree = {"w": tensor(), "odd": odd}
    refused(form(tmp_path / "w.pth", tree, {"0": F4}))
    same(read_weights(form(tmp_path / "w.pth", {"w": tensor()}, {"0": F4})), {"w": F4.reshape(2, 3)})


def test_attributes_of_a_mapping_are_forgotten(tmp_path):
    sly = build(Op(emit({})[:1]), {"a": 1})
    refused(zip_form(tmp_path / "w.pth", {"w": tensor(), "d": sly}, {"0": F4}))
    state = build(ordered({"w": tensor()}), state_of_attributes(items=name("builtins.set"), __class__=1))
    same(read_weights(zip_form(tmp_path / "w.pth", state, {"0": F4})), {"w": F4.reshape(2, 3)})


@pytest.fixture
def little_memory():
    """Limits the memory, so that allocating what a file only claims to have fails."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@both
@pytest.mark.parametrize(
    "wrong, words",
    [
        (tensor(size=7), "is truncated"),
        (tensor(size=10**15, shape=(10**15,), strides=(1,)), "is truncated|far larger"),
        (tensor(offset=1), "extends beyond"),
        (tensor(strides=(4, 1)), "extends beyond"),
        (tensor(shape=(7,), strides=(1,)), "extends beyond"),
        (tensor(offset=6, shape=(), strides=()), "extends beyond"),
        (tensor(strides=(-3, 1)), "without"),
        (tensor(offset=-1), "without"),
        (tensor(shape=(2, 3.0)), "without"),
        (tensor(shape=(6,)), "without"),
        (tensor(shape=(1 << 40,), strides=(0,)), "far larger"),
        (tensor(shape=(1 << 62, 1 << 62), strides=(0, 0)), "far larger"),
        (tensor(shape=(1,) * 70, strides=(1,) * 70), "dimension"),
        (tensor(shape=(1 << 80, 0), strides=(0, 0)), "damaged"),
        ({f"w{i}": tensor(shape=(1 << 20,), strides=(0,)) for i in range(100)}, "far larger"),
        (tensor("../../secret"), "KeyError"),
    ],
)
def test_tensors_that_claim_more_than_there_is(tmp_path, form, wrong, words, little_memory):
    tree = wrong if isinstance(wrong, dict) else {"w": wrong}
    path = form(tmp_path / "w.pth", tree, {"0": F4})
    with pytest.raises(UserError, match=words):
        read_weights(path)
    refused(path, "damaged or incomplete")


def test_arrays_that_claim_more_than_there_is(tmp_path, little_memory):
    raw = pickle.dumps(np.arange(3.0), 2)[2:-1].replace(b"K\x03\x85", b"K\x04\x85")
    refused(zip_form(tmp_path / "w.pth", {"w": Op(raw)}, {}), "damaged")
    np.savez(tmp_path / "w.npz", w=np.arange(3.0))
    with zipfile.ZipFile(tmp_path / "w.npz") as archive:
        content = archive.read("w.npy")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", content.replace(b"(3,), }" + b" " * 14, b"(300000000000000,), }"))
    refused(tmp_path / "w.npz", "damaged")


@both
@pytest.mark.parametrize("keep", [10, 70, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files(tmp_path, form, keep):
    path = form(tmp_path / "w.pth", {"w": tensor()}, {"0": F4})
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    refused(path)


def test_a_flipped_bit_in_a_zip_file_is_noticed(tmp_path):
    path = zip_form(tmp_path / "w.pth", {"w": tensor()}, {"0": F4})
    path.write_bytes(path.read_bytes().replace(F4.tobytes(), F4.tobytes()[:-1] + b"\x41"))
    refused(path, "damaged or incomplete", "CRC")


MODULE = {"_modules": {}, "_parameters": {"weight": tensor()}, "training": True}


@both
def test_a_whole_model_is_sent_back(tmp_path, form):
    tree = build(Op(name("torch.nn.modules.linear.Linear") + b")\x81"), MODULE)
    line = (
        "is a whole pickled model, not weights (it names torch.nn.modules.linear.Linear)",
        "save only model.state_dict()",
    )
    refused(form(tmp_path / "w.pth", tree, {"0": F4}), *line)


@pytest.mark.parametrize("member", ["constants.pkl", "code/__torch__.py"])
def test_a_torchscript_program_is_sent_back(tmp_path, member):
    path = zip_form(tmp_path / "w.pt", {"w": tensor()}, {"0": F4}, **{member: b"x"})
    refused(path, "a TorchScript program, not weights: save model.state_dict()")


def test_an_encrypted_zip_is_sent_back(tmp_path):
    path = zip_form(tmp_path / "w.pth", {"w": tensor()}, {"0": F4})
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2")
    content[start + 8] |= 1
    path.write_bytes(content)
    refused(path, "is encrypted")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not a weight file"),
        (b"hello, world and all", "not a weight file: give"),
        (b"\x1f\x8b\x08\x00", "unpack it"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (pickle.dumps({"w": 1}), "plain pickle"),
    ],
)
def test_what_is_no_weight_file(tmp_path, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", words)


def test_what_cannot_be_opened(tmp_path):
    refused(tmp_path / "w.pth", "Cannot read", "No such file")
    refused(tmp_path, "Cannot read", "directory")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("a.txt", b"a")
    refused(tmp_path / "w.zip", "zip file without weights")


@pytest.mark.parametrize("top", [tensor(), [tensor()], 3, "w", {}, {"epoch": 3, "acc": 0.5}, {1: tensor()}])
def test_files_without_a_state_dict_say_what_there_is(tmp_path, top):
    refused(zip_form(tmp_path / "w.pth", top, {"0": F4}), "no state dict under model, state_dict", "there is")


def test_a_mapping_that_holds_itself(tmp_path):
    cyclic = Op(b"}q\x00(" + b"".join(emit(key) + b"h\x00" for key in ("model", "net", "module", "state_dict")) + b"u")
    refused(zip_form(tmp_path / "w.pth", cyclic, {}), "no state dict")


def test_unwrap_finds_the_state_dict_at_any_depth():
    state = {"a.weight": np.ones(2), "b": np.zeros(())}
    for key in ("model", "state_dict", "model_state_dict", "net", "module"):
        assert list(unwrap({key: state, "epoch": 1, "optimizer": {"state": {0: {"m": np.ones(2)}}}})) == list(state)
    same(unwrap({"model": {"state_dict": {"net": state}}, "best": np.ones(())}), state)
    same(unwrap({**state, "epoch": 3, "loss": np.float32(1)}), state)
    same(unwrap({"module." + key: value for key, value in state.items()}), state)
    same(unwrap({"module._orig_mod." + key: value for key, value in state.items()}), state)
    assert list(unwrap({"module.a": np.ones(1), "b": np.ones(1)})) == ["module.a", "b"]


def test_unwrap_refuses_what_is_ambiguous():
    state = {"w": np.ones(2)}
    with pytest.raises(UserError, match="several state dicts .'model', 'net'.; there is 'model'") as caught:
        unwrap({"model": state, "net": state})
    assert "save only the one that you want" in str(caught.value)
    with pytest.raises(UserError, match="several state dicts .'top', 'teacher'."):
        unwrap({"teacher": state, "best": np.ones(())})
    with pytest.raises(UserError, match=r"no state dict .*'teacher' \(mapping of 1\), 'student' \(mapping of 1\)"):
        unwrap({"teacher": state, "student": state})
    with pytest.raises(UserError, match=r"there is .*\.\.\. \(20 in all\)"):
        unwrap({f"key{i}": i for i in range(20)})


ARRAYS = {
    "z": np.arange(6, dtype="f4").reshape(2, 3),
    "b.double": np.array([1e300, -0.0, np.nan]),
    "b.half": np.array([1.5, 2.5], "f2"),
    "long": np.array([2**62]),
    "flags": np.array([True, False, True]),
    "scalar": np.array(3.5, "f4"),
    "empty": np.zeros((0, 4), "f4"),
    "byte": np.array([[255]], "u1"),
    "ünïcode/slash": np.array([-3], "i2"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    first, second = tmp_path / f"deep/er/a{suffix}", tmp_path / f"b{suffix}"
    write_weights(first, ARRAYS, metadata={"model": "resnet8x4", "about": "ü"})
    write_weights(second, dict(reversed(ARRAYS.items())), metadata={"about": "ü", "model": "resnet8x4"})
    got = read_weights(first)
    same({key: got[key] for key in ARRAYS}, ARRAYS)
    assert sorted(got) == sorted(ARRAYS)
    assert first.read_bytes() == second.read_bytes() and file_sha256(first) == file_sha256(second)
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    write_weights(second, {"t": np.asfortranarray(ARRAYS["z"]).T.astype(">f4")})
    same(read_weights(second), {"t": np.array(ARRAYS["z"].T, order="C")})


def test_numpy_reads_what_is_written(tmp_path):
    write_weights(tmp_path / "a.npz", ARRAYS, metadata={"model": "mlp"})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(ARRAYS)
        same({key: archive[key] for key in ARRAYS}, ARRAYS)
        assert json.loads(archive.zip.comment) == {"model": "mlp"}


def test_a_torch_file_that_is_written_is_read_back(tmp_path):
    for name, arrays in (("a", ARRAYS), ("b", dict(reversed(ARRAYS.items())))):
        write_weights(tmp_path / f"{name}.pth", arrays)
    widened = {**ARRAYS, "b.half": ARRAYS["b.half"].astype("f4")}  # half precision is read as float32
    got = read_weights(tmp_path / "a.pth")
    same({key: got[key] for key in ARRAYS}, widened)
    assert sorted(got) == sorted(ARRAYS)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    write_weights(tmp_path / "a.pth", ARRAYS)
    got = torch.load(tmp_path / "a.pth", weights_only=True)
    same({key: tensor.numpy() for key, tensor in got.items()}, ARRAYS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(tmp_path, save):
    arrays = {key.replace("/", "."): value for key, value in ARRAYS.items()}
    with open(tmp_path / "weights.data", "wb") as file:
        save(file, **arrays, f=np.asfortranarray(ARRAYS["z"]))
    same(read_weights(tmp_path / "weights.data"), {**arrays, "f": ARRAYS["z"]})


def test_arrays_of_objects_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.array([{"a": 1}], object))
    refused(tmp_path / "w.npz", "which is not a type of numbers")


@pytest.mark.parametrize(
    "name, arrays, words",
    [
        ("a.bin", ARRAYS, "use .safetensors, .npz or .pth"),
        ("a.pth", {"w": np.ones(2, "u4")}, "cast it to float32"),
        ("a", ARRAYS, "use .safetensors, .npz or .pth"),
        ("a.npz", {}, "no arrays"),
        ("a.npz", {"w": np.ones(2, ml_dtypes.bfloat16)}, "cast it to float32"),
        ("a.npz", {"w": np.array(["a"])}, "cast it"),
        ("a.safetensors", {"w": np.array([None])}, "cast it"),
        ("a.safetensors", {"__metadata__": np.ones(2)}, "not a valid name of an array"),
        ("a.npz", {3: np.ones(2)}, "not a valid name of an array"),
        ("file/a.npz", ARRAYS, "File exists|Not a directory"),
        ("folder.npz", ARRAYS, "Is a directory"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, arrays, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match=words) as caught:
        write_weights(tmp_path / name, arrays)
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.npz"]


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_safetensors_of_others(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "h": entry("BF16", (2, 1), (0, 4)), "s": entry("F64", (), (4, 12))}
    data = np.array([1.5, -3.0], ml_dtypes.bfloat16).tobytes() + struct.pack("<d", 2.5)
    got = read_weights(safetensors_form(tmp_path / "model.bin", header, data))
    same(got, {"h": np.array([[1.5], [-3.0]], "f4"), "s": np.array(2.5)})


@pytest.mark.parametrize(
    "header, words",
    [
        ({"w": entry(offsets=(0, 12))}, "damaged"),
        ({"w": entry(offsets=(4, 12))}, "gaps"),
        ({"w": entry(offsets=(-8, 0))}, "gaps"),
        ({"w": entry(offsets=(8, 0))}, "gaps"),
        ({"w": entry(), "v": entry()}, "overlap"),
        ({"w": entry(shape=(3,))}, "has 8 bytes and the shape [3]"),
        ({"w": entry(shape=(-2, -1))}, "shape"),
        ({"w": entry(shape=(1 << 40, 1 << 40))}, "shape"),
        ({"w": entry(shape=("a",))}, "damaged"),
        ({"w": {"dtype": "F32"}}, "damaged"),
        ({"w": 3}, "damaged"),
        ({"w": entry("F8_E4M3", (8,))}, "has 'w' as F8_E4M3"),
        ({"w": entry(shape=(1,), offsets=(0, 4))}, "8 bytes of tensors, but 4 according to its header"),
        (b'{"w": 1, "w": 2}', "twice"),
        (b"{" * 10**5, "damaged"),
        (b'{"w": nonsense', "damaged"),
        ({}, "8 bytes"),
    ],
)
def test_damaged_safetensors(tmp_path, header, words, little_memory):
    refused(safetensors_form(tmp_path / "w.safetensors", header, bytes(8)), words)


def test_safetensors_cut_in_its_header_or_its_data(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, ARRAYS)
    whole = path.read_bytes()
    for keep in (20, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:keep])
        refused(path, "damaged or incomplete")


def test_the_safetensors_package_agrees(tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    write_weights(tmp_path / "ours.safetensors", ARRAYS, metadata={"model": "mlp"})
    theirs = numpy_files.load_file(tmp_path / "ours.safetensors")
    assert sorted(theirs) == sorted(ARRAYS)
    assert all(theirs[key].tobytes() == value.tobytes() for key, value in ARRAYS.items())
    numpy_files.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    got = read_weights(tmp_path / "theirs.safetensors")
    same({key: got[key] for key in ARRAYS}, ARRAYS)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, torch, tmp_path):
    def to_file(value, file="w.pth", **options):
        torch.save(value, tmp_path / file, _use_new_zipfile_serialization=request.param, **options)
        return tmp_path / file

    return to_file


def network(torch):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))


def arrays_of(torch, state):
    wide = (torch.half, torch.bfloat16)
    return {key: np.array((v.float() if v.dtype in wide else v).numpy(), order="C") for key, v in state.items()}


def test_what_pytorch_wrote(torch, save):
    state = network(torch).state_dict()
    base = torch.arange(24.0).reshape(2, 3, 4)
    state |= {"t": base.permute(2, 0, 1), "part": base[:, 1:, ::2], "half": base.half(), "brain": base.bfloat16()}
    state |= {"long": torch.tensor(3), "bool": torch.tensor([True]), "wide": torch.ones(1, 2).expand(3, 2)}
    state |= {"channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last), "z": torch.ones(2) * 1j}
    for protocol in (2, 3, 4, 5):
        same(read_weights(save(state, pickle_protocol=protocol)), arrays_of(torch, state))


def test_whole_checkpoints_that_pytorch_wrote(torch, save):
    model = torch.nn.DataParallel(network(torch))
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    beside = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "best": torch.tensor(1.5)}
    beside |= {"args": argparse.Namespace(lr=0.1), "accuracy": np.float64(0.5), "rng": torch.get_rng_state()}
    beside |= {"seed": np.random.RandomState(0).get_state(), "device": torch.device("cuda:0"), "dtype": torch.half}
    path = save({"epoch": 3, "state_dict": model.state_dict(), **beside})
    same(read_weights(path), arrays_of(torch, model.module.state_dict()))


def test_a_whole_model_that_pytorch_wrote(torch, save):
    refused(save(network(torch)), "is a whole pickled model", "torch.nn.modules", "save only model.state_dict()")


def test_a_program_that_torchscript_wrote(torch, tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "TorchScript program")


def test_pytorch_reads_what_it_wrote_as_this_does(torch, save):
    path = save({"model": network(torch).state_dict()})
    same(read_weights(path), arrays_of(torch, torch.load(path, weights_only=True)["model"]))


def test_scripts_of_earlier_versions_find_the_reader():
    from kdjax.store import read_weights as former

    assert former is read_weights


def test_an_archive_without_checksums_is_read_and_one_with_a_wrong_checksum_is_damaged(tmp_path):
    values = np.arange(6, dtype="<f4")
    path = zip_form(tmp_path / "w.pth", {"fc.weight": tensor()}, {"0": values})
    raw, places = bytearray(path.read_bytes()), []
    for sign, offset in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        places += [found.start() + offset for found in re.finditer(re.escape(sign), raw)]
    for place in places[1:]:
        raw[place : place + 4] = bytes(4)
    path.write_bytes(raw)  # the first local header has a checksum left, but it is the directory that counts
    np.testing.assert_array_equal(read_weights(path)["fc.weight"], values.reshape(2, 3))
    raw[places[-1]] = 1
    path.write_bytes(raw)
    refused(path, "is damaged")
