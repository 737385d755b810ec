"""Items that stand out among those of their modality: a slip of a unit, a header that was mistyped, another protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .holdings import GROUP, MEASURES, field_column, measure_column, registered, rows_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

DEVIATIONS = 5.0
"""Further from the median than so many median absolute deviations is far. Both of logarithms: half is as far as double."""
LEAST_DEVIATION = 0.01
"""What the deviation counts as, at least: where most are alike, up to 5 % from the median is near."""
ENOUGH = 5
"""Items of a group below which none stands out."""
FEW = 0.02
"""A value that so few share, or one alone, stands out where most of the others share one."""
SHARED = ("dtype", "orientation", "channels", "units", "alphabet")
"""Fields in which items of a dataset are expected to agree."""
PLAUSIBLE_MM = (10.0, 2500.0)
"""The longest side of the field of view of a scan, in mm."""
SCANS = ("CT", "MR", "PT", "NM", "CR", "DX", "MG")
"""Modalities that scan bodies, and parts of them."""
SHOWN = 20
"""Items that are named, by id, the furthest first."""

_GROUP = pa.schema([("modality", pa.string()), ("kind", pa.string())])
_BOUNDS = pa.schema([*_GROUP, ("low", pa.float64()), ("high", pa.float64()), ("middle", pa.float64())])
_RARE = pa.schema([*_GROUP, ("v", pa.string()), ("n", pa.int64())])
_SAME = "live.modality is not distinct from {0}.modality and live.kind = {0}.kind"


@dataclass
class Outlier:
    """One way in which items stand out."""

    code: str
    """far, rare, no_orientation, implausible_extent."""
    what: str
    """The field or the measure."""
    items: int
    first: list[dict[str, Any]] = field(default_factory=list)
    """item_id, value, and what is usual."""


Logs = Mapping[tuple[str | None, str, str], tuple[np.ndarray, np.ndarray]]
"""(modality, kind, measure) → logarithms of its values, ascending, and how often each occurs."""


def find(connection: "DuckDBPyConnection", logs: Logs) -> list[Outlier]:
    """All ways in which items stand out."""
    found = [_far(connection, name, logs) for name in MEASURES]
    found += [_rare(connection, name) for name in SHARED]
    found += [_no_orientation(connection), _extent(connection)]
    return [outlier for outlier in found if outlier is not None]


def bounds(logs: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """(low, high, median) of what is near, as logarithms."""
    middle = _median(logs, counts)
    distance = np.abs(logs - middle)
    order = np.argsort(distance, kind="stable")
    deviation = max(_median(distance[order], counts[order]), LEAST_DEVIATION)
    return middle - DEVIATIONS * deviation, middle + DEVIATIONS * deviation, middle


def _median(values: np.ndarray, counts: np.ndarray) -> float:
    return float(values[np.searchsorted(np.cumsum(counts), (int(counts.sum()) + 1) // 2)])


def _far(connection: "DuckDBPyConnection", name: str, logs: Logs) -> Outlier | None:
    rows: dict[str, list[Any]] = {column: [] for column in _BOUNDS.names}
    for (modality, kind, measure), (values, counts) in logs.items():
        if measure == name and counts.sum() >= ENOUGH:
            for column, value in zip(_BOUNDS.names, (modality, kind, *bounds(values, counts)), strict=True):
                rows[column].append(value)
    registered(connection, "bounds", rows, _BOUNDS)
    query = f"""
        select item_id, v, cast(printf('%.4g', exp(middle)) as double) as usual, abs(ln(v) - middle) as off from
          (select item_id, {GROUP}, {measure_column(name)} as v from live) live
          join bounds on {_SAME.format("bounds")}
        where v > 0 and isfinite(v) and (ln(v) < low or ln(v) > high)
    """  # noqa: S608 - ours
    return _told(connection, "far", name, query)


def _rare(connection: "DuckDBPyConnection", name: str) -> Outlier | None:
    query = f"""
        with named as (select {GROUP}, {field_column(name)} as v from live),
          counted as (select {GROUP}, v, count(*) as n from named where v is not null group by all), most as (
          select {GROUP}, max(n) as most, sum(n) as whole, arg_max(v, n) as usual from counted group by all)
        select counted.*, usual from counted join most on counted.modality is not distinct from most.modality
          and counted.kind = most.kind
        where 2 * most > whole and whole >= {ENOUGH} and n <= greatest(1, {FEW} * whole) and v is distinct from usual
    """  # noqa: S608 - ours
    connection.execute(f"create or replace temp table rare as {query}")
    if not rows_of(connection, "select 1 from rare limit 1"):
        return None
    query = f"""
        select item_id, live.v, usual, -n as off from
          (select item_id, {GROUP}, {field_column(name)} as v from live) live
          join rare on {_SAME.format("rare")} and live.v = rare.v
    """  # noqa: S608 - ours
    return _told(connection, "rare", name, query)


def _no_orientation(connection: "DuckDBPyConnection") -> Outlier | None:
    query = """
        select item_id, null as v, null as usual, 0 as off from live
        where kind = 'volume' and field_orientation = 'unknown'
    """
    return _told(connection, "no_orientation", "orientation", query)


def _extent(connection: "DuckDBPyConnection") -> Outlier | None:
    low, high = PLAUSIBLE_MM
    sides = ", ".join(f"coalesce({measure_column(f'extent_{axis}_mm')}, 0)" for axis in "xyz")
    query = f"""
        select item_id, v, '{low:g}–{high:g}' as usual, abs(ln(v / {high})) as off from (
          select item_id, greatest({sides}) as v from live
          where modality in {SCANS} and kind in ('volume', 'image'))
        where v > 0 and not (v between {low} and {high})
    """  # noqa: S608 - ours
    return _told(connection, "implausible_extent", "extent_mm", query)


def _told(connection: "DuckDBPyConnection", code: str, what: str, query: str) -> Outlier | None:
    """`query` gives item_id, value, usual value, and how far off it is."""
    [(count,)] = rows_of(connection, f"select count(*) from ({query})")  # noqa: S608 - ours
    if not count:
        return None
    first = rows_of(connection, f"{query} order by off desc, item_id limit {SHOWN}")
    return Outlier(code, what, count, [{"item_id": i, "value": v, "usual": u} for i, v, u, _ in first])
