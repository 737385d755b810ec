"""Everything that diastole raises on purpose.

DiastoleError
├── UserError               what a user can mend; the command line prints it in one line and exits with 2
│   ├── LakeError           not a lake, a newer format, a missing key
│   ├── SpecError           a job file, an option or a selection that cannot be meant
│   ├── ModelError          a model package that cannot be trusted or used
│   └── BusyError           another run or driver holds what is asked for
├── ItemError               one item cannot be read or scored; the rest of the cohort goes on
├── EnvironmentFailure      storage, node or memory failed; never held against an item
└── CommitError             what was about to be published is not what was planned
"""

import traceback
from pathlib import PurePath


class DiastoleError(Exception):
    """Base of all errors that diastole raises on purpose."""


class UserError(DiastoleError):
    """Something a user can mend: the message says what is wrong and what to do next."""


class LakeError(UserError):
    """The lake is missing, of a newer format, or its key is not here."""


class SpecError(UserError):
    """A job file, an option or a selection that cannot be meant."""


class ModelError(UserError):
    """A model package that cannot be trusted or used."""


class BusyError(UserError):
    """Another run or another driver holds what was asked for."""


class ItemError(DiastoleError):
    """One item cannot be read or scored. The message never holds subject data or file names."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        """Short, stable, in snake_case: `unreadable`, `digest_mismatch`, `non_finite_output`, …"""


class EnvironmentFailure(DiastoleError):  # noqa: N818 - OSError is EnvironmentError already
    """Storage, node or memory failed. The shard goes back; nothing is recorded against an item."""


class CommitError(DiastoleError):
    """What was about to be published is not what was planned; nothing was published."""


def kind_and_place(error: BaseException) -> str:
    """What was raised and where, without its text: that may quote an item's data, and errors are kept and shown."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return type(error).__name__ + "".join(f" in {PurePath(at.filename).name}, line {at.lineno}" for at in last)
