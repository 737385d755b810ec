"""What is looked at in a file of weights before torch or onnxruntime is given it: they read more than weights.

- torch's own files are ZIP archives that hold weights as they are: a small member could otherwise unpack to gigabytes. What is handed on is a new archive of the members that were looked at, so that two readers of ZIP cannot see
  two different files.
- TorchScript is a program. It may compute; what it must not do is open files, print, or call operators that another
  library registered. Its code runs while it is loaded, so its text is read before.
- An ONNX model may name other files (external data), whose path is the model's to choose: everything must be in the file.
"""

import io
import re
import zipfile
from collections.abc import Iterator

import torch

from ...lake.errors import ModelError

ZIP = b"PK\x03\x04"
_REACHES_OUT = re.compile(
    rb"\btorch\.(save|from_file|load)\s*\(|(?<![.\w])print\s*\(|\bops\.(?!prim\b|aten\b)\w+|\b(aten|prim)::(save|from_file|Print)"
    rb"|\btorch\.classes\.(?!quantized\b)\w+"
)
_CODE_BYTES = 2**26
"""What an archive may unpack to, beyond its own size: torch packs the code of TorchScript, but no weights."""


def checked_zip(data: bytes, what: str) -> bytes:
    """The members of an archive of torch's, in a new one. Raises ModelError where it is none, or would unpack to more."""
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as kept:
            members = archive.infolist()
            names = [member.filename for member in members]
            bad = [name for name in names if name.startswith("/") or ".." in name.split("/") or "\\" in name]
            if bad or len(set(names)) != len(names):
                raise ModelError(f"{what} has members that lead out of it, or twice; save it again with torch.save")
            if sum(member.file_size for member in members) > len(data) + _CODE_BYTES:
                raise ModelError(f"{what} claims more bytes than it has; save it again with torch.save")
            for member in members:
                kept.writestr(zipfile.ZipInfo(member.filename), archive.read(member))
    except ModelError:
        raise
    except Exception as error:  # zipfile, struct and zlib raise classes of many kinds
        raise ModelError(f"{what} is no file of torch's that can be read; fetch or save it again") from error
    return out.getvalue()


def torchscript(data: bytes, what: str) -> bytes:
    """TorchScript that only computes. Raises ModelError for what would open files, print, or call others' operators."""
    if not data.startswith(ZIP):
        raise ModelError(f"{what} is not TorchScript")
    data = checked_zip(data, what)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            found = _REACHES_OUT.search(archive.read(name)) if name.endswith((".py", ".pkl")) else None
            if found is not None:
                raise ModelError(
                    f"{what} would do more than compute ({found[0].decode()[:40].rstrip('( ')}); nothing of it was run"
                )
    return data


def state_dict(data: bytes, what: str) -> dict[str, torch.Tensor]:
    """Plain tensors by name; nothing of the file is run. Raises ModelError for anything else."""
    if data.startswith(ZIP):
        data = checked_zip(data, what)
    try:
        weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that wants to run code, or no state dict at all
        raise ModelError(f"{what} is not a plain state dict; nothing of it was run") from error
    if not isinstance(weights, dict):
        raise ModelError(f"{what} is not a plain state dict; nothing of it was run")
    for value in weights.values():
        if isinstance(value, torch.Tensor) and value.layout is torch.strided and _claims(value):
            raise ModelError(f"{what} claims tensors that are larger than its bytes; nothing was made of them")
    return weights


def _claims(tensor: torch.Tensor) -> bool:
    """Whether a tensor repeats few bytes to seem large: copied into a network it would take all that it claims."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def onnx(data: bytes, what: str) -> bytes:
    """An ONNX model that is one file. Raises ModelError where it names others, or is in onnxruntime's own format."""
    if data[4:8] == b"ORTM":
        raise ModelError(f"{what} is in the format of onnxruntime, not ONNX; save it as ONNX")
    try:
        outside = _outside(memoryview(data), "model", 0)
    except (IndexError, ValueError) as error:
        raise ModelError(f"{what} is not an ONNX model that runs here") from error
    if outside:
        raise ModelError(f"{what} keeps weights in other files; save it as one file, without external data")
    return data


_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Messages of ONNX that hold tensors, by the numbers of their fields in onnx.proto."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_DEPTH = 64


def _outside(message: memoryview, kind: str, depth: int) -> bool:
    """Whether a tensor in a message lies in another file. Raises ValueError, IndexError where it is no protobuf."""
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    for number, value in _fields(message):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            return True
        inner = _INSIDE.get(kind, {}).get(number)
        if inner is not None and isinstance(value, memoryview) and _outside(value, inner, depth + 1):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("a group, which ONNX has not")
        if at + size > len(message):
            raise ValueError("it ends inside a field")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number without end")
