"""`current/` shows what a job means now, never an older state or another content."""

import contextlib

import made
import pytest

from diastole.cluster.driver import Choice, plan_job
from diastole.lake import delta, predictions
from diastole.workers.models.runtime import Networks


@pytest.fixture
def cohort(lake, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    made.add_proteins(lake, tmp_path / "src", ["ACDEF", "ACDEFGHIKL"])
    made.residues(lake)
    return lake


def shown(lake):
    rows = predictions.read_current(lake, "o").to_table().to_pylist()
    return {row["item_id"]: row for row in rows if row["level"] == "item"}


def lengths(lake):
    return sorted(row["length"] for row in shown(lake).values())


def test_an_item_that_goes_back_to_an_older_content_shows_the_older_result(cohort, tmp_path):
    made.run(cohort)
    made.add_proteins(cohort, tmp_path / "src", ["ACDEFGH", "ACDEFGHIKL"])
    assert made.run(cohort).reasons == {"changed": 1}
    assert lengths(cohort) == [7, 10]
    made.add_proteins(cohort, tmp_path / "src", ["ACDEF", "ACDEFGHIKL"])
    assert made.run(cohort).run_id is None
    assert lengths(cohort) == [5, 10]


def test_a_model_that_is_taken_back_shows_its_own_results_again(cohort):
    made.run(cohort)
    made.residues(cohort, seed=1, version="2")
    made.run(cohort, model="m@2")
    assert {row["model_version"] for row in shown(cohort).values()} == {"2"}
    assert made.run(cohort, model="m@1").run_id is None
    assert {row["model_version"] for row in shown(cohort).values()} == {"1"}


def test_a_refresh_that_another_overtakes_does_not_bring_back_what_was(cohort, monkeypatch):
    made.run(cohort, model="m@1")
    made.residues(cohort, seed=1, version="2")
    made.run(cohort, model="m@2")
    plan, _, _ = plan_job(cohort, made.job(model="m@1"), Choice())
    overwrite, overtaken = delta.overwrite, []

    def slow(table, rows, fence):
        if not overtaken:
            overtaken.append(True)
            made.run(cohort, model="m@1")  # refreshes all, between the reading and the writing of this refresh of one
        overwrite(table, rows, fence)

    monkeypatch.setattr(delta, "overwrite", slow)
    predictions.refresh_current(cohort, "o", plan.model_digest, plan.spec_digest, plan.wanted.slice(0, 1))
    assert overtaken
    assert [row["model_version"] for row in shown(cohort).values()] == ["1", "1"]


def test_a_refresh_with_nothing_new_writes_nothing(cohort):
    made.run(cohort)
    version = delta.open_table(cohort, cohort.current("o")).version()
    made.run(cohort)
    assert delta.open_table(cohort, cohort.current("o")).version() == version


def test_an_item_that_waits_for_its_new_content_shows_no_older_one(cohort, tmp_path):
    made.run(cohort)
    made.add_proteins(cohort, tmp_path / "src", ["ACDEFGH", "ACDEFGHI"])
    made.run(cohort, Choice(limit=1))
    assert len(shown(cohort)) == 1


def test_a_night_that_only_brings_new_items_writes_nothing_anew(cohort, tmp_path):
    made.run(cohort)
    files = set(delta.open_table(cohort, cohort.current("o")).file_uris())
    made.add_proteins(cohort, tmp_path / "new", ["ACDEFGHIKLMN"], prefix="n")
    made.run(cohort)
    table = delta.open_table(cohort, cohort.current("o"))
    assert files < set(table.file_uris())
    assert lengths(cohort) == [5, 10, 12]
    published = {path: size for path, size in cohort.store.list("predictions/o") if path.endswith(".parquet")}
    for uri in table.file_uris():
        path = uri.split("current/o/")[1]
        assert cohort.store.path(f"current/o/{path}").samefile(cohort.store.path(f"predictions/o/{path}"))
    assert len(published) == len(table.file_uris())
    rows = predictions.read_current(cohort, "o").to_table().to_pylist()
    assert {row["key_group"] for row in rows} == {row["key_group"] for row in made.table(cohort)} != {None}


def test_a_first_run_is_shown_by_links_and_no_row_is_looked_at(cohort, monkeypatch):
    monkeypatch.setattr("diastole.lake.whole.link_runs", None)
    monkeypatch.setattr("diastole.lake.predictions.link_runs", None)
    made.run(cohort)
    assert lengths(cohort) == [5, 10]
    table = delta.open_table(cohort, cohort.current("o"))
    for uri in table.file_uris():
        path = uri.split("current/o/")[1]
        assert cohort.store.path(f"current/o/{path}").samefile(cohort.store.path(f"predictions/o/{path}"))


@contextlib.contextmanager
def killed_at(monkeypatch, name):
    """The driver dies at a point; what follows is another."""

    def point(here):
        if here == name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("diastole.lake.crash.point", point)
        yield


def test_of_two_runs_that_nobody_showed_each_item_shows_its_last_attempt_once(cohort, monkeypatch):
    def broken(self, step, inputs):
        raise RuntimeError("it fails")

    with monkeypatch.context() as patch:
        patch.setattr(Networks, "forward", broken)
        with killed_at(monkeypatch, "before-current"), pytest.raises(KeyboardInterrupt):
            made.run(cohort)
    with killed_at(monkeypatch, "before-current"), pytest.raises(KeyboardInterrupt):
        made.run(cohort, Choice(retry=True), name="other")
    assert [row["status"] for row in made.table(cohort)].count("failed") == 2
    assert len(made.table(cohort)) == 4
    run = next(row["run_id"] for row in made.table(cohort) if row["status"] == "failed")
    plan, _, _ = plan_job(cohort, made.job(), Choice(retry=True))
    predictions.refresh_current(cohort, "o", plan.model_digest, plan.spec_digest, plan.wanted, run)
    rows = predictions.read_current(cohort, "o").to_table().to_pylist()
    assert sorted((row["status"], row["length"]) for row in rows if row["level"] == "item") == [
        ("scored", 5),
        ("scored", 10),
    ]


def test_a_first_refresh_that_another_overtakes_shows_each_item_once(cohort, monkeypatch):
    add, overtaken = delta.add_files, []

    def slow(table, files, fence):
        if not overtaken:
            overtaken.append(True)
            plan, _, _ = plan_job(cohort, made.job(), Choice())
            predictions.refresh_current(cohort, "o", plan.model_digest, plan.spec_digest, plan.wanted)
        add(table, files, fence)

    monkeypatch.setattr(delta, "add_files", slow)
    made.run(cohort)
    assert overtaken
    rows = predictions.read_current(cohort, "o").to_table().to_pylist()
    assert sorted(row["length"] for row in rows if row["level"] == "item") == [5, 10]


def test_a_first_refresh_that_was_killed_between_links_and_table_is_done_by_the_next_run(cohort, monkeypatch):
    def killed(table, files, fence):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(delta, "add_files", killed)
        with pytest.raises(KeyboardInterrupt):
            made.run(cohort)
    assert shown(cohort) == {}
    made.run(cohort)
    assert lengths(cohort) == [5, 10]
