"""Who gets which shard, told by a clock that the test sets."""

import made
import pytest

from diastole.cluster.driver import Choice, plan_job
from diastole.jobs import dispatch, receipts, runs
from diastole.jobs.dispatch import Dispatcher
from diastole.jobs.ledger import RETURNS, Ledger
from diastole.jobs.receipts import Receipt
from diastole.lake.errors import EnvironmentFailure


@pytest.fixture
def plan(lake, tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setattr("diastole.jobs.plan.SHARD_COST", (100, 10**9))
    made.add_proteins(lake, tmp_path / "src", made.proteins(32, low=20, high=20))
    made.residues(lake)
    planned = plan_job(lake, made.job(resources={"attempts": 1}), Choice())[0]
    runs.start(lake, planned)
    return planned


class Workers:
    """Workers that do what the test says, at the time that it says."""

    def __init__(self, lake, plan, names):
        self.now, self.lake, self.plan = 0.0, lake, plan
        self.ledger = Ledger(lake, plan, in_process=False)
        self.dispatcher = Dispatcher(self.ledger, lambda: self.now)
        self.given = {}
        for name in names:
            self.join(name)

    def join(self, name):
        self.given[name] = {}
        self.dispatcher.join(name)

    def fill(self):
        given = list(self.dispatcher.fill())
        for worker, shard in given:
            self.given[worker][shard.shard] = shard
        return given

    def begin(self, worker, name):
        shard = self.given[worker][name]
        self.number = receipts.mark_attempt(
            self.lake, self.plan.run_id, name, in_process=False, session=shard.session, alone=shard.alone
        )

    def finish(self, worker, name):
        shard = self.given[worker].pop(name)
        receipt = receipts.put(self.lake, Receipt(self.plan.run_id, name, self.number, scored=shard.units.num_rows))
        return self.dispatcher.done(worker, receipt)

    def die(self, worker):
        del self.given[worker]
        return self.dispatcher.died(worker)

    def until_only_the_first_is_left(self):
        """b and c score all but what a has, a second for each shard."""
        while True:
            self.fill()
            left = [(w, name) for w in self.given if w != "a" for name in self.given[w]]
            if not left:
                return
            self.now += 1.0
            self.begin(*left[0])
            self.finish(*left[0])


@pytest.fixture
def late(lake, plan, monkeypatch):
    """All is done but what `a` has begun, and what is in its mailbox."""
    monkeypatch.setattr(dispatch, "LATE_SECONDS", 60.0)
    workers = Workers(lake, plan, "abc")
    workers.fill()
    workers.begin("a", next(iter(workers.given["a"])))
    workers.until_only_the_first_is_left()
    assert workers.ledger.open == 2
    return workers


def test_what_a_worker_is_late_with_goes_to_idle_ones_too_and_not_before_it_is_late(lake, plan, monkeypatch):
    monkeypatch.setattr(dispatch, "LATE_SECONDS", 60.0)
    workers = Workers(lake, plan, "abc")
    workers.fill()
    workers.until_only_the_first_is_left()
    held = list(workers.given["a"])
    assert (len(held), workers.ledger.open) == (2, 2)
    assert workers.now < 60.0
    assert workers.fill() == []
    workers.now = 60.1
    copies = workers.fill()
    assert [(shard.shard, shard.copy, shard.alone) for _, shard in copies] == [(name, True, False) for name in held]
    assert {worker for worker, _ in copies} == {"b", "c"}
    workers.now = 1000.0
    assert workers.fill() == []  # two have it, and that is enough


def test_late_is_late_for_a_shards_cost(lake, plan, monkeypatch):
    monkeypatch.setattr(dispatch, "LATE_SECONDS", 0.0)
    workers = Workers(lake, plan, "abc")
    workers.fill()
    hand = workers.dispatcher._hands["a"]
    hand.costs = {name: 100 * cost for name, cost in hand.costs.items()}
    workers.until_only_the_first_is_left()
    workers.now = 150.0
    assert workers.fill() == []  # others took a second each, this one has a hundred times their cost
    workers.now = 250.0
    assert workers.fill() != []


def finish_copies(workers):
    workers.now += 100.0
    copies = workers.fill()
    assert len(copies) == 2
    for worker, shard in copies:
        assert shard.copy
        workers.begin(worker, shard.shard)
        assert workers.finish(worker, shard.shard)


def test_the_first_receipt_of_two_counts_and_what_the_other_says_later_changes_nothing(late):
    held = list(late.given["a"])
    finish_copies(late)
    assert late.ledger.finished
    assert late.ledger.units_done == 32
    assert not late.finish("a", held[0])
    late.dispatcher.returned("a", held[1], "503")
    assert (late.ledger.units_done, late.ledger.waiting) == (32, 0)
    again = Ledger(late.lake, late.plan, in_process=False)
    assert (again.finished, again.units_done) == (True, 32)


def test_who_dies_late_of_what_others_have_done_is_not_missed(late):
    finish_copies(late)
    assert late.die("a")
    assert late.ledger.waiting == 0
    assert receipts.deaths(late.lake, late.plan.run_id, "") == {}


def test_a_copy_that_dies_is_not_blamed_as_if_it_were_alone_and_nobody_else_is_risked(late):
    begun, _ = late.given["a"]
    late.now += 100.0
    [copier] = [worker for worker, shard in late.fill() if shard.shard == begun]
    late.begin(copier, begun)
    assert late.die(copier)
    assert receipts.deaths(late.lake, late.plan.run_id, "") == {begun: 0}
    assert late.ledger.waiting == 0  # the first one still has it
    late.join("d")
    late.now += 100.0
    assert begun not in [shard.shard for _, shard in late.fill()]
    assert late.die("a")  # now it has killed two, none of them alone
    assert receipts.deaths(late.lake, late.plan.run_id, "") == {begun: 0}
    late.join("e")
    [(_, shard)] = late.fill()
    assert (shard.shard, shard.alone, shard.copy) == (begun, True, False)


def test_a_copy_that_comes_back_leaves_the_first_ones_attempt_to_be_blamed(late):
    begun, _ = late.given["a"]
    late.now += 100.0
    [copier] = [worker for worker, shard in late.fill() if shard.shard == begun]
    late.begin(copier, begun)
    late.dispatcher.returned(copier, begun, "503")
    assert late.ledger.waiting == 0
    assert late.die("a")
    assert receipts.deaths(late.lake, late.plan.run_id, "") == {begun: 0}


def test_a_suspect_is_never_copied(lake, plan):
    workers = Workers(lake, plan, "abc")
    workers.fill()
    poisoned = next(iter(workers.given["b"]))
    workers.begin("b", poisoned)
    assert workers.die("b")
    workers.join("a2")
    while poisoned not in {name for held in workers.given.values() for name in held}:
        workers.fill()
        worker, name = next((w, n) for w in workers.given for n in workers.given[w] if n != poisoned)
        workers.now += 1.0
        workers.begin(worker, name)
        workers.finish(worker, name)
    workers.now += 1000.0
    assert poisoned not in [shard.shard for _, shard in workers.fill() if shard.copy]


@pytest.mark.fault(17)
def test_who_may_hang_is_told_by_the_pace_of_the_run_within_bounds(lake, plan):
    workers = Workers(lake, plan, "abc")
    workers.fill()
    workers.now = dispatch.DEADLINE[1]
    assert list(workers.dispatcher.overdue()) == []  # nothing has ended: it is not known how long a shard takes
    workers.now += 1.0
    assert {deadline for _, deadline in workers.dispatcher.overdue()} == {1800.0}
    workers = Workers(lake, plan, "abc")
    workers.fill()
    workers.until_only_the_first_is_left()
    workers.now = 300.0
    assert list(workers.dispatcher.overdue()) == []
    workers.now = 301.0
    assert list(workers.dispatcher.overdue()) == [("a", 300.0)]  # others took a second each
    hand = workers.dispatcher._hands["a"]
    hand.costs = {name: 50 * cost for name, cost in hand.costs.items()}
    assert list(workers.dispatcher.overdue()) == []
    workers.now = 1100.0
    assert [worker for worker, _ in workers.dispatcher.overdue()] == ["a"]


@pytest.mark.fault(17)
def test_a_shard_that_hung_alone_is_halved_at_once_and_one_that_died_is_not(lake, plan):
    for outcome, split in (("died", False), ("hung", True)):
        ledger = Ledger(lake, plan, in_process=False)
        ledger.limit = 3
        shard = ledger.take().shard
        while (given := ledger.take()) is not None:
            ledger.receive(receipts.put(lake, Receipt(plan.run_id, given.shard, 1, scored=given.units.num_rows)))
        for _ in range(2):  # beside others, then alone
            suspect = next((s for s in [shard] if ledger._state(s) == 1), None) or ledger.take(idle=True).shard
            receipts.mark_attempt(
                lake,
                plan.run_id,
                suspect,
                in_process=False,
                session=ledger.session,
                alone=suspect in ledger._alone,
            )
            ledger.died([suspect], outcome=outcome)
        assert ("-" in ledger.take(idle=True).shard) == split
        for folder in ("attempts", "receipts"):
            for path, _ in list(lake.store.list(f"runs/{plan.run_id}/{folder}")):
                lake.store.delete(path)


@pytest.mark.fault(7)
def test_a_worker_that_is_lost_with_its_node_is_held_against_nothing_and_its_shards_go_back(lake, plan):
    workers = Workers(lake, plan, "ab")
    workers.fill()
    begun, _ = workers.given["a"]
    waiting = workers.ledger.waiting
    workers.begin("a", begun)
    workers.dispatcher.lost("a", "its node was lost")
    assert workers.ledger.waiting == waiting + 2
    assert receipts.deaths(lake, plan.run_id, "") == {}
    workers.join("c")
    assert not any(shard.alone for _, shard in workers.fill())


@pytest.mark.fault(7)
def test_a_shard_that_is_lost_again_and_again_stops_the_run_and_is_not_quarantined(lake, plan):
    workers = Workers(lake, plan, "a")
    workers.fill()
    begun = next(iter(workers.given["a"]))
    for _ in range(RETURNS - 1):
        workers.begin("a", begun)
        workers.dispatcher.lost("a", "its node was lost")
        workers.join("a")
        while begun not in workers.given["a"]:  # it comes again when all that is fresh is done
            workers.fill()
            for name in [name for name in workers.given["a"] if name != begun]:
                workers.begin("a", name)
                workers.finish("a", name)
    workers.begin("a", begun)
    with pytest.raises(EnvironmentFailure, match=f"shard {begun} came back {RETURNS} times: its node was lost"):
        workers.dispatcher.lost("a", "its node was lost")
    assert receipts.deaths(lake, plan.run_id, "") == {}
