"""From what a reader found to rows of the items table."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np

from diastole.lake import arrays, sequences, slides, suppressed
from diastole.lake.errors import ItemError
from diastole.lake.ids import canonical_json, content_digests, keyed
from diastole.lake.integrity import FileRecord, Recorded
from diastole.lake.items import ITEMS
from diastole.lake.layout import Lake

from .decode import Decoded
from .sources import IngestOptions, Source, acquired_at
from .variants import store_variants

Row = dict[str, Any]
SHIFT_DAYS = 364
"""Times that a source gives are moved back by 1 to so many days."""
PACKED = ("sequences", "images")
"""Kinds of which many share an array or a file; the others are arrays by themselves."""
MAPPED = 2**20
"""Bytes of decoded images that are mapped, if more: a file that is still mapped takes longer to be removed."""


_WRITES: Mapping[str, Callable[..., arrays.StoredArray]] = {
    "volume": arrays.write_volume,
    "recording": arrays.write_recording,
    "contours": arrays.write_contours,
}
"""What is an array of its own, by kind."""


@dataclass(frozen=True)
class Image:
    """An image that waits for its pack."""

    data: np.ndarray
    """(C, H, W); mapped where the stack is large: its file may be removed meanwhile."""
    meta: Mapping[str, Any]
    like: bytes
    """Shape, dtype and meta as they are hashed: images that are equal in it share a pack."""


@dataclass(frozen=True)
class Claim:
    """An item that a source says it has: its row, and its files, its letters or its image."""

    row: Row
    files: list[FileRecord] = field(default_factory=list)
    letters: bytes | None = None
    image: Image | None = None
    healed: bool = False
    """Whether its files were there, damaged, and were written anew."""


def store_arrays(
    lake: Lake,
    dataset: str,
    source: Source,
    options: IngestOptions,
    decoded: Decoded,
    recorded: Recorded | None = None,
) -> list[Claim]:
    """Write the volumes, recordings, outlines, slides and variants of a source; `recorded` as in lake.arrays.

    Raises ItemError where the reader broke its contract.
    """
    claims = []
    for entry in decoded.entries:
        make = _CLAIMS.get(str(entry.get("kind")))
        if make is None:
            continue
        try:
            claims.append(make(lake, dataset, source, options, decoded, entry, recorded))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ItemError(
                "unsupported", f"the {decoded.format} reader gave something that cannot be stored"
            ) from error
    return claims


def is_withdrawn(
    lake: Lake, dataset: str, source: Source, entry: Mapping[str, Any], gone: suppressed.Suppressed
) -> bool:
    """Whether an entry of an archive is of a withdrawn subject: by its subject, what it is derived from, or its key."""
    subject, parent = source.subject or _text(entry, "subject"), _text(entry, "derived_from")
    if subject is not None:
        return lake.subject_id(subject) in gone.subjects
    if derived_from(lake, dataset, source.said.get("derived_from") or parent) in gone.items:
        return True
    return lake.item_id(dataset, _natural_key(source, entry)) in gone.items


def sequence_claims(
    lake: Lake, dataset: str, source: Source, options: IngestOptions, decoded: Decoded
) -> Iterator[Claim]:
    """The records of a source, one by one; their letters are mapped, not read at once."""
    for entry in decoded.entries:
        if entry.get("kind") == "sequences":
            try:
                yield from _records(lake, dataset, source, options, decoded, entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ItemError(
                    "unsupported", f"the {decoded.format} reader gave records that cannot be stored"
                ) from error


def image_claims(lake: Lake, dataset: str, source: Source, options: IngestOptions, decoded: Decoded) -> Iterator[Claim]:
    """The images of a source, one by one; they are mapped, not read at once."""
    for entry in decoded.entries:
        if entry.get("kind") == "images":
            try:
                yield from _images(lake, dataset, source, options, decoded, entry)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ItemError(
                    "unsupported", f"the {decoded.format} reader gave images that cannot be stored"
                ) from error


def _array_claim(
    lake: Lake,
    dataset: str,
    source: Source,
    options: IngestOptions,
    decoded: Decoded,
    entry: Mapping[str, Any],
    recorded: Recorded | None,
) -> Claim:
    data = arrays.check_dtype(np.load(decoded.file(entry["file"]), mmap_mode="r", allow_pickle=False))
    meta = dict(entry["meta"])
    volume = entry["kind"] == "volume"
    if data.ndim not in ((3, 4) if volume else (2,)):
        raise ValueError("axes")
    stored = _WRITES[entry["kind"]](lake, lake.dataset(dataset, "arrays"), data, meta, recorded)
    row = _stored(lake, dataset, source, options, entry, stored, list(data.shape), data.nbytes)
    row["dtype"] = data.dtype.name
    if volume:
        row["geometry"] = {key: meta[key] for key in ("spacing", "orientation", "affine")}
    elif entry["kind"] == "recording":
        row["signal"] = {key: meta[key] for key in ("rate", "channels", "units")}
    return Claim(row, stored.files, healed=stored.healed)


def _slide_claim(
    lake: Lake,
    dataset: str,
    source: Source,
    options: IngestOptions,
    decoded: Decoded,
    entry: Mapping[str, Any],
    recorded: Recorded | None,
) -> Claim:
    """The row of a slide has the shape of its largest level, and the bytes of all."""
    found = [np.load(decoded.file(name), mmap_mode="r", allow_pickle=False) for name in entry["levels"]]
    levels, meta = [arrays.check_dtype(one) for one in found], dict(entry["meta"])
    stored = slides.write_slide(lake, lake.dataset(dataset, "arrays"), levels, meta, recorded)
    nbytes = sum(one.nbytes for one in levels)
    row = _stored(lake, dataset, source, options, entry, stored, list(levels[0].shape), nbytes)
    row["dtype"] = levels[0].dtype.name
    if meta["spacing"] is not None:
        row["geometry"] = {"spacing": meta["spacing"], "orientation": None, "affine": None}
    return Claim(row, stored.files, healed=stored.healed)


def _variants_claim(
    lake: Lake,
    dataset: str,
    source: Source,
    options: IngestOptions,
    decoded: Decoded,
    entry: Mapping[str, Any],
    recorded: Recorded | None,
) -> Claim:
    subject = source.subject or _text(entry, "subject")
    gone = suppressed.subjects(lake)
    prefix = lake.dataset(dataset, "arrays")
    stored, shape, nbytes = store_variants(lake, prefix, decoded, entry, subject, gone, recorded)
    said = {**entry, "attributes": {**entry["attributes"], "samples": shape[1]}}
    row = _stored(lake, dataset, source, options, said, stored, shape, nbytes)
    return Claim(row, stored.files, healed=stored.healed)


def _stored(
    lake: Lake,
    dataset: str,
    source: Source,
    options: IngestOptions,
    entry: Mapping[str, Any],
    stored: arrays.StoredArray,
    shape: list[int],
    nbytes: int,
) -> Row:
    """The row of an item that is an array, or a group of them, by itself."""
    row = _row(lake, dataset, source, options, entry)
    row["modality"] = source.modality(options) or entry["modality"]
    row |= {"array": stored.path, "content_digest": stored.content_digest, "shape": shape, "nbytes": nbytes}
    row["attributes"] = canonical_json(entry["attributes"]).decode()
    return row


_CLAIMS = {**dict.fromkeys(_WRITES, _array_claim), "slide": _slide_claim, "variants": _variants_claim}
"""What has files of its own, by kind."""


def _images(
    lake: Lake, dataset: str, source: Source, options: IngestOptions, decoded: Decoded, entry: Mapping[str, Any]
) -> Iterator[Claim]:
    file = decoded.file(entry["file"])
    mode: Literal["r"] | None = "r" if file.stat().st_size > MAPPED else None
    found = arrays.check_dtype(np.load(file, mmap_mode=mode, allow_pickle=False))
    images, meta, key = np.asarray(found), dict(entry["meta"]), _natural_key(source, entry)
    if images.ndim != 4 or not images.flags.c_contiguous:
        raise ValueError("axes")
    header = arrays.header(images.shape[1:], images.dtype, meta)
    like = canonical_json(header)
    shared = _row(lake, dataset, source, options, entry)
    shared["modality"] = source.modality(options) or entry["modality"]
    shared |= {"shape": list(images.shape[1:]), "dtype": images.dtype.name, "nbytes": images[0].nbytes}
    shared["attributes"] = canonical_json(entry["attributes"]).decode()
    if meta["spacing"] is not None:
        shared["geometry"] = {"spacing": meta["spacing"], "orientation": None, "affine": None}
    for number, digest in enumerate(content_digests(header, images)):
        row = shared.copy()
        if entry["numbered"]:
            row["item_id"] = lake.item_id(dataset, f"{key}#{number}")
            row["name"] = None if row["name"] is None else f"{row['name']}#{number}"
        row["content_digest"] = digest
        yield Claim(row, image=Image(images[number], meta, like))


def _records(
    lake: Lake, dataset: str, source: Source, options: IngestOptions, decoded: Decoded, entry: Mapping[str, Any]
) -> Iterator[Claim]:
    alphabet = str(entry["meta"]["alphabet"])
    letters = np.memmap(decoded.file(entry["file"]), np.uint8, "r")
    at = 0
    with decoded.file(entry["records"]).open(encoding="utf-8") as lines:
        for line in lines:
            record_id, length, occurring, attributes = json.loads(line)
            text = letters[at : at + length].tobytes()
            at += length
            if len(text) != length:
                raise ValueError("letters")
            row = _row(lake, dataset, source, options, entry, record_id=str(record_id), records=int(entry["count"]))
            row["modality"] = source.said.get("modality") or options.modality or entry["modality"]
            row |= {"content_digest": sequences.sequence_digest(alphabet, text), "shape": [length], "dtype": "uint8"}
            row["nbytes"] = length
            row["attributes"] = canonical_json({**entry["attributes"], **attributes}).decode()
            row["sequence"] = {
                "alphabet": alphabet,
                "letters": occurring,
                "length": length,
                "assembly": options.assembly,
            }
            yield Claim(row, letters=text)


def _row(
    lake: Lake,
    dataset: str,
    source: Source,
    options: IngestOptions,
    entry: Mapping[str, Any],
    record_id: str | None = None,
    records: int = 1,
) -> Row:
    """What is known of an item before its content: ids without a name in them, what the user said, and what the file says."""
    said, suffix = source.said, str(entry["suffix"])
    subject = source.subject or _text(entry, "subject")
    session = source.session or _text(entry, "session")
    natural_key = public = _natural_key(source, entry)
    if record_id is not None:
        named = said.get("key") or options.assembly or source.relative
        named = f"{named}/{entry['within']}" if "within" in entry else named
        natural_key, public = f"{named}\0{record_id}", record_id
    one = records == 1 and "within" not in entry
    given = said.get("name") if one else None  # one name cannot be that of many records
    row: Row = dict.fromkeys(ITEMS.names)
    row |= {
        "item_id": lake.item_id(dataset, natural_key),
        "name": f"{given}{suffix}" if given else public if options.public else None,
        "subject_id": lake.subject_id(subject) if subject else None,
        "session_id": keyed(lake.key, "session", subject or "", session) if session else None,
        "derived_from": derived_from(lake, dataset, said.get("derived_from") or _text(entry, "derived_from")),
        "acquired_at": acquired_at(said.get("acquired_at")) or _time(lake, subject, entry, options.dates),
        "site": said.get("site"),
        "laterality": said.get("laterality") or entry.get("laterality"),
        "licence": said.get("licence") or options.licence,
        "permitted_use": said.get("permitted_use") or options.permitted_use,
        "state": "live",
    }
    return row


def _natural_key(source: Source, entry: Mapping[str, Any]) -> str:
    """The manifest's, else the file's own, else that of the path; with what tells the item from the file's others."""
    given, own = source.said.get("key"), _text(entry, "key")
    if "within" in entry and (given or not own):
        return f"{given or source.natural_key}/{own or entry['within']}{entry['suffix']}"
    return str(given or own or source.natural_key) + str(entry["suffix"])


def _text(entry: Mapping[str, Any], name: str) -> str | None:
    return None if entry.get(name) is None else str(entry[name])


def _time(lake: Lake, subject: str | None, entry: Mapping[str, Any], dates: str) -> datetime | None:
    """When the file says that it was acquired. Shifted back, by the same up to a year for all of a subject."""
    time = acquired_at(_text(entry, "acquired_at"))
    if time is None or dates == "drop" or (dates == "shift" and subject is None):
        return None
    if dates == "shift":
        time -= timedelta(days=1 + int(keyed(lake.key, "days", subject or ""), 16) % SHIFT_DAYS)
    return time


def derived_from(lake: Lake, dataset: str, said: str | None) -> str | None:
    """The id of the item that a manifest or a file names by its id, or by its natural key in the same dataset."""
    if said is None or re.fullmatch("[0-9a-f]{32}", said):
        return said
    return lake.item_id(dataset, said)
