"""Detail rows: as many as the item row says, in the same transaction, and none is an answer too."""

from types import SimpleNamespace
from typing import ClassVar

import made
import pyarrow as pa
import pytest

from diastole.cluster.driver import Choice
from diastole.jobs.task import Options, Result, Task, Window
from diastole.lake import predictions
from diastole.workers import tasks


class Motifs(Task):
    """A row for each W of a protein."""

    name, version, outputs = "motifs", 1, ("output",)
    item_columns: ClassVar[pa.Schema] = pa.schema([pa.field("length", pa.int64())])
    row_columns: ClassVar[pa.Schema] = pa.schema([pa.field("place", pa.int64())])
    options_type = Options

    def begin(self, unit):
        return {"letters": unit.data["input"], "places": []}

    def windows(self, state, step):
        return [Window(0, {"input": ()}, bucket=len(state["letters"]))]

    def encode(self, step, ready, device):
        import torch

        x = torch.zeros(len(ready), len(ready[0]["input"]), 20)
        return {"x": x, "letters": torch.stack([torch.tensor(r["input"].copy()) for r in ready])}

    def collect(self, state, step, window, outputs):
        assert len(outputs["output"]) == len(state["letters"])
        state["places"] = [n for n, letter in enumerate(state["letters"]) if letter == ord("W")]

    def finish(self, state):
        return Result({"length": len(state["letters"])}, rows={"place": state["places"]})


@pytest.fixture
def cohort(lake, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "entry_points", lambda group: [SimpleNamespace(name="motifs", load=lambda: Motifs)])
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (30, 10**9))
    made.add_proteins(lake, tmp_path / "src", ["AAA", "AWAW", "CCCC", "AWCC", "WWWWWWWW"])
    made.add_model(
        lake,
        {"net.pt": made.network(), "code.py": made.NET.encode()},
        task="motifs",
        runtime="python",
        network="code.py:Net",
        inputs={"input": {}},
    )
    return lake


def test_an_item_without_a_detail_has_an_item_row_and_is_not_planned_again(cohort):
    assert made.run(cohort).scored == 5
    found = {name: row["n_rows"] for name, row in made.by_name(cohort).items()}
    assert found == {"p0": 0, "p1": 2, "p2": 0, "p3": 1, "p4": 8}
    made.assert_each_once(cohort, 5)
    again = made.run(cohort)
    assert (again.run_id, again.skipped) == (None, {"already scored": 5})


def test_detail_rows_are_numbered_and_carry_their_items_key(cohort):
    made.run(cohort)
    items = {row["item_id"]: row for row in made.table(cohort)}
    rows = sorted(made.table(cohort, "row"), key=lambda row: (row["item_id"], row["ordinal"]))
    for row in rows:
        for name in predictions.KEY:
            assert row[name] == items[row["item_id"]][name]
    for item, row in items.items():
        assert [r["ordinal"] for r in rows if r["item_id"] == item] == list(range(row["n_rows"]))


def test_the_current_table_has_the_rows_of_its_item_rows(cohort):
    made.run(cohort, Choice(limit=3))
    made.run(cohort)
    shown = predictions.read_current(cohort, "o").to_table().to_pylist()
    assert sum(row["n_rows"] for row in shown if row["level"] == "item") == 11
    assert sum(row["level"] == "row" for row in shown) == 11


@pytest.mark.parametrize("letters", ["CCC", "CWC", "CWWC", "WCWCW"])
def test_a_changed_item_is_shown_as_it_is_now_however_many_details_it_had_and_has(cohort, tmp_path, letters):
    made.run(cohort)
    made.add_proteins(cohort, tmp_path / "src", ["AAA", "AWAW", "CCCC", letters, "WWWWWWWW"])
    assert made.run(cohort).scored == 1
    rows = predictions.read_current(cohort, "o").to_table().to_pylist()
    shown = {row["item_id"]: row for row in rows if row["level"] == "item"}
    names = {item["item_id"]: item["name"] for item in made.read_items(cohort, "d").to_pylist()}
    assert {names[item]: row["length"] for item, row in shown.items()}["p3"] == len(letters)
    assert sum(row["n_rows"] for row in shown.values()) == sum(row["level"] == "row" for row in rows)
