"""Compaction: many small files become few, and nothing else changes, whoever dies, sleeps or commits meanwhile."""

import json
import signal
import time

import made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import worn
from deltalake import DeltaTable
from test_commit import Scored

from diastole.jobs import compact as compacts
from diastole.jobs import merge
from diastole.jobs.compact import compact
from diastole.jobs.sweep import sweep
from diastole.lake import delta, integrity, leases
from diastole.lake.errors import CommitError, LakeError

POINTS = ["compact-begin", "compact-written", "compact-recorded", "compact-committed"]
TABLES = ("predictions/o", "current/o")


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Three nights of four proteins each."""
    with worn.new(tmp_path_factory.mktemp("nights")) as lake:
        made.residues(lake)
        worn.nights(lake, lake.store.local.parent / "src")
        yield worn.Template(lake)


@pytest.fixture
def worn_lake(nights, tmp_path, monkeypatch):
    return nights.copy(tmp_path, monkeypatch)


def seen(lake):
    """All that a reader sees."""
    return {path: worn.rows(lake, path) for path in TABLES}


def table_files(lake, path="predictions/o"):
    return delta.files_of(delta.open_table(lake, path))


def test_small_files_become_one_of_each_partition_and_rows_stay_as_they_are(worn_lake):
    before, files = seen(worn_lake), len(table_files(worn_lake))
    assert files >= 3
    told = compact(worn_lake, dry_run=True)
    assert len(table_files(worn_lake)) == files
    done = compact(worn_lake, ["o"])
    assert [(p.table, p.level, p.rows, p.files[0]) for p in done] == [
        (p.table, p.level, p.rows, p.files[0]) for p in told
    ]
    assert seen(worn_lake) == before
    for path in TABLES:
        partitions = [tuple(file["partition"].values()) for file in table_files(worn_lake, path)]
        assert len(partitions) == len(set(partitions))
        for file in table_files(worn_lake, path):
            recorded = integrity.Recorded(worn_lake).get(f"{path}/{file['path']}")
            assert recorded.bytes == file["size_bytes"]
    assert compact(worn_lake) == []
    assert integrity.check(worn_lake, deep=True) == []


def test_readers_of_the_old_files_are_not_disturbed_until_a_sweep(worn_lake):
    old = DeltaTable(worn_lake.store.uri("predictions/o"))
    rows = old.to_pyarrow_table().num_rows
    compact(worn_lake)
    assert old.to_pyarrow_table().num_rows == rows
    assert sweep(worn_lake).removed["predictions"] == (0, 0)
    before = seen(worn_lake)
    time.sleep(0.02)
    assert sweep(worn_lake, 0).removed["predictions"][0] >= 3
    with pytest.raises(Exception, match=r"(?i)not found|no such file"):
        old.to_pyarrow_table()
    assert seen(worn_lake) == before
    assert integrity.check(worn_lake, deep=True) == []
    worn.nights(worn_lake, worn_lake.store.local.parent / "src", count=4)  # the last of them is new
    made.assert_each_once(worn_lake, 16)
    assert len(worn.rows(worn_lake, "current/o")) == len(worn.rows(worn_lake, "predictions/o"))


def test_what_current_still_shows_of_a_swept_file_stays_recorded(worn_lake):
    with leases.exclusive(worn_lake, "compaction") as lease:
        list(compacts._Table(worn_lake, "predictions/o", integrity.Recorded(worn_lake), lease).compact(dry_run=False))
    linked = {f"current/o/{file['path']}" for file in table_files(worn_lake, "current/o")}
    before = seen(worn_lake)
    time.sleep(0.02)
    assert sweep(worn_lake, 0).removed["predictions"][0] >= 3
    assert seen(worn_lake) == before
    assert linked <= {row["path"] for row in integrity.read(worn_lake).to_pylist()}
    assert integrity.check(worn_lake, deep=True) == []


def test_a_compacted_file_has_page_checksums_and_a_flipped_byte_is_found(worn_lake):
    compact(worn_lake)
    file = max((worn_lake.store.local / "predictions" / "o").rglob("compact-*.parquet"), key=lambda p: p.stat().st_size)
    good = bytearray(file.read_bytes())
    found = 0
    for at in range(8, len(good) // 3, 97):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        try:
            pq.ParquetFile(file, page_checksum_verification=True).read()
        except (OSError, pa.ArrowInvalid):  # by its checksum, or where the byte is one of a page's header
            found += 1
    assert found > 0
    assert [wrong for _, wrong in integrity.check(worn_lake, deep=True)] == ["bytes changed since they were written"]


def test_a_full_file_stays_as_it_is_and_a_partition_that_would_not_change_too(worn_lake, monkeypatch):
    sizes = sorted(file["size_bytes"] for file in table_files(worn_lake) if file["partition"]["level"] == "item")
    monkeypatch.setattr(compacts, "LARGE", sizes[1] + 1)
    big = {file["path"] for file in table_files(worn_lake) if file["size_bytes"] > sizes[1]}
    compact(worn_lake)
    assert big <= {file["path"] for file in table_files(worn_lake)}
    monkeypatch.setattr(compacts, "LARGE", sizes[0])
    version = delta.open_table(worn_lake, "predictions/o").version()
    assert compact(worn_lake) == []
    assert delta.open_table(worn_lake, "predictions/o").version() == version


def test_a_large_partition_becomes_several_files_and_is_read_row_group_by_row_group(worn_lake, monkeypatch):
    monkeypatch.setattr(compacts, "ROWS", 3)
    before = seen(worn_lake)
    monkeypatch.setattr(compacts, "LARGE", max(file["size_bytes"] for file in table_files(worn_lake)) + 1)
    done = compact(worn_lake)
    assert seen(worn_lake) == before
    assert max(p.files[1] for p in done) > 1
    assert integrity.check(worn_lake, deep=True) == []


@pytest.mark.fault(27)
def test_a_damaged_file_is_named_and_its_table_stays_as_it_is(worn_lake):
    file = worn_lake.store.path(f"predictions/o/{table_files(worn_lake)[0]['path']}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    version = delta.open_table(worn_lake, "predictions/o").version()
    with pytest.raises(CommitError, match="is damaged; restore it from a backup; nothing was changed"):
        compact(worn_lake)
    assert delta.open_table(worn_lake, "predictions/o").version() == version


def test_rows_that_would_become_others_are_not_committed(worn_lake, monkeypatch):
    class Losing(merge.LargeFile):
        def add(self, rows):
            super().add(rows.set_column(rows.schema.get_field_index("attempt"), "attempt", [[7] * rows.num_rows]))

    before = seen(worn_lake)
    monkeypatch.setattr(compacts, "LargeFile", Losing)
    with pytest.raises(CommitError, match="rows became others; nothing was changed"):
        compact(worn_lake)
    assert seen(worn_lake) == before


@pytest.mark.fault(11)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_a_compaction_changes_no_row(worn_lake, tmp_path, point):
    before = seen(worn_lake)
    killed = made.cli(worn_lake, "compact", DIASTOLE_CRASH=f"{point}:{tmp_path / 'flag'}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert seen(worn_lake) == before
    assert integrity.check(worn_lake, deep=True) == []
    compact(worn_lake)
    time.sleep(0.02)
    sweep(worn_lake, 0)
    assert seen(worn_lake) == before
    assert integrity.check(worn_lake, deep=True) == []
    shown = {f"predictions/o/{file['path']}" for file in table_files(worn_lake)}
    assert {p for p in worn.files(worn_lake) if p.endswith(".parquet") and p.startswith("predictions/")} == shown


@pytest.mark.fault(11, 30)
@pytest.mark.parametrize(
    "point", ["after-commit", "before-current", pytest.param("before-record", marks=pytest.mark.slow)]
)
def test_a_run_that_was_killed_after_its_commit_ends_right_over_a_compaction_and_a_sweep(worn_lake, tmp_path, point):
    made.add_proteins(worn_lake, tmp_path / "src", made.proteins(4, seed=9), prefix="z")
    made.cli(worn_lake, "run", made.job_file(tmp_path), DIASTOLE_CRASH=point)
    rows = worn.rows(worn_lake, "predictions/o")
    assert compact(worn_lake)
    time.sleep(0.02)
    assert sweep(worn_lake, 0).left == {}
    assert worn.rows(worn_lake, "predictions/o") == rows
    outcome = made.run(worn_lake)
    assert (outcome.resumed, outcome.scored) == (True, 4)
    made.assert_each_once(worn_lake, 16)
    assert worn.rows(worn_lake, "current/o") == rows
    assert integrity.check(worn_lake, deep=True) == []
    assert made.run(worn_lake).run_id is None


@pytest.mark.fault(13, 31)
def test_of_a_compaction_and_a_commit_that_race_the_loser_reloads_and_nothing_is_doubled(worn_lake, tmp_path):
    made.add_proteins(worn_lake, tmp_path / "src", made.proteins(4, seed=9), prefix="z")
    with worn.paused(worn_lake, tmp_path / "flag", "compact-recorded", "compact", "--json") as compaction:
        Scored(worn_lake).commit()  # as if there were no leases
        code, said = compaction.wake()
    assert code == 0, said
    assert json.loads(said)["partitions"][0]["files"] == [3, 1]
    assert made.run(worn_lake).resumed
    made.assert_each_once(worn_lake, 16)
    assert worn.rows(worn_lake, "current/o") == worn.rows(worn_lake, "predictions/o")
    assert integrity.check(worn_lake, deep=True) == []


@pytest.mark.fault(31, 46)
def test_a_compaction_that_slept_through_another_doubles_nothing(worn_lake, tmp_path):
    before = seen(worn_lake)
    flag = tmp_path / "flag"
    with worn.paused(worn_lake, flag, "compact-recorded", "compact", DIASTOLE_LEASE_SECONDS="1") as compaction:
        time.sleep(1.2)
        assert compact(worn_lake)
        made.add_proteins(worn_lake, tmp_path / "src", made.proteins(4, seed=9), prefix="z")
        made.run(worn_lake)
        assert compact(worn_lake)  # of its files none is in the table any more
        code, said = compaction.wake()
    assert code in (0, 2), said
    made.assert_each_once(worn_lake, 16)
    assert [row for row in worn.rows(worn_lake, "predictions/o") if row in before["predictions/o"]] == before[
        "predictions/o"
    ]
    assert integrity.check(worn_lake, deep=True) == []


@pytest.mark.fault(31, 46)
def test_a_run_that_slept_through_a_compaction_is_told_to_begin_again(worn_lake, tmp_path):
    made.add_proteins(worn_lake, tmp_path / "src", made.proteins(4, seed=9), prefix="z")
    line = ["run", made.job_file(tmp_path)]
    with worn.paused(worn_lake, tmp_path / "flag", "before-commit", *line, DIASTOLE_LEASE_SECONDS="1") as run:
        time.sleep(1.2)
        assert compact(worn_lake)
        code, said = run.wake()
    assert code == 2
    assert "run it again" in said
    assert len(made.table(worn_lake)) == 12
    assert made.run(worn_lake).resumed
    made.assert_each_once(worn_lake, 16)


def test_an_output_that_is_not_there_is_named(worn_lake):
    with pytest.raises(LakeError, match="there is no output 'x' in this lake; there is: o"):
        compact(worn_lake, ["x"])
