"""What the command line has done with a lake, for its audit: begun as the lake is opened, written as the command ends."""

import re
import sys
from typing import Any

from ..lake.errors import EnvironmentFailure

PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(@[a-z0-9][a-z0-9._-]{0,62})?")
"""Names of datasets, outputs, jobs and models; anything else that is typed there may be a person's."""
NAMES = {"dataset": "dataset", "output": "output", "ref": "model", "model": "model", "name": "model"}
"""Parameters of commands that are such names, and what the record calls them."""
ROOMS = {"dataset": "datasets", "output": "predictions", "model": "models"}
"""Where the lake has what has such a name: a word that is none of its names is not written down."""
FLAGS = ("deep", "retry", "replan", "verify", "dry_run", "forget", "with_estimate")
_current: dict[str, Any] = {}


def begin(lake: Any) -> None:
    """A command has opened a lake. Its names and switches are noted, nothing else that was typed."""
    import click

    context = click.get_current_context(silent=True)
    _current.clear()
    _current["lake"] = lake
    if context is None:
        return
    noted(command=context.command_path.partition(" ")[2])
    for parameter, value in context.params.items():
        if parameter in NAMES and isinstance(value, str) and PLAIN.fullmatch(value):
            noted(**{NAMES[parameter]: value})
        elif parameter in FLAGS and value:
            noted(**{parameter: True})


def noted(**facts: Any) -> None:
    """Say more of the command: ids, plain names, counts."""
    if _current:
        _current.setdefault("facts", {}).update(facts)


def forget() -> None:
    """A command begins, which has opened no lake yet."""
    _current.clear()


def end(code: int) -> None:
    """Write the record, if a lake was opened. Where that cannot be, it is said, and changes nothing."""
    if "lake" not in _current:
        return
    from ..lake import audit

    lake, facts = _current["lake"], _current.get("facts", {})
    _current.clear()
    try:
        for name, room in ROOMS.items():
            if name in facts and facts[name].partition("@")[0] not in lake.store.folders(room):
                del facts[name]
        audit.record(lake, {**facts, "exit": code})
    except (OSError, EnvironmentFailure):
        print("note: this command is not in the audit record: the lake cannot be written to", file=sys.stderr)
