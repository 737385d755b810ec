"""What becomes of each file of pydicom's package: `python tests/dicom_table.py > docs/dicom-files.md`."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import dicoms
import numpy as np
import pydicom

from diastole.lake.errors import ItemError
from diastole.workers import formats
from diastole.workers.formats import ReadOptions

HEAD = """# pydicom's own files

What diastole makes of each file that pydicom {version}'s package holds, one file at a time. What is read is equal to
pydicom's `pixel_array` in every pixel (palettes looked up, and MONOCHROME1 of radiographs inverted afterwards);
`tests/test_dicom_files.py` holds this table to the code. Where it says *if allowed*, the file is a capture that does not say
whether texts are burnt into its pixels: it is quarantined with `burned_in_annotation` unless that is allowed.

Written by `python tests/dicom_table.py`.

| file | what | transfer syntax | becomes |
|---|---|---|---|
"""
TINY = "test_files/dicomdirtests/TINY_ALPHA/PT"


def outcome(path: Path, *, allow: bool) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Entries and arrays of a file. Raises ItemError."""
    with tempfile.TemporaryDirectory() as folder:
        reader = formats.choose(path, None)
        options = ReadOptions(allow_burned_in=allow)
        reader.preflight(path, options.limits)
        entries = reader.read(path, Path(folder), options)
        return entries, [np.load(Path(folder) / entry["file"]) for entry in entries if "file" in entry]


def becomes(path: Path) -> str:
    """In words."""
    try:
        said = _items(*outcome(path, allow=True))
    except ItemError as error:
        return "not DICOM" if error.code == "unknown_format" else f"`{error.code}`: {error}"
    try:
        outcome(path, allow=False)
    except ItemError:
        return f"if allowed: {said}"
    return said


def _items(entries: list[dict[str, Any]], arrays: list[np.ndarray]) -> str:
    named = [f"{e['kind']} {'×'.join(map(str, a.shape))} {a.dtype}" for e, a in zip(entries, arrays, strict=True)]
    return "; ".join(named)


def about(path: Path) -> tuple[str, str]:
    """SOP class and transfer syntax, as the file says them."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        syntax = header.file_meta.get("TransferSyntaxUID")
        sop = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    except (pydicom.errors.InvalidDicomError, EOFError):
        return "", ""
    names = [pydicom.uid.UID(uid or "").name for uid in (sop, syntax)]
    return names[0].removesuffix(" Storage"), names[1]


def table() -> str:
    """The page."""
    rows = []
    for path in dicoms.files():
        name = path.relative_to(dicoms.FOLDER).as_posix()
        if name.startswith(TINY) and path.name != "IM000000":
            continue
        shown = f"{name} … (50 files)" if name.startswith(TINY) else name
        rows.append(f"| {shown} | {' | '.join(about(path))} | {becomes(path)} |")
    return HEAD.format(version=pydicom.__version__) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(table(), end="")
