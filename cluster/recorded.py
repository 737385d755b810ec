"""What the command line has done with a lake, for its audit: begun as the lake is opened, written as the command ends."""

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from typer.core import TyperGroup

from ..lake.errors import EnvironmentFailure

PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(@[a-z0-9][a-z0-9._-]{0,62})?")
"""Names of datasets, outputs, jobs and models; anything else that is typed there may be a person's."""
NAMES = {"dataset": "dataset", "output": "output", "ref": "model", "model": "model", "name": "model"}
"""Parameters of commands that are such names, and what the record calls them."""
ROOMS = {"dataset": "datasets", "output": "predictions", "model": "models"}
"""Where the lake has what has such a name: a word that is none of its names is not written down."""
FLAGS = (
    "deep",
    "repair",
    "retry",
    "replan",
    "ignore_errors",
    "verify",
    "dry_run",
    "forget",
    "with_estimate",
    "public",
    "allow_gone",
    "allow_burned_in",
)
_current: dict[str, Any] = {}


class Recorded(TyperGroup):
    """A group of commands, of which the one that is called is known here."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command that says what it was called with."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.__dict__["invoke"] = partial(_invoked, command.invoke)
        return command


def _invoked(invoke: Callable[[Any], Any], context: Any) -> Any:
    """Names and switches of a command are noted, nothing else that was typed."""
    facts = _current["facts"] = {"command": _name(context)}
    for parameter, value in context.params.items():
        if parameter in NAMES and isinstance(value, str) and PLAIN.fullmatch(value):
            facts[NAMES[parameter]] = value
        elif parameter in FLAGS and value:
            facts[parameter] = True
    return invoke(context)


def _name(context: Any) -> str:
    """As `models add`: without the program's, whatever that was called."""
    outer = _name(context.parent) if context.parent.parent is not None else ""
    return f"{outer} {context.info_name}".strip()


def begin(lake: Any) -> None:
    """A command has opened a lake."""
    _current["lake"] = lake


def noted(**facts: Any) -> None:
    """Say more of the command: ids, plain names, counts."""
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
