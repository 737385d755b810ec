"""Which units a job means: items that match, joined over roles, nothing of the withdrawn."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..lake.errors import SpecError
from ..lake.ids import digest
from ..lake.items import open_items
from ..lake.layout import Lake
from .spec import Selection

_COLUMNS = """item_id, subject_id, session_id, modality, "array", "row", shape, nbytes, content_digest,
    struct_pack(orientation := geometry.orientation, spacing := geometry.spacing) as geometry, signal, sequence, permitted_use,
    attributes"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A unit before it is known whether it must be scored."""

    item_id: str
    subject_id: str | None
    items: Mapping[str, Mapping[str, Any]]
    """Items rows by role."""
    input_digest: str


@dataclass(frozen=True)
class Selected:
    """What a job's selections gave."""

    units: list[Candidate]
    unpaired: dict[str, int]
    """Items that have no partner in another role, by reason."""


def candidates(lake: Lake, inputs: Mapping[str, Selection], only: Sequence[str]) -> Selected:
    """All units of a job. Raises LakeError for a dataset that is not there, SpecError for a bad condition."""
    by_role = {role: _items(lake, selection) for role, selection in inputs.items()}
    first, *others = by_role
    units, unpaired = [], 0
    partners = {role: _by_session(by_role[role]) for role in others}
    for item in by_role[first]:
        chosen = {first: item}
        for role in others:
            found = partners[role].get((item["subject_id"], item["session_id"]), [])
            if item["subject_id"] is not None and len(found) == 1:
                chosen[role] = found[0]
        if len(chosen) < len(by_role):
            unpaired += 1
            continue
        inputs_digest = digest([[role, i["content_digest"]] for role, i in chosen.items()])
        units.append(Candidate(item["item_id"], item["subject_id"], chosen, inputs_digest))
    if only:
        there = {unit.item_id for unit in units}
        missing = [item for item in only if item not in there]
        if missing:
            raise SpecError(f"{len(missing)} item ids of --only are not in the selection, first: {missing[0]}")
        units = [unit for unit in units if unit.item_id in set(only)]
    return Selected(units, {"no single partner in the session": unpaired} if unpaired else {})


def suppressed(lake: Lake) -> set[str]:
    """Subject ids whose consent was withdrawn."""
    return {path.rsplit("/", 1)[1] for path, _ in lake.store.list("suppressed")}


def _items(lake: Lake, selection: Selection) -> list[dict[str, Any]]:
    import duckdb

    table = open_items(lake, selection.dataset)
    where = f" and ({selection.where})" if selection.where else ""
    with duckdb.connect(config={"enable_external_access": False, "lock_configuration": True}) as connection:
        connection.register("items", table.to_pyarrow_dataset())
        try:
            rows = connection.sql(f"select {_COLUMNS} from items where state = 'live'{where} order by item_id")  # noqa: S608
            found = rows.to_arrow_table()
        except duckdb.Error as error:
            first = str(error).strip().splitlines()[0]
            raise SpecError(f"where: {selection.where!r} is not a condition over items: {first}") from None
    return list(found.to_pylist())


def _by_session(items: Sequence[dict[str, Any]]) -> dict[tuple[Any, Any], list[dict[str, Any]]]:
    grouped: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for item in items:
        grouped.setdefault((item["subject_id"], item["session_id"]), []).append(item)
    return grouped


def attributes(item: Mapping[str, Any]) -> dict[str, Any]:
    """What else the source said of an item."""
    return dict(json.loads(item["attributes"] or "{}"))
