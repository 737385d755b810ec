"""What analysts open the results with, each as it is."""

import duckdb
import made
import pandas as pd
import polars as pl
import pytest
from deltalake import DeltaTable

from diastole.lake import delta


@pytest.fixture
def scored(lake, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    made.add_proteins(lake, tmp_path / "src", [*made.proteins(30), "W" * 20])
    made.residues(lake)
    made.run(lake)
    made.residues(lake, seed=1, version="2")
    made.run(lake, model="m@2")
    return lake


def test_duckdb_polars_and_pandas_open_the_results_and_agree(scored):
    for path, rows in (("predictions/o", 62), ("current/o", 31)):
        uri = scored.store.uri(path)
        t = DeltaTable(uri).to_pyarrow_dataset()  # noqa: F841 - duckdb finds it by name
        by_duckdb = dict(duckdb.sql("select status, count(*) from t where level = 'item' group by status").fetchall())
        by_polars = dict(pl.scan_delta(uri).filter(pl.col("level") == "item").group_by("status").len().collect().rows())
        frame = DeltaTable(uri).to_pandas()
        assert isinstance(frame, pd.DataFrame)
        by_pandas = frame[frame.level == "item"].status.value_counts().to_dict()
        assert by_duckdb == by_polars == by_pandas == {"scored": rows * 30 // 31, "failed": rows // 31}


def test_probabilities_come_out_of_each_as_lists_of_the_same_numbers(scored):
    uri = scored.store.uri("current/o")
    order = "select probabilities from t where status = 'scored' order by item_id"
    t = DeltaTable(uri).to_pyarrow_dataset()  # noqa: F841 - duckdb finds it by name
    first = [row[0] for row in duckdb.sql(order).fetchall()]
    second = (
        pl.scan_delta(uri).filter(pl.col("status") == "scored").sort("item_id").collect()["probabilities"].to_list()
    )
    assert first == second
    assert all(sum(residue) == pytest.approx(1.0, abs=1e-5) for item in first for residue in item)


def test_tables_of_a_folder_are_read_by_arrow_itself_not_through_python(lake, tmp_path):
    """Else a thread of DuckDB that holds Python's lock and one of Arrow that wants it can wait for each other for ever."""
    made.add_proteins(lake, tmp_path / "src", made.proteins(3))
    found = delta.dataset(delta.open_table(lake, lake.dataset("d", "items")))
    assert found.to_table().num_rows == 3
    assert found.filesystem.base_fs.type_name == "local"
