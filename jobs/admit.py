"""What a unit costs, and whether it may be scored at all: asked once for all items that are alike."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

TOLD = """{
    'modality': modality, 'row': case when "row" is not null then 0 end, 'shape': shape, 'dtype': dtype, 'nbytes': nbytes,
    'geometry': {'orientation': geometry.orientation, 'spacing': geometry.spacing},
    'signal': signal, 'sequence': sequence, 'permitted_use': permitted_use, 'attributes': attributes}"""
"""Items that agree in all of this are one kind, and nothing else is told: of a row only that there is one."""
HASHES = (f"hash({TOLD})", f"md5_number_lower(({TOLD})::varchar)")
"""SQL: how a kind of items is told by 64 bits; the next, where two kinds that are there agree in the one before."""
AT_ONCE = 10_000


@dataclass(frozen=True)
class Kinds:
    """Answers by kind of unit."""

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


def unit_kind(roles: Sequence[str]) -> str:
    """SQL: the kind of a unit, from those of its items, `kind_0`, `kind_1`, …"""
    return "kind_0" if len(roles) == 1 else f"hash({', '.join(f'kind_{n}' for n in range(len(roles)))})"


def ask(
    database: "DuckDBPyConnection", roles: Sequence[str], function: str, answer: Callable[[Items], Answer]
) -> Kinds | None:
    """Ask once for each kind of unit in `planned`, whose items lie in `items_0`, `items_1`, …

    None where `function`, one of `HASHES`, confuses two kinds.
    """
    kinds, costs, refusals = [np.empty(0, np.uint64)], [np.empty(0)], [np.empty(0, np.int64)]
    texts: dict[tuple[str, str], int] = {}
    try:
        for numbers, units in _units(database, roles, function):
            answers = [answer(items) for items in units]
            places = [-1 if refusal is None else texts.setdefault(refusal, len(texts)) for refusal, _ in answers]
            kinds.append(numbers)
            costs.append(np.array([cost for _, cost in answers]))
            refusals.append(np.array(places, np.int64))
    except _Confused:
        return None
    joined = np.concatenate(kinds)
    order = np.argsort(joined)
    if len(np.unique(joined)) < len(joined):
        return None
    return Kinds(joined[order], np.concatenate(costs)[order], np.concatenate(refusals)[order], list(texts))


class _Confused(Exception):  # noqa: N818 - it never leaves this file
    """Two kinds of items have one number."""


def _units(
    database: "DuckDBPyConnection", roles: Sequence[str], function: str
) -> Iterator[tuple[NDArray[np.uint64], Iterable[Items]]]:
    """One unit of each kind, some at a time: those of one role as they come, of several from the kinds of their items."""
    if len(roles) == 1:
        for batch in _items(database, 0, function):
            yield batch["kind"].to_numpy(), ({roles[0]: item} for item in batch["told"].to_pylist())
        return
    told: list[dict[int, Any]] = []
    for number in range(len(roles)):
        found: dict[int, Any] = {}
        for batch in _items(database, number, function):
            new = dict(zip(batch["kind"].to_pylist(), batch["told"].to_pylist(), strict=True))
            if len(new) < batch.num_rows or not found.keys().isdisjoint(new):
                raise _Confused
            found |= new
        told.append(found)
    columns = ", ".join(f"kind_{number}" for number in range(len(roles)))
    query = f"select {unit_kind(roles)} as kind, {columns} from (select distinct {columns} from planned)"  # noqa: S608
    for batch in database.sql(query).to_arrow_reader(AT_ONCE):
        rows = zip(*(column.to_pylist() for column in batch.columns[1:]), strict=True)
        units = ({role: told[n][kind] for n, (role, kind) in enumerate(zip(roles, row, strict=True))} for row in rows)
        yield batch["kind"].to_numpy(), units


def _items(database: "DuckDBPyConnection", number: int, function: str) -> pa.RecordBatchReader:
    """(kind, told) of the kinds of items that units have in a role."""
    query = f"""
        select distinct {function} as kind, {TOLD} as told from items_{number}
        where kind in (select kind_{number} from planned)
    """  # noqa: S608
    return database.sql(query).to_arrow_reader(AT_ONCE)
