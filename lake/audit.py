"""Who did what with a lake: one record per command, in files that are only ever added.

    audit/YYYY-MM-DD/TIME-RANDOM.json

A record has opaque ids, plain names of datasets, outputs, jobs and models, and counts. What a user typed that could name a
person (natural keys, paths, conditions) is in none.
"""

import json
import os
import pwd
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from .layout import Lake

FOLDER = "audit"


def record(lake: Lake, said: Mapping[str, Any]) -> None:
    """Add a record of a command that ends now. Raises EnvironmentFailure or OSError where the lake cannot be written."""
    now = datetime.now(UTC)
    who = {"at": now.isoformat(timespec="milliseconds"), "user": _user(), "uid": os.getuid()}
    where = {"host": socket.gethostname(), "pid": os.getpid()}
    path = f"{FOLDER}/{now:%Y-%m-%d}/{now:%H%M%S%f}-{uuid.uuid4().hex[:12]}.json"
    lake.store.put_if_absent(path, json.dumps({**who, **where, **said}).encode())


def read(lake: Lake, since: date | None = None) -> list[dict[str, Any]]:
    """All records, or those since a day (UTC), oldest first. One that is damaged is there with `damaged` alone."""
    days = [day for day in lake.store.folders(FOLDER) if since is None or day >= since.isoformat()]
    paths = [path for day in days for path, _ in lake.store.list(f"{FOLDER}/{day}")]
    return [_read(lake, path) for path in paths]


def _read(lake: Lake, path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(lake.store.get(path)))
    except ValueError:
        return {"damaged": path}


def _user() -> str:
    """The account's name: by its number, since the environment may say anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, a number may have none
        return str(os.getuid())
