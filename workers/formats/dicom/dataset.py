"""A DICOM data set as pydicom reads it, once its structure was walked over; and values of it that are what they should be."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from diastole.lake.errors import ItemError

from . import structure

UNDECIDED_BYTES = 2**22
"""How much of a deflated data set is inflated to tell what a file is."""


@dataclass(frozen=True)
class File:
    """An open file: its header, and where its pixels are."""

    opened: structure.Opened
    header: Any  # pydicom's Dataset, without pixels

    @property
    def sop_class(self) -> str:
        """UID of what the file is."""
        return uid(self.header, "SOPClassUID") or ""


@contextmanager
def read(path: Path, limit: int, *, whole: bool = True, tags: Sequence[str] | None = None) -> Iterator[File]:
    """Open a file and parse its header. `whole` as of structure.opened; `tags`: keywords of what alone is wanted.

    Raises ItemError.
    """
    pydicom = library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom says quotes values
        with structure.opened(path, limit, whole=whole) as opened:
            opened.file.seek(opened.dataset_at)
            try:
                header = pydicom.filereader.read_dataset(
                    opened.file,
                    opened.implicit,
                    opened.little,
                    stop_when=lambda tag, *_: tag in _AT_PIXELS,
                    specific_tags=None if tags is None else [pydicom.datadict.tag_for_keyword(t) for t in tags],
                )
            except (ItemError, MemoryError):
                raise
            except RecursionError as error:
                raise ItemError("header_lies", "its sequences are nested deeper than any are") from error
            except Exception as error:  # pydicom raises classes of many kinds
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise ItemError("unreadable", "it begins as DICOM does, but its header cannot be read") from error
            yield File(opened, header)


_AT_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))


_ALIKE = frozenset(("AS", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "SL", "SS", "TM", "UI", "UL", "US"))
"""VRs whose values are told from their bytes alone, whatever the character set."""
_SHORT = 256


def value(dataset: Any, keyword: str) -> Any:
    """A value, None where it is absent, empty or not what its VR says.

    The slices of a series mostly say the same: a short value is converted once for all that have its bytes.
    """
    tag, vr = _known(keyword)
    try:
        if tag not in dataset:
            return None
        raw = dataset.get_item(tag)
        if getattr(raw, "is_raw", False) and (raw.VR or vr) in _ALIKE and 0 < raw.length <= _SHORT:
            found = _converted(raw._replace(value_tell=0))
        else:
            found = dataset[tag].value
    except RecursionError as error:
        raise ItemError("header_lies", "its sequences are nested deeper than any are") from error
    except Exception:  # noqa: BLE001 - the value is damaged, and pydicom raises classes of many kinds
        return None
    return None if found is None or found == "" else found


@cache
def _known(keyword: str) -> tuple[Any, str]:
    """Tag and VR of an element of the standard's dictionary."""
    pydicom = library()
    tag = pydicom.tag.Tag(keyword)
    return tag, pydicom.datadict.dictionary_VR(tag)


@lru_cache(maxsize=4096)
def _converted(raw: Any) -> Any:
    return library().dataelem.convert_raw_data_element(raw).value


def text(dataset: Any, keyword: str) -> str | None:
    """A short text."""
    found = value(dataset, keyword)
    return None if found is None else str(found).strip() or None


def uid(dataset: Any, keyword: str) -> str | None:
    """A UID, None where it is not one."""
    found = text(dataset, keyword)
    return found if found and re.fullmatch(r"[0-9.]{1,64}", found) else None


def texts(dataset: Any, keyword: str) -> tuple[str, ...]:
    """All values of an element with several."""
    found = value(dataset, keyword)
    if found is None:
        return ()
    return (str(found),) if isinstance(found, str) else tuple(str(one) for one in found)


def numbers(dataset: Any, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Finite numbers, `count` of them if given; None where there are others."""
    found = value(dataset, keyword)
    if found is None or isinstance(found, bytes):
        return None
    try:
        made = tuple(float(one) for one in ([found] if isinstance(found, int | float | str) else found))
    except (TypeError, ValueError, OverflowError):
        return None
    if not all(map(math.isfinite, made)) or (count is not None and len(made) != count):
        return None
    return made


def measured(dataset: Any, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """As `numbers`, of an element that says what values or places mean: None where it is absent or empty.

    Raises ItemError where it is there and is something else: without it the item would be another.
    """
    found = numbers(dataset, keyword, count)
    if found is None and _is_filled(dataset, keyword):
        raise ItemError("header_lies", f"its {keyword} is not what it has to be; copy it again")
    return found


def _is_filled(dataset: Any, keyword: str) -> bool:
    """Whether an element is there and not empty."""
    tag, _ = _known(keyword)
    if tag not in dataset:
        return False
    found = dataset.get_item(tag).value
    return bool(found.strip(b" \0")) if isinstance(found, bytes) else found is not None and str(found) != ""


def number(dataset: Any, keyword: str) -> float | None:
    """One finite number."""
    found = numbers(dataset, keyword, 1)
    return found[0] if found else None


def integer(dataset: Any, keyword: str) -> int | None:
    """One whole number."""
    found = number(dataset, keyword)
    return int(found) if found is not None and found == int(found) else None


def items(dataset: Any, keyword: str) -> list[Any]:
    """The data sets of a sequence, none where it is absent."""
    found = value(dataset, keyword)
    if found is None or isinstance(found, str | bytes | int | float):
        return []
    try:
        return [one for one in found if hasattr(one, "get_item")]
    except TypeError:
        return []


def first(dataset: Any, *keywords: str) -> Any:
    """The first data set of a sequence within the first of another, …; None where one is absent."""
    for keyword in keywords:
        found = items(dataset, keyword) if dataset is not None else []
        dataset = found[0] if found else None
    return dataset


def words(text: str) -> frozenset[str]:
    """A list of terms."""
    return frozenset(text.split())


@cache
def library() -> Any:
    """pydicom, imported where it is needed; values that break their rules are read, and say nothing."""
    import logging

    import pydicom
    import pydicom.filereader
    import pydicom.pixels

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return pydicom
