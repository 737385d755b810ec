"""What a dataset holds, told from its items table: counts, shapes, spacings, rates, lengths, and what stands out."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from ..lake import quarantine
from ..lake.layout import Lake
from .holdings import FIELDS, GROUP, MEASURES, field_column, holdings, item_rows, measure_column, rows_of
from .outliers import Outlier, find
from .sound import Unsound, unsound_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MOST = 20
"""Values of a field that are told, the most frequent first."""
DIGITS = 4
"""Measures are counted by their logarithm, rounded to so many digits: 0.01 % apart. So no median needs all of them."""
QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95}


@dataclass
class Group:
    """Items of one modality and kind."""

    modality: str | None
    kind: str
    """volume, image, recording, sequence."""
    items: int
    nbytes: int
    fields: dict[str, dict[str, int]] = field(default_factory=dict)
    """Items by value, the most frequent first, for each of FIELDS that any has."""
    others: dict[str, int] = field(default_factory=dict)
    """Further values of a field that are not told."""
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    """min, p5, median, p95 and max of each of MEASURES that any has; quantiles are values that occur, to 0.01 %."""


@dataclass
class Description:
    """What a dataset holds."""

    dataset: str
    states: dict[str, int]
    """Items: live, gone. All else is of those that are live."""
    subjects: int
    sessions: int
    groups: list[Group]
    outliers: list[Outlier]
    unsound: list[Unsound]
    quarantined: dict[str, int]
    """Sources that could not be read, by error code."""


def describe(lake: Lake, dataset: str) -> Description:
    """Look at a dataset. Raises LakeError where there is none of that name."""
    with holdings(lake, dataset) as connection:
        states = rows_of(connection, "select coalesce(state, 'unknown'), count(*) from held group by 1 order by 1")
        [(subjects, sessions)] = rows_of(
            connection, "select count(distinct subject_id), count(distinct session_id) from live"
        )
        query = f"select {GROUP}, count(*), sum(nbytes) from live group by all order by all"  # noqa: S608 - ours
        groups = {(m, k): Group(m, k, n, int(size or 0)) for m, k, n, size in rows_of(connection, query)}
        for name in FIELDS:
            _count(connection, groups, name)
        logs: dict[tuple[str | None, str, str], tuple[np.ndarray, np.ndarray]] = {}
        for name in MEASURES:
            for (modality, kind), (bins, counts) in _measure(connection, groups, name).items():
                logs[modality, kind, name] = bins, counts
        outliers = find(connection, logs)
    with item_rows(lake, dataset) as connection:
        unsound = unsound_rows(connection, dataset)
    return Description(
        dataset, dict(states), subjects, sessions, list(groups.values()), outliers, unsound, _quarantined(lake, dataset)
    )


def _count(connection: "DuckDBPyConnection", groups: dict[tuple[str | None, str], Group], name: str) -> None:
    query = f"""
        with named as (select {GROUP}, {field_column(name)} as v from live),
          counted as (select {GROUP}, v, count(*) as n from named where v is not null group by all)
        select *, count(*) over (partition by {GROUP}) from counted
        qualify row_number() over (partition by {GROUP} order by n desc, v) <= {MOST} order by {GROUP}, n desc, v
    """  # noqa: S608 - ours
    for modality, kind, v, count, values in rows_of(connection, query):
        group = groups[modality, kind]
        group.fields.setdefault(name, {})[v] = count
        if values > MOST:
            group.others[name] = values - MOST


def _measure(
    connection: "DuckDBPyConnection", groups: dict[tuple[str | None, str], Group], name: str
) -> dict[tuple[str | None, str], tuple[np.ndarray, np.ndarray]]:
    """Fill in a measure's summary; by group the logarithms, ascending, and how often each occurs."""
    query = f"""
        with measured as (select {GROUP}, {measure_column(name)} as v from live)
        select {GROUP}, round(ln(v), {DIGITS}) as b, min(v), max(v), count(*) from measured
        where v > 0 and isfinite(v) group by all order by {GROUP}, b
    """  # noqa: S608 - ours
    found: dict[tuple[str | None, str], list[tuple[float, float, float, int]]] = defaultdict(list)
    for modality, kind, *rest in rows_of(connection, query):
        found[modality, kind].append((rest[0], rest[1], rest[2], rest[3]))
    logs = {}
    for key, rows in found.items():
        bins, least, most, counts = (np.array(column) for column in zip(*rows, strict=True))
        summary = {"min": float(least[0])}
        summary |= {word: float(least[_place(counts, share)]) for word, share in QUANTILES.items()}
        groups[key].measures[name] = summary | {"max": float(most[-1])}
        logs[key] = bins, counts
    return logs


def _place(counts: np.ndarray, share: float) -> int:
    """Where a quantile lies among values that occur so often: the lowest with at least that share at or below it."""
    wanted = max(math.ceil(share * int(counts.sum())), 1)
    return int(np.searchsorted(np.cumsum(counts), wanted))


def _quarantined(lake: Lake, dataset: str) -> dict[str, int]:
    rows = quarantine.read(lake).select(["dataset", "state", "error_code"])
    rows = rows.filter(pc.and_(pc.equal(rows["dataset"], dataset), pc.equal(rows["state"], "open")))
    counted = pc.value_counts(rows["error_code"])
    pairs: dict[Any, int] = dict(
        zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    )
    return dict(sorted(pairs.items()))
