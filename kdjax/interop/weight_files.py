"""Reads and writes weight files: PyTorch's, safetensors and NumPy's. The content says which form it is.

A weight file is untrusted: no code in it is run, and no memory is allocated for data that it only claims to have.
"""

import hashlib
import io
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from kdjax.bounded import open_regular, parse_npy
from kdjax.errors import UserError
from kdjax.interop.state_dict import unwrap
from kdjax.interop.torch_pickle import MAGIC_BYTES, Refused, allowance, load_legacy, load_zip
from kdjax.interop.torch_writer import STORAGES, make_torch_archive
from kdjax.store.files import first_line, write_atomic

METADATA = "__metadata__"  # the name that safetensors reserves; older .npz files of kdjax have it too
SAFETENSORS = {
    "BOOL": np.bool_,
    **{f"{kind[0].upper()}{bits}": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": ml_dtypes.bfloat16,
}
SAFETENSORS = {code: np.dtype(dtype) for code, dtype in SAFETENSORS.items()}
CODES = {dtype: code for code, dtype in SAFETENSORS.items() if code != "BF16"}  # types that can be written
KNOWN = "PyTorch's .pth, .safetensors or .npz"
# First bytes of files that are often named by mistake -> what to do.
STRANGERS = (
    (b"\x80", "is a plain pickle, which could run any code: use torch.save(model.state_dict(), ...)."),
    (b"\x1f\x8b", "is compressed: unpack it and give the weight file in it."),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the weights: run git lfs pull."),
    (b"<", "is a web page, not weights: download the file itself."),
)


def read_weights(path: os.PathLike | str) -> dict[str, np.ndarray]:
    """Reads the state dict in a weight file: PyTorch's zip or legacy form (.pth, .pt, .tar, .bin), .safetensors, .npz.

    Args:
      path: Path of the file. Its content says which form it has, not its name.

    Returns:
      Name -> array with memory of its own. bfloat16 and PyTorch's half become float32.

    Raises:
      UserError: The file is missing, damaged or not a weight file, it names code, or it has no or several state dicts.
    """
    path = pathlib.Path(path)
    try:
        with open_regular(path) as file:
            return _read(path, file)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}; give a weight file: {KNOWN}.") from error


def _read(path: pathlib.Path, file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        return _load(file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Refused as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # damaged bytes may raise any type
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path} is damaged or incomplete ({what}); save or download it again.") from error


def _load(file: BinaryIO) -> dict[str, np.ndarray]:
    head = file.read(64)
    file.seek(0)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _load_archive(file)
    if head.startswith(b"\x80") and MAGIC_BYTES in head:
        return unwrap(load_legacy(file.read()))
    if head[8:9] == b"{":
        return unwrap(_parse_safetensors(file.read()))
    texts = [text for start, text in STRANGERS if head.startswith(start)]
    raise Refused(texts[0] if texts else f"is not a weight file: give {KNOWN}.")


def _load_archive(file: BinaryIO) -> dict[str, np.ndarray]:
    limit = allowance(file.seek(0, os.SEEK_END))
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        _forget_absent_checksums(archive)
        if any(member.flag_bits & 1 for member in archive.infolist()):
            raise Refused("is encrypted: unpack it with its password and give the weight file in it.")
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise Refused("is a TorchScript program, not weights: save model.state_dict().")
        roots = [name.removesuffix("data.pkl") for name in names if f"/{name}".endswith("/data.pkl")]
        if len(roots) == 1:
            return unwrap(load_zip(archive, roots[0], limit))
        if any(name.endswith(".npy") for name in names):
            return unwrap(_parse_npz(archive, limit))
    raise Refused(f"is a zip file without weights: give {KNOWN}.")


def _forget_absent_checksums(archive: zipfile.ZipFile) -> None:
    """Lets an archive without any checksum be read, as torch.save writes it after set_crc32_options(False)."""
    if not any(member.CRC for member in archive.infolist()):
        for member in archive.infolist():
            del member.CRC  # zipfile compares a checksum only where there is one


def _parse_npz(archive: zipfile.ZipFile, limit: int) -> dict[str, np.ndarray]:
    found = {}
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        if member.endswith(".npy") and name != METADATA:
            with archive.open(member) as file:
                found[name] = array = parse_npy(file, limit)
            if array.dtype.kind in "SU":
                raise Refused(f"has an array of {array.dtype}, which is not a type of numbers: save only numbers.")
            limit -= array.nbytes
    return found


def _parse_safetensors(content: bytes) -> dict[str, np.ndarray]:
    start = 8 + int.from_bytes(content[:8], "little")
    if start > len(content):
        raise ValueError("its header is truncated")
    header = json.loads(content[8:start], object_pairs_hook=_without_repeats)
    header.pop(METADATA, None)
    _check_offsets([entry["data_offsets"] for entry in header.values()], len(content) - start)
    return {name: _parse_entry(name, entry, memoryview(content)[start:]) for name, entry in header.items()}


def _without_repeats(pairs: list) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("its header has a name twice")
    return dict(pairs)


def _check_offsets(offsets: list, size: int) -> None:
    """Checks that the tensors fill the file one after the other, from the first byte to the last."""
    end = 0
    for begin, stop in sorted(offsets):
        if begin != end or stop < begin:
            raise ValueError("its tensors overlap or leave gaps")
        end = stop
    if end != size:
        raise ValueError(f"it has {size} bytes of tensors, but {end} according to its header")


def _parse_entry(name: str, entry: Mapping, data: memoryview) -> np.ndarray:
    if entry["dtype"] not in SAFETENSORS:
        raise Refused(f"has '{name}' as {entry['dtype']}, which NumPy lacks: save it as float32.")
    begin, stop = entry["data_offsets"]
    if math.prod(entry["shape"]) * SAFETENSORS[entry["dtype"]].itemsize != stop - begin or min([0, *entry["shape"]]):
        raise ValueError(f"'{name}' has {stop - begin} bytes and the shape {entry['shape']}")
    array = np.frombuffer(data[begin:stop], SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return array.astype(np.float32 if entry["dtype"] == "BF16" else array.dtype)


def write_weights(
    path: os.PathLike | str, arrays: Mapping[str, Any], *, metadata: dict[str, str] | None = None
) -> None:
    """Writes arrays, of which `read_weights` returns the same bits and dtypes. The same input gives the same bytes.

    Args:
      path: Path that ends in .safetensors, .npz or .pth. Its folder is made, and an existing file is
        replaced atomically.
      arrays: Name -> array of bool, integers or floats that NumPy has (bfloat16 is not one).
      metadata: Texts about the weights: in a .safetensors file its __metadata__, in an .npz file the comment of the
        zip archive, as JSON, so that the file holds arrays only. A .pth file has no place for them.

    Raises:
      UserError: The suffix, a name or a dtype is not supported, or the file cannot be written.
    """
    path, metadata = pathlib.Path(path), metadata or {}
    make = {".safetensors": _make_safetensors, ".npz": _make_npz, ".pth": _make_pth}.get(path.suffix)
    if make is None:
        raise UserError(
            f"Cannot write {path}: the suffix '{path.suffix}' is not known; use .safetensors, .npz or .pth."
        )
    write_atomic(path, make(_checked(path, arrays), {key: str(metadata[key]) for key in sorted(metadata)}), "--out")


def _checked(path: pathlib.Path, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays sorted by name, contiguous and little-endian."""
    if not arrays:
        raise UserError(f"Cannot write {path}: there are no arrays.")
    checked = {}
    for name in sorted(arrays, key=str):
        if not isinstance(name, str) or name == METADATA or "\0" in name:
            raise UserError(f"Cannot write {path}: {name!r} is not a valid name of an array; rename it.")
        array = np.asarray(arrays[name])
        dtype = array.dtype.newbyteorder("<")
        if dtype not in CODES or (path.suffix == ".pth" and dtype not in STORAGES):
            raise UserError(f"Cannot write {path}: '{name}' is {array.dtype}; cast it to float32.")
        checked[name] = array.astype(dtype, order="C")
    return checked


def _make_safetensors(arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> list[bytes]:
    """Returns the parts of the file; wide types come first, so that each tensor starts at a multiple of its width."""
    header, parts, end = {METADATA: metadata} if metadata else {}, [], 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        begin, end = end, end + arrays[name].nbytes
        entry = {"dtype": CODES[arrays[name].dtype], "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
        header[name] = entry
        parts.append(arrays[name].tobytes())
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def _make_npz(arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> list[memoryview]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = json.dumps(metadata).encode() if metadata else b""
        for name, array in arrays.items():
            member = io.BytesIO()
            npy.write_array(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getbuffer())  # always dated 1980
    return [buffer.getbuffer()]


def _make_pth(arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> list[memoryview]:
    del metadata
    return [make_torch_archive(arrays)]


def file_sha256(path: os.PathLike | str) -> str:
    """Returns the sha256 of a file in hexadecimal.

    Raises:
      UserError: The file cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}; check the path.") from error
