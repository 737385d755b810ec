"""The budget of errors: a run of which most units fail has a broken model, and stops instead of quarantining the cohort."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..lake.errors import ModelError
from ..lake.layout import Lake
from . import receipts, runs
from .ledger import Ledger
from .plan import Plan
from .spec import Resources


def check(lake: Lake, plan: Plan, ledger: Ledger, resources: Resources) -> None:
    """Stop a run of which more units failed at scoring than `max_failed` lets. Raises ModelError.

    What its receipts hold says so; what the plan refused does not count, nor does what failed for the environment, of
    which there is no receipt. What is done stays, and the run is known as stopped.
    """
    failed = ledger.codes.total()
    tried = ledger.scored + failed
    if tried < resources.max_failed_after or failed <= resources.max_failed * tried:
        return
    counts = ", ".join(f"{number} {code}" for code, number in ledger.codes.most_common())
    runs.stop(lake, plan.run_id, {"tried": tried, "codes": dict(ledger.codes)})
    raise ModelError(
        f"{failed} of {tried} units failed ({counts}), so run {plan.run_id[:8]} stopped and published nothing. "
        f"See why: diastole run JOB --only {_first(lake, plan)} --workers 0. Then run again with the mended model; "
        "with --replan where something else was mended; or with --ignore-errors, to go on as it is"
    )


def _first(lake: Lake, plan: Plan) -> str:
    """An item that failed."""
    for receipt in receipts.read_all(lake, plan.run_id):
        for part in receipt.parts if receipt.codes else ():
            if part.level == "item":
                with lake.store.open(f"{lake.predictions(plan.output)}/{part.path}") as file:
                    rows = pq.read_table(file, columns=["item_id", "error_code"])
                found = rows.filter(pc.is_in(rows["error_code"], pa.array(list(receipt.codes or ()))))
                return str(found["item_id"][0])
    return "ITEM"
