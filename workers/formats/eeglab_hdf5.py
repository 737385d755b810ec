"""EEGLAB's .set in MATLAB 7.3, which is HDF5: the same description as of a MATLAB 5 file.

Links to other files, external and virtual storage are refused: they would read what was not given.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diastole.lake.errors import ItemError

from .mat5 import Sink, Wanted

_VALUE_BYTES = 2**20
_MOST = 2**20
_CHUNK_BYTES = 2**27
_BLOCK_BYTES = 2**24


def read(path: Path, wanted: Wanted, sink: Sink | None) -> dict[str, Any]:
    """As mat5.read. Raises ItemError."""
    import h5py

    with _errors(), h5py.File(path, "r") as file:
        return _fields(file, wanted, sink)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        code = "truncated" if "truncated" in str(error) else "unreadable"
        raise ItemError(code, "its HDF5 is damaged, or cut; copy it again") from error


def _fields(group: Any, wanted: Wanted, sink: Sink | None) -> dict[str, Any]:
    there = ((name, inner, _member(group, name)) for name, inner in wanted.items())
    return {name: _value(thing, name, inner, sink) for name, inner, thing in there if thing is not None}


def _member(group: Any, name: str) -> Any:
    """A group or a data set of a group, None where there is none. Raises ItemError for what lies elsewhere."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise ItemError("unsupported", "it links to another place; save it anew with all that it holds")
    return group[name]


def _value(thing: Any, name: str, wanted: Wanted | None, sink: Sink | None) -> Any:
    import h5py

    if isinstance(thing, h5py.Group):
        return _structures(thing, wanted, sink) if isinstance(wanted, Mapping) else None
    if not isinstance(thing, h5py.Dataset):
        return None
    _here(thing)
    if thing.attrs.get("MATLAB_empty"):
        return [] if isinstance(wanted, Mapping) else ((0, 0), np.empty(0))
    shape, dtype = tuple(int(n) for n in reversed(thing.shape or ())), thing.dtype
    text = thing.attrs.get("MATLAB_class", b"") == b"char"
    if dtype.kind not in "iuf" or not shape:
        return None
    if thing.chunks and int(np.prod(thing.chunks, dtype=object)) * dtype.itemsize > _CHUNK_BYTES:
        raise ItemError("too_large", f"a chunk of its data has more than {_CHUNK_BYTES} bytes; save it anew")
    if name == "data" and not text:
        if sink is not None:
            sink(shape, dtype.newbyteorder("<"), _pieces(thing))
        return shape, None
    if int(np.prod(shape, dtype=object)) * dtype.itemsize > _VALUE_BYTES:
        return shape, None
    numbers = np.asarray(thing[()]).ravel()
    return "".join(chr(int(n)) for n in numbers if 0 < int(n) < 0xD800) if text else (shape, numbers)


def _here(thing: Any) -> None:
    """Raises ItemError where a data set has its data in another file."""
    if thing.external or thing.is_virtual:
        raise ItemError("unsupported", "its data lie in another file; save it anew with all that it holds")


def _pieces(thing: Any) -> Iterator[np.ndarray]:
    row = int(np.prod(thing.shape[1:], dtype=object)) * thing.dtype.itemsize
    step = max(1, _BLOCK_BYTES // max(row, 1))
    if thing.chunks:
        step = max(1, step // thing.chunks[0]) * thing.chunks[0]
    for first in range(0, thing.shape[0], step):
        yield thing[first : first + step].ravel()


def _structures(group: Any, wanted: Wanted, sink: Sink | None) -> list[dict[str, Any]]:
    """A structure, or an array of them: then each field is a table of references. Raises ItemError."""
    import h5py

    tables = {name: thing for name in wanted if (thing := _member(group, name)) is not None}
    referring = {name: t for name, t in tables.items() if isinstance(t, h5py.Dataset) and t.dtype == h5py.ref_dtype}
    if not referring:
        return [_fields(group, wanted, sink)]
    count = max(t.size for t in referring.values())
    if count > _MOST:
        raise ItemError("too_large", f"a structure of it has more than {_MOST} elements")
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, table in referring.items():
        _here(table)
        for row, reference in zip(rows, np.asarray(table[()]).ravel(), strict=False):
            if reference:
                row[name] = _value(group.file[reference], name, wanted[name], None)
    return rows
