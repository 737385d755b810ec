"""Daft: read_parquet → a class with a batch method → write_parquet.

Settings: `workers` (max_concurrency), `processes` (use_process), torch's `threads` in each, `batch` (rows).
"""

from pathlib import Path
from typing import Any

import daft
import pyarrow as pa
from pieces import files
from scoring import KINDS, from_arrow, scorer
from timing import main


class Predictor:
    """One network."""

    def __init__(self, folder: Path, out: Path, settings: dict[str, Any]) -> None:
        self.score = scorer(folder, out, settings)

    def __call__(self, number: Any, data: Any) -> Any:
        found = self.score(from_arrow(number.to_arrow(), data.to_arrow())).combine_chunks()
        return pa.StructArray.from_arrays(
            [column.combine_chunks() for column in found.columns], fields=list(found.schema)
        )


def run(folder: Path, out: Path, settings: dict[str, Any]) -> None:
    """Score and write."""
    import json

    schema = KINDS[json.loads((folder / "settings.json").read_text())["kind"]].schema
    returned = daft.DataType.from_arrow_type(pa.struct(list(schema)))
    Predictor.__call__ = daft.method.batch(  # what it returns is known only here
        Predictor.__call__, return_dtype=returned, unnest=True, batch_size=settings["batch"]
    )
    made = daft.cls(Predictor, max_concurrency=settings["workers"], use_process=settings["processes"])
    predict = made(folder, out, settings)
    rows = daft.read_parquet([str(path) for path in files(folder, "parquet", settings.get("share", 1.0))])
    rows.select(predict(rows["number"], rows["data"])).write_parquet(str(out / "parts"))


if __name__ == "__main__":
    main(run)
