"""Geometry, rates and units that cannot be: what `check` holds rows to, and deep, the arrays' own words."""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..lake import arrays
from ..lake.database import ROWS
from ..lake.errors import EnvironmentFailure, ItemError, LakeError
from ..lake.layout import Lake
from .holdings import item_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

AGREES = 1e-3
"""By how much, of its size, a voxel of the affine may differ from the spacing."""
MOST = 1000
"""Findings that are kept of one dataset."""
THREADS = 8

_SIZES = " + ".join(f"abs(sqrt({'+'.join(f'geometry.affine[{4 * r + c}]^2' for r in range(3))}) - geometry.spacing[{c}])"
                    f" / geometry.spacing[{c}]" for c in (1, 2, 3))  # fmt: skip
_BYTES = "list_aggregate(shape, 'product') * cast(regexp_extract(dtype, '[0-9]+$') as bigint) / 8"
RULES = {
    "shape": (
        "kind not in ('variants', 'contours') and (shape is null or len(shape) = 0 or list_min(shape) < 1)",
        "its shape is missing, or has a size below 1",
    ),
    "bytes": (
        f"kind <> 'slide' and shape is not null and nbytes is not null and regexp_matches(dtype, '^(u?int|float)[0-9]+$') and {_BYTES} <> nbytes",
        "its bytes are not those of its shape and dtype",
    ),
    "spacing": (
        "list_bool_or(list_transform(geometry.spacing, lambda s: s is null or not isfinite(s) or s <= 0))",
        "its spacing is not above 0 along each axis",
    ),
    "affine": (
        "geometry.affine is not null and (len(geometry.affine) <> 16 or "
        "list_bool_or(list_transform(geometry.affine, lambda s: s is null or not isfinite(s))) or "
        "list_slice(geometry.affine, 13, 16) <> [0, 0, 0, 1])",
        "its affine is not 16 finite numbers that end in 0, 0, 0, 1",
    ),
    "affine_spacing": (
        f"len(geometry.affine) = 16 and len(geometry.spacing) = 3 and list_min(geometry.spacing) > 0 "
        f"and isfinite({_SIZES}) and {_SIZES} > {AGREES}",
        "its affine makes voxels of another size than its spacing",
    ),
    "rate": (
        "signal is not null and (signal.rate is null or not isfinite(signal.rate) or signal.rate <= 0)",
        "its sampling rate is not above 0",
    ),
    "channels": (
        "signal is not null and shape is not null and (len(signal.channels) <> shape[1] or len(signal.units) <> shape[1])",
        "its channels or units are not as many as its signals",
    ),
    "length": (
        "sequence is not null and shape is not null and sequence.length <> shape[1]",
        "its length is not that of what is stored",
    ),
}
"""Code → (condition of what cannot be, as SQL; what is said of it)."""


@dataclass(frozen=True)
class Unsound:
    """An item whose numbers cannot be meant."""

    dataset: str
    item_id: str
    code: str
    problem: str


def unsound_rows(connection: "DuckDBPyConnection", dataset: str) -> list[Unsound]:
    """Rows of `items` that are live and cannot be, MOST at most: those of the lowest ids."""
    codes = ", ".join(f"case when {condition} then '{code}' end" for code, (condition, _) in RULES.items())
    query = f"""
        select item_id, code from (select item_id, unnest([{codes}]) as code from items where state = 'live')
        where code is not null order by all limit {MOST}
    """  # noqa: S608 - ours
    return [Unsound(dataset, item, code, RULES[code][1]) for item, code in connection.execute(query).fetchall()]


def unsound(lake: Lake, *, deep: bool) -> tuple[list[Unsound], dict[str, str]]:
    """(what cannot be, of all datasets; why the items of some could not be looked at: their table is damaged).

    Deep, what each array says of itself is looked at, too.
    """
    found: list[Unsound] = []
    unread: dict[str, str] = {}
    for dataset in lake.datasets():
        try:
            with item_rows(lake, dataset) as connection:
                found += unsound_rows(connection, dataset)
            if deep:
                with item_rows(lake, dataset) as connection:
                    found += islice(_unsound_arrays(lake, connection, dataset), MOST)
        except (LakeError, EnvironmentFailure) as error:
            unread[dataset] = str(error)
    return found, unread


def _unsound_arrays(lake: Lake, connection: "DuckDBPyConnection", dataset: str) -> Iterator[Unsound]:
    query = 'select item_id, "array", signal, geometry from items where "row" is null and "array" is not null and state = \'live\''
    reader = connection.sql(query).to_arrow_reader(ROWS)

    def look(row: Mapping[str, Any]) -> Unsound | None:
        try:
            meta = arrays.read_meta(lake, row["array"])
        except ItemError:
            return None  # a file is missing or damaged: said of the file
        said = next((code for code, wrong in META.items() if wrong(meta, row)), None)
        return None if said is None else Unsound(dataset, row["item_id"], said, SAID[said])

    with ThreadPoolExecutor(THREADS, thread_name_prefix="diastole-sound") as threads:
        for batch in reader:
            for start in range(0, batch.num_rows, 1024):
                yield from filter(None, threads.map(look, batch.slice(start, 1024).to_pylist()))


def _finite(values: Any, *, zero: bool) -> bool:
    """Whether these are numbers, and with no `zero` none is 0."""
    numbers = isinstance(values, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    return numbers and (zero or all(values))


def _gain(meta: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    if row["signal"] is None:
        return False
    count = len(row["signal"]["channels"] or [])
    for values, zero in ((meta.get("gain"), False), (meta.get("offset"), True)):
        if not _finite(values, zero=zero) or len(values or []) != count:
            return True
    return False


def _rescale(meta: Mapping[str, Any], _row: Mapping[str, Any]) -> bool:
    rescale = meta.get("rescale")
    return rescale is not None and not (_finite(rescale, zero=True) and len(rescale) == 2 and rescale[0] != 0)


def _disagrees(meta: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    own = [(row["signal"], ("rate", "channels", "units")), (row["geometry"], ("spacing", "orientation", "affine"))]
    return any(said is not None and any(said[name] != meta.get(name) for name in names) for said, names in own)


META: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], bool]] = {
    "gain": _gain,
    "rescale": _rescale,
    "array_disagrees": _disagrees,
}
SAID = {
    "gain": "its gains and offsets are not one finite number for each channel, gains other than 0",
    "rescale": "its slope and intercept are not finite, or the slope is 0",
    "array_disagrees": "its row says other geometry or signals than its array does",
}
