"""`diastole check`: what is damaged or missing is found, wherever it lies, and what can be redone is."""

import json
import os
import shutil

import made
import pyarrow as pa
import pytest
import spots

from diastole.cluster.repair import mend
from diastole.jobs import merge
from diastole.lake import delta, integrity, leases, predictions, scrub
from diastole.lake.errors import BusyError
from diastole.lake.layout import Lake


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Six volumes, scored with maps and detail rows in some shards; the same in `current/`."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        patch.setenv("DIASTOLE_ALLOW_CODE", "")
        patch.setattr("diastole.jobs.plan.SHARD_COST", (500, 10**9))
        spots.install(folder, patch)
        lake = Lake.create(str(folder / "lake"))
        spots.cohort(lake, folder / "src", 6)
        assert made.run(lake).scored == 6
        assert scrub.scrub(lake, deep=True).findings == []
        yield folder, os.environ["DIASTOLE_ALLOW_CODE"]


@pytest.fixture
def scored(template, tmp_path, monkeypatch):
    """A copy of it, files of `current/` included."""
    folder, allowed = template
    monkeypatch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", allowed)
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (500, 10**9))
    spots.install(tmp_path, monkeypatch)
    shutil.copytree(folder / "lake", tmp_path / "lake")
    return Lake.open(str(tmp_path / "lake"))


def files(lake, path, level):
    return sorted(f"{path}/{name}" for name, _ in scrub.listed_files(delta.open_table(lake, path)) if level in name)


def first_map(lake):
    row = next(row for row in made.table(lake) if row["n_rows"])
    return next(path for path, _ in lake.store.list(row["maps"][0]["path"]) if "/c/" in path)


PLACES = {
    "item rows": lambda lake: files(lake, "predictions/o", "level=item")[0],
    "detail rows": lambda lake: files(lake, "predictions/o", "level=row")[0],
    "a map": first_map,
    "current": lambda lake: files(lake, "current/o", "level=item")[-1],
}


def damage(lake, path, how):
    """A file of its own: those of current/ are linked to those of predictions."""
    data = bytearray(lake.store.get(path))
    lake.store.delete(path)
    if how == "flipped":
        data[len(data) // 2] ^= 1
        lake.store.put(path, bytes(data))
    elif how == "cut":
        lake.store.put(path, bytes(data[:-9]))


def found(lake, *, deep=True):
    return [finding.path for finding in scrub.scrub(lake, deep=deep).findings]


SLOW = [pytest.param((place,), how, marks=pytest.mark.slow) for place in PLACES for how in ("flipped", "gone", "cut")]


@pytest.mark.fault(27)
@pytest.mark.parametrize(("places", "how"), [(tuple(PLACES), "flipped"), (tuple(PLACES), "gone"), *SLOW])
def test_what_is_hurt_is_found_taken_out_and_scored_again_once(scored, places, how):
    lake, paths = scored, sorted({PLACES[place](scored) for place in places})
    shown = rows_of_current(lake)
    for path in paths:
        damage(lake, path, how)
    assert found(lake) == paths
    assert found(lake, deep=False) == ([] if how == "flipped" else paths)
    done = mend(lake, scrub.scrub(lake, deep=True).findings, 0.0)
    assert (paths, []) == (sorted(mended for mended, _ in done.mended), done.left)
    assert found(lake) == []
    taken = 6 - len(made.table(lake))
    assert taken == done.outputs["o"]
    assert (taken > 0) == (places != ("current",))
    assert made.run(lake).scored == taken
    made.assert_each_once(lake, 6)
    assert rows_of_current(lake) == shown
    assert found(lake) == []


@pytest.mark.fault(27)
def test_a_part_and_its_link_in_current_are_hurt_together(scored):
    lake = scored
    [part, *_] = files(lake, "predictions/o", "level=row")
    linked = part.replace("predictions/", "current/")
    damage(lake, part, "flipped")
    lake.store.delete(linked)
    lake.store.link({part: linked})
    assert found(lake) == [linked, part]
    mend(lake, scrub.scrub(lake, deep=True).findings, 0.0)
    assert made.run(lake).scored > 0
    made.assert_each_once(lake, 6)
    assert found(lake) == []


def rows_of_current(lake):
    rows = predictions.read_current(lake, "o").to_table().to_pylist()
    return sorted((row["item_id"], row["level"], row["ordinal"] or 0, row["value"] or row["spots"]) for row in rows)


@pytest.mark.fault(27)
@pytest.mark.parametrize("level", ["item", "row"])
def test_of_a_merged_file_all_is_redone(scored, monkeypatch, level):
    """Merged files hold the rows of many shards."""
    lake = scored
    monkeypatch.setattr(merge, "MANY", ((1, 2**30),))
    made.run(lake, name="k", output="p")
    [path] = files(lake, "predictions/p", f"level={level}")
    assert "-wave" in path
    damage(lake, path, "flipped")
    assert found(lake) == [path]
    done = mend(lake, scrub.scrub(lake, deep=True).findings, 0.0)
    assert done.outputs == {"p": 6 if level == "item" else 6 - sum(row["n_rows"] == 0 for row in made.table(lake))}
    assert made.run(lake, name="k", output="p").scored == done.outputs["p"]
    made.assert_each_once(lake, 6, output="p")
    made.assert_each_once(lake, 6)
    assert found(lake) == []


@pytest.mark.fault(27)
@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_file_of_current_that_was_written_anew_is_held_to_the_predictions(scored, how):
    lake = scored
    table = delta.open_table(lake, "current/o")
    rows = delta.dataset(table).to_table()
    delta.overwrite(table, rows, delta.fence(table))
    assert found(lake) == []
    shown = rows_of_current(lake)
    path = files(lake, "current/o", "level=item")[0]
    if how == "gone":
        damage(lake, path, how)
    else:  # as a bit that flips in a value would
        table = delta.open_table(lake, "current/o")
        changed = rows.set_column(rows.schema.get_field_index("spots"), "spots", pa.array([7] * len(rows), pa.int64()))
        delta.overwrite(table, changed, delta.fence(table))
    wrong = found(lake)
    assert wrong
    assert all(one.startswith("current/o/") for one in wrong)
    done = mend(lake, scrub.scrub(lake, deep=True).findings, 0.0)
    assert (done.outputs, done.left) == ({"o": 0}, [])
    assert rows_of_current(lake) == shown
    assert found(lake) == []


def test_what_sources_or_a_backup_must_heal_is_said_and_left(scored, tmp_path):
    lake = scored
    array = next(path for path, _ in lake.store.list("datasets/d/arrays") if "/c/" in path)
    damage(lake, array, "flipped")
    damage(lake, "models/m/1/net.pt", "flipped")
    checked = made.cli(lake, "check", "--deep", "--repair", "--json")
    assert checked.returncode == 1, checked.stderr
    left = {one[0]: one[1] for one in json.loads(checked.stdout)["left"]}
    assert set(left) == {array, "models/m/1/net.pt"}
    assert "diastole ingest d SOURCES --verify" in left[array]
    assert "backup" in left["models/m/1/net.pt"]
    assert len(made.table(lake)) == 6


def test_a_table_whose_log_or_file_is_damaged_is_found(scored):
    lake = scored
    [name] = [name for name, _ in scrub.listed_files(delta.open_table(lake, "datasets/d/items"))]
    damage(lake, f"datasets/d/items/{name}", "cut")
    assert found(lake) == [f"datasets/d/items/{name}"]


def test_a_repair_waits_for_a_run_and_a_race_with_a_commit_is_lost(scored, monkeypatch):
    lake = scored
    damage(lake, PLACES["item rows"](lake), "gone")
    findings = scrub.scrub(lake, deep=True).findings
    with leases.shared(lake, "a run"), pytest.raises(BusyError, match="repair must wait"):
        mend(lake, findings, 0.0)
    add_files, raced = delta.add_files, []

    def race(table, *files):
        if not raced:
            raced.append(1)
            other = delta.open_table(lake, lake.predictions("o"))
            add_files(other, [], delta.fence(other))
        add_files(table, *files)

    monkeypatch.setattr(delta, "add_files", race)
    mend(lake, findings, 0.0)
    assert raced
    assert made.run(lake).scored > 0
    made.assert_each_once(lake, 6)
    assert integrity.check(lake, deep=True) == []
