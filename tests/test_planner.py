"""The plan that the database makes is the one that these few lines of plain Python would make."""

import random
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pytest

from diastole.jobs import units
from diastole.jobs.contract import refuse, refuse_use
from diastole.jobs.cut import cut, names
from diastole.jobs.plan import Plan, make_plan, spec_digest
from diastole.jobs.spec import parse_job
from diastole.jobs.task import Task
from diastole.lake import delta, items, models, predictions
from diastole.lake.ids import digest, sha256_bytes

FAILED = "failed before (--retry scores it again)"
WITHDRAWN = {f"s{number}" for number in range(20)}
LENGTHS, SPACINGS = (3, 3, 4), (1.0, 1.1, 1.2, 1.3, 9.0)


class Pairs(Task):
    """Scores a T1 with the FLAIR of its session."""

    name, version, roles = "pairs", 1, ("t1", "it's")
    item_columns = pa.schema([("value", pa.float64())])
    begin = windows = encode = collect = finish = None

    def refuse(self, found):
        if found["t1"]["shape"][0] != found["it's"]["shape"][0]:
            return "other_shape", f"{found['t1']['shape']} and {found[self.roles[1]]['shape']} do not fit"
        return None


class Alone(Pairs):
    """Scores a T1."""

    roles = ("t1",)

    def refuse(self, found):
        return None


def rows_of(chosen, dataset, count):
    """Items of few subjects, sessions, contents and kinds, so that all happens that can."""
    for number in range(count):
        length = chosen.choice(LENGTHS)
        yield dict.fromkeys(items.ITEMS.names) | {
            "item_id": digest([dataset, number]),
            "subject_id": chosen.choice([None, *(f"s{n}" for n in range(count // 3))]),
            "session_id": chosen.choice([None, "a"]),
            "modality": chosen.choice([None, *["MR"] * 8, "CT"]),
            "array": f"{dataset}/{chosen.randrange(9)}",
            "row": chosen.choice([*[None] * 9, 0, 1, 2, 10]),
            "shape": [length, 4, 5],
            "nbytes": chosen.choice([None, 0, length * 20]),
            "content_digest": digest(chosen.randrange(5)),
            "geometry": chosen.choice([None, *[{"spacing": [chosen.choice(SPACINGS)] * 3, "orientation": "RAS"}] * 5]),
            "permitted_use": chosen.choice([*[None] * 8, "research", "teaching"]),
            "attributes": chosen.choice([None, "{}"]),
            "state": chosen.choice(["live", "live", "live", "gone"]),
            "site": chosen.choice("AB"),
        }


@pytest.fixture(params=[Pairs, Alone])
def cohort(request, lake):
    """A lake with items, results of all sorts, and withdrawn subjects."""
    chosen = random.Random(3)
    roles = request.param.roles
    contract = {"modality": ["MR"], "axes": "zyx", "spacing_mm": {"max": 2}}
    manifest = models.Manifest.model_validate(
        {"name": "m", "version": "1", "task": "pairs", "runtime": "onnx", "inputs": dict.fromkeys(roles, contract)}
        | {"files": {"main": {"path": "a", "sha256": sha256_bytes(b"")}}}
    )
    task = request.param(manifest, request.param.options_type())
    there = {role: list(rows_of(chosen, f"d{n}", 500)) for n, role in enumerate(roles)}
    for number, rows in enumerate(there.values()):
        items.write_items(lake, f"d{number}", pa.Table.from_pylist(rows, items.ITEMS))
    for subject in WITHDRAWN:
        lake.store.put(f"suppressed/{subject}", b"")
    own = (manifest.model_digest, spec_digest(task))
    schema = predictions.table_schema(task.item_columns, pa.schema([]))
    results = [
        dict.fromkeys(schema.names)
        | {"level": chosen.choice(["item", "item", "item", "row"]), "item_id": row["item_id"], "run_id": "r"}
        | {"input_digest": chosen.choice(inputs), "status": chosen.choice(["scored", "failed", "failed"])}
        | {"model_digest": model, "spec_digest": spec, "key_group": digest([model, spec])[:8]}
        | {"attempt": chosen.randint(1, 3)}
        for row, inputs in ((row, possible(row, there)) for row in there[roles[0]])
        for model, spec in chosen.sample([own, (own[0], "other"), ("other", own[1]), ("other", "other")], 2)
        if chosen.random() < 0.6
    ]
    delta.ensure_table(lake, "predictions/o", schema, predictions.PARTITIONS)
    delta.append(lake, "predictions/o", pa.Table.from_pylist(results, schema))
    return lake, manifest, task, there, results


def possible(row, there):
    """Digests of what an item may have been scored with: its content and some FLAIR, and another content."""
    first, *others = there
    if not others:
        return [digest([[first, digest(n)]]) for n in range(5)]
    return [digest([[first, row["content_digest"]], [others[0], digest(n)]]) for n in range(5)]


def expected(cohort, where=None, purpose=None, limit=None, only=(), retry=False):
    """(wanted, skipped, units), as the plan should have them."""
    _, manifest, task, there, results = cohort
    own = (manifest.model_digest, spec_digest(task))
    live = {
        role: [r for r in rows if r["state"] == "live" and (not where or r["site"] == "A")]
        for role, rows in there.items()
    }
    first, *others = live
    skipped, units, wanted = {}, [], []
    for item in sorted(live[first], key=lambda row: row["item_id"]):
        chosen = {first: item}
        for role in others:
            same = [
                r for r in live[role] if (r["subject_id"], r["session_id"]) == (item["subject_id"], item["session_id"])
            ]
            if item["subject_id"] is not None and len(same) == 1:
                chosen[role] = same[0]
        if len(chosen) < len(live):
            skipped["no single partner in the session"] = skipped.get("no single partner in the session", 0) + 1
            continue
        if only and item["item_id"] not in only:
            continue
        inputs = digest([[role, one["content_digest"]] for role, one in chosen.items()])
        wanted.append((item["item_id"], inputs))
        seen = [r for r in results if r["item_id"] == item["item_id"] and r["level"] == "item"]
        reason, attempt = why(seen, inputs, own, retry=retry)
        if item["subject_id"] in WITHDRAWN:
            reason, attempt = "withdrawn", 0
        elif attempt and limit is not None and len(units) >= limit:
            reason, attempt = "beyond the limit", 0
        if not attempt:
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        refusals = [refuse_use(one, purpose) for one in chosen.values()]
        refusals += [refuse(manifest.inputs[role], one) for role, one in chosen.items()] + [task.refuse(chosen)]
        code, text = next((refusal for refusal in refusals if refusal), (None, None))
        entries = [
            {"role": role, **{n: one[n] for n in ("item_id", "content_digest", "array", "row")}}
            for role, one in chosen.items()
        ]
        units.append(
            {"item_id": item["item_id"], "subject_id": item["subject_id"], "inputs": entries, "input_digest": inputs}
            | {"reason": reason, "attempt": attempt, "refused_code": code, "refused": text}
            | {"cost": 0.0 if code else task.cost(chosen)}
        )
    return sorted(wanted), skipped, units


def why(seen, inputs, own, *, retry):
    here = [r for r in seen if ((r["model_digest"], r["spec_digest"]), r["input_digest"]) == (own, inputs)]
    failed = [r["attempt"] for r in here if r["status"] == "failed"]
    if not seen:
        return "new", 1
    if any(r["status"] == "scored" for r in here):
        return "already scored", 0
    if failed:
        return ("retry", max(failed) + 1) if retry else (FAILED, 0)
    if any((r["model_digest"], r["spec_digest"]) == own for r in seen):
        return "changed", 1
    if any(r["model_digest"] != own[0] and r["input_digest"] == inputs for r in seen):
        return "model changed", 1
    if any(r["model_digest"] == own[0] and r["input_digest"] == inputs for r in seen):
        return "parameters changed", 1
    return "changed", 1


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"retry": True},
        {"limit": 7},
        {"retry": True, "limit": 0},
        {"where": "site = 'A'", "purpose": "research"},
        "only",
    ],
    ids=str,
)
def test_the_database_plans_what_plain_python_would(cohort, choice):
    lake, manifest, task, there, _ = cohort
    if choice == "only":
        choice = {"only": [item for item, _ in expected(cohort)[0]][4:40:3]}
    inputs = {role: {"dataset": f"d{n}", "where": choice.get("where")} for n, role in enumerate(there)}
    job = parse_job({"name": "j", "model": "m", "output": "o", "inputs": inputs, "purpose": choice.get("purpose")})
    made = {name: value for name, value in choice.items() if name not in ("where", "purpose")}
    plan = make_plan(lake, job, manifest, task, **made)
    wanted, skipped, units = expected(cohort, **choice)
    assert sorted(zip(*(column.to_pylist() for column in plan.wanted.columns), strict=True)) == wanted
    assert plan.skipped == skipped
    units.sort(key=lambda u: (u["inputs"][0]["array"], u["inputs"][0]["row"] or 0, u["item_id"]))
    shards = shards_of([unit["cost"] for unit in units], 64 * 2**10, 16, 4096)
    cut_so = [{"unit": n, "shard": f"{s:05d}", **units[u]} for n, (u, s) in enumerate(shards)]
    assert (
        [{name: row[name] for name in cut_so[0]} for row in plan.units.to_pylist()] == cut_so
        if units
        else not len(plan.units)
    )
    assert plan.cost == sum(unit["cost"] for unit in units)
    again = make_plan(lake, job, manifest, task, **made)
    assert (again.run_id, again.to_bytes()) == (plan.run_id, plan.to_bytes())
    assert Plan.from_bytes(plan.to_bytes()).units.equals(plan.units)


def test_every_reason_and_refusal_is_among_what_is_compared(cohort):
    units = expected(cohort)[2] + expected(cohort, retry=True)[2]
    assert {u["reason"] for u in units} == {"new", "changed", "model changed", "parameters changed", "retry"}
    assert {u["refused_code"] for u in units} >= {
        None,
        "use_not_permitted",
        "wrong_modality",
        "spacing_unknown",
        "wrong_spacing",
    }
    assert {*expected(cohort)[1]} >= {"withdrawn", "already scored", FAILED}


def shards_of(costs, target, neighbours, most):
    """(unit, shard) in the plan's order."""
    blocks = [reached // (neighbours * target) for reached in accumulate(costs)]
    order = sorted(range(len(costs)), key=lambda n: (blocks[n], costs[n], n))
    shard, cost, count, found = 0, 0.0, 0, []
    for unit in order:
        if count and (cost + costs[unit] / 2 > target or count >= most):
            shard, cost, count = shard + 1, 0.0, 0
        found.append((unit, shard))
        cost, count = cost + costs[unit], count + 1
    return found


@pytest.mark.parametrize("seed", range(30))
def test_units_are_cut_as_one_after_the_other_would_be(seed):
    chosen = random.Random(seed)
    costs = [float(chosen.choice([0, 0, 1, chosen.randint(1, 40), 500])) for _ in range(chosen.randint(0, 300))]
    target, neighbours, most = chosen.choice([1.0, 50.0, 1000.0]), chosen.choice([1, 4]), chosen.choice([1, 7, 1000])
    order, shards = cut(np.array(costs), target, neighbours, most)
    assert list(zip(order.tolist(), shards.tolist(), strict=True)) == shards_of(costs, target, neighbours, most)


def test_names_of_shards_sort_as_their_numbers_however_many_they_are():
    for count in (0, 1, 99_999, 100_000, 100_001, 1_000_000):
        found = names(count)
        assert found == sorted(set(found))
        assert len(found) == count
    assert names(3) == ["00000", "00001", "00002"]


def test_kinds_that_one_hash_confuses_are_told_apart_by_the_next(cohort, monkeypatch):
    lake, manifest, task, there, _ = cohort
    inputs = {role: {"dataset": f"d{n}"} for n, role in enumerate(there)}
    job = parse_job({"name": "j", "model": "m", "output": "o", "inputs": inputs})
    plan = make_plan(lake, job, manifest, task)
    assert len(set(plan.units["refused"].to_pylist())) > 1
    monkeypatch.setattr(units, "HASHES", ("1::ubigint", *units.HASHES[1:]))
    assert make_plan(lake, job, manifest, task).units.equals(plan.units)
    monkeypatch.setattr(units, "HASHES", ("1::ubigint",))
    with pytest.raises(RuntimeError, match="cannot be told apart"):
        make_plan(lake, job, manifest, task)


def test_a_plan_has_one_id_however_its_columns_are_cut(cohort):
    from diastole.jobs.plan import _column_digest

    whole = pa.chunked_array([pa.array(["ab", "", "c", "dé"])])
    cut_up = pa.chunked_array([pa.array(["x", "ab"]).slice(1), pa.array([], pa.string()), pa.array(["", "c", "dé"])])
    assert _column_digest(whole) == _column_digest(cut_up)
    assert _column_digest(whole) != _column_digest(pa.chunked_array([pa.array(["a", "b", "c", "dé"])]))
    numbers = pa.chunked_array([pa.array([5, 1, 2]).slice(1), pa.array([3])])
    assert _column_digest(numbers) == _column_digest(pa.chunked_array([pa.array([1, 2, 3])]))
