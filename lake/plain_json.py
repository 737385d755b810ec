"""JSON files of a lake, which anybody may have written."""

import json
from typing import Any


def from_json(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else, also for what is nested so deep that Python cannot read it."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - of a file, not of an argument
    return value
