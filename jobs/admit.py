"""What a unit costs, and whether it may be scored at all: asked once for all items that are alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Items = Mapping[str, Mapping[str, Any]]
"""By role: what a task and a contract are told of an item."""
Answer = tuple[tuple[str, str] | None, float]
"""(why it is refused: code and text, or None; cost)."""

TOLD = """{{
    'modality': {i}.modality, 'shape': {i}.shape, 'dtype': {i}.dtype, 'nbytes': {i}.nbytes,
    'geometry': {{'orientation': {i}.geometry.orientation, 'spacing': {i}.geometry.spacing}},
    'signal': {i}.signal, 'sequence': {i}.sequence, 'permitted_use': {i}.permitted_use, 'attributes': {i}.attributes}}"""
"""Items that agree in all of this are one kind, and nothing else is told."""
HASHES = ("hash({})", "md5_number_lower(row({})::varchar)")
"""How a kind is told by 64 bits; the next, where two kinds that are there agree in the one before."""
AT_ONCE = 10_000


@dataclass(frozen=True)
class Kinds:
    """Answers by kind of unit."""

    sql: str
    """What gives a unit's kind."""
    kinds: NDArray[np.uint64]
    """Sorted."""
    costs: NDArray[np.float64]
    refusals: NDArray[np.int64]
    """Places in `texts`; -1 where it is not refused."""
    texts: Sequence[tuple[str, str]]
    """(code, reason), each once."""

    def of(self, kinds: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(costs, refusals) of units of these kinds."""
        places = np.searchsorted(self.kinds, kinds)
        if not np.array_equal(self.kinds[np.minimum(places, len(self.kinds) - 1)], kinds):
            raise RuntimeError("a unit is of a kind that was not asked for")
        return self.costs[places], self.refusals[places]


def told(roles: Sequence[str]) -> str:
    """SQL: what is told of the items `i0`, `i1`, … of the roles, as columns `told_0`, `told_1`, …"""
    return ", ".join(f"{TOLD.format(i=f'i{number}')} as {name}" for number, name in enumerate(_names(roles)))


def ask(database: "DuckDBPyConnection", units: str, roles: Sequence[str], answer: Callable[[Items], Answer]) -> Kinds:
    """Ask once for each kind of unit in a table that has the columns of `told`."""
    columns = ", ".join(_names(roles))
    for function in HASHES:
        kind = function.format(columns)
        query = f"select {kind} as kind, {columns} from (select distinct {columns} from {units})"  # noqa: S608
        found = _answers(database.sql(query).to_arrow_reader(AT_ONCE), roles, answer)
        if len(np.unique(found.kinds)) == len(found.kinds):
            return replace(found, sql=kind)
    raise RuntimeError("two kinds of units cannot be told apart")


def _names(roles: Sequence[str]) -> list[str]:
    return [f"told_{number}" for number in range(len(roles))]


def _answers(batches: pa.RecordBatchReader, roles: Sequence[str], answer: Callable[[Items], Answer]) -> Kinds:
    kinds, costs, refusals = [np.empty(0, np.uint64)], [np.empty(0)], [np.empty(0, np.int64)]
    texts: dict[tuple[str, str], int] = {}
    for batch in batches:
        rows = zip(*(column.to_pylist() for column in batch.columns[1:]), strict=True)
        answers = [answer(dict(zip(roles, items, strict=True))) for items in rows]
        places = [-1 if refusal is None else texts.setdefault(refusal, len(texts)) for refusal, _ in answers]
        kinds.append(batch["kind"].to_numpy())
        costs.append(np.array([cost for _, cost in answers]))
        refusals.append(np.array(places, np.int64))
    joined = np.concatenate(kinds)
    order = np.argsort(joined)
    return Kinds("", joined[order], np.concatenate(costs)[order], np.concatenate(refusals)[order], list(texts))
