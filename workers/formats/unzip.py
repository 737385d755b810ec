"""The members of a zip archive, taken out only after all of its directory was held to what a safe archive is."""

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diastole.lake.errors import ItemError

from .source import PIECE

MEMBERS = 20_000
DIRECTORY_BYTES = 2**26
FREE_BYTES, RATIO = 2**26, 250
"""What all members may inflate to whatever the archive's size; beyond, how many times its size."""
_NAME_BYTES, _PATH_BYTES = 255, 1024
_END, _END_BYTES = b"PK\5\6", 22
_LOCAL_BYTES = 30
_ZIP64 = 0xFFFF
"""In place of a number of members that is said elsewhere."""
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_OTHERS = {
    "[Content_Types].xml": "an Office document",
    "mimetype": "a document",
    "META-INF/MANIFEST.MF": "a Java archive",
    "AndroidManifest.xml": "a program",
}
"""What else is a zip, by a member that each has."""


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    path: PurePosixPath
    info: zipfile.ZipInfo


@contextmanager
def opened(path: Path, limit: int) -> Iterator[tuple[zipfile.ZipFile, list[Member]]]:
    """An archive and its members, sorted by path; those that are hidden are left out. Raises ItemError."""
    count = _check_end(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if count not in (len(archive.infolist()), _ZIP64):
                raise ItemError(
                    "header_lies", "its directory has another number of members than it says; copy it again"
                )
            yield archive, _checked(archive, path.stat().st_size, limit)
    except zipfile.BadZipFile as error:
        code = "checksum" if "CRC" in str(error) else "header_lies"
        raise ItemError(code, "its directory and its members differ, or are damaged; copy it again") from error
    except zlib.error as error:
        raise ItemError("checksum", "a member of it is damaged; copy it again") from error
    except EOFError as error:
        raise ItemError("truncated", "a member of it ends too early; copy it again") from error
    except (NotImplementedError, RuntimeError) as error:
        raise ItemError("unsupported", "a member of it is packed in a way that is not read; pack it anew") from error


def take_out(archive: zipfile.ZipFile, member: Member, target: Path) -> None:
    """Write one member into a new file. Raises ItemError where it is not as long as the directory says."""
    left = member.info.file_size
    with archive.open(member.info) as packed, target.open("xb") as file:
        while piece := packed.read(PIECE):
            left -= len(piece)
            if left < 0:
                break
            file.write(piece)
    if left:
        raise ItemError("header_lies", "a member of it is not as long as its directory says; pack it anew")


def _check_end(path: Path) -> int:
    """Hold the record that ends an archive to what a directory may have, before that is read; the members that it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_BYTES - 2**16))
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise ItemError("truncated", "its directory, which ends it, is not there; copy it again")
    end = tail[at:]
    if end[4:8] != bytes(4) or at + _END_BYTES + int.from_bytes(end[20:22], "little") != len(tail):
        raise ItemError("header_lies", "something follows its end, or it has several parts; pack it anew")
    count = int.from_bytes(end[10:12], "little")
    if MEMBERS < count < _ZIP64:
        raise ItemError("too_large", f"it has more than {MEMBERS} members; unpack it")
    if DIRECTORY_BYTES < int.from_bytes(end[12:16], "little") < 2**32 - 1:
        raise ItemError("too_large", f"its directory has more than {DIRECTORY_BYTES} bytes; unpack it")
    return count


def _checked(archive: zipfile.ZipFile, size: int, limit: int) -> list[Member]:
    infos = archive.infolist()
    if len(infos) > MEMBERS:
        raise ItemError("too_large", f"it has more than {MEMBERS} members; unpack it")
    _check_kind({info.filename for info in infos})
    whole = sum(info.file_size for info in infos)
    if whole > limit:
        raise ItemError(
            "too_large", f"it inflates to {whole} bytes, more than {limit}; raise max_item_bytes, or unpack it"
        )
    if whole > FREE_BYTES + RATIO * size:
        raise ItemError(
            "too_large", f"it inflates to more than {RATIO} times its size, as bombs do; unpack it if it is none"
        )
    _check_places(infos, archive.start_dir)
    found: dict[PurePosixPath, Member] = {}
    for info in infos:
        path = _path(info)
        if path in found:
            raise ItemError("header_lies", "two of its members have one name; pack it anew")
        found[path] = Member(path, info)
    if any(parent in found and not found[parent].info.is_dir() for path in found for parent in path.parents):
        raise ItemError("header_lies", "one of its members is both a file and a folder; pack it anew")
    files = [member for member in found.values() if not member.info.is_dir()]
    return sorted((m for m in files if not _hidden(m.path)), key=lambda member: str(member.path))


def _check_kind(names: set[str]) -> None:
    for name, what in _OTHERS.items():
        if name in names:
            raise ItemError("unsupported", f"it is {what}, not an archive of files to be ingested")
    if names and all(name.endswith(".npy") for name in names):
        raise ItemError("unsupported", "it is a .npz of arrays; save each as .npy")


def _check_places(infos: list[zipfile.ZipInfo], end: int) -> None:
    """No two members may share bytes: that is how a small archive holds much."""
    at = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < at:
            raise ItemError("header_lies", "its members lie over each other; pack it anew")
        at = info.header_offset + _LOCAL_BYTES + info.compress_size
    if at > end:
        raise ItemError("header_lies", "its members reach into its directory; pack it anew")


def _path(info: zipfile.ZipInfo) -> PurePosixPath:
    """The path of a member. Raises ItemError where it leads out of the archive, or the member is not a plain file."""
    if info.flag_bits & _ENCRYPTED:
        raise ItemError("unsupported", "it is encrypted; unpack it")
    if info.compress_type not in _PLAIN:
        raise ItemError("unsupported", "a member of it is packed neither by deflate nor plainly; pack it anew")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or ((kind == stat.S_IFDIR) != info.is_dir() and kind != 0):
        raise ItemError("unsupported", "a member of it is a link or a device; pack what it leads to")
    name = info.orig_filename.removesuffix("/")
    parts = name.split("/")
    strange = any(c in info.orig_filename for c in "\\\0") or re.match("[A-Za-z]:", name)
    if strange or any(part in ("", ".", "..") for part in parts):
        raise ItemError("header_lies", "the name of a member leads out of it, or is none; pack it anew")
    if len(os.fsencode(name)) > _PATH_BYTES or any(len(os.fsencode(part)) > _NAME_BYTES for part in parts):
        raise ItemError("unsupported", "the name of a member is too long; unpack it")
    return PurePosixPath(name)


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
