"""Ray with a token, or not at all: whoever can reach a Ray without one can run any code in it, as its owner."""

import os
import secrets
import subprocess
import sys
from functools import cache

from ..lake.errors import BusyError

OPEN = "DIASTOLE_ALLOW_OPEN_RAY"
"""Set to 1, a Ray without a token is used all the same: for a closed network that is trusted as a whole."""
MODE = "RAY_AUTH_MODE"
PROBE_SECONDS = 30
"""How long a process without a token may try to get in."""
ADVICE = (
    f"set {MODE}=token and the same RAY_AUTH_TOKEN_PATH on every node before Ray starts, "
    f"or {OPEN}=1 if its network is closed and trusted"
)


def set_token() -> None:
    """Have the Ray that is about to start ask for a token, a new one unless there is one. Raises BusyError if it must not."""
    if _allowed():
        return
    if os.environ.get(MODE, "token") != "token":
        raise BusyError(f"{MODE}={os.environ[MODE]} would start Ray open to anyone: unset it, or set {OPEN}=1")
    if "ray" in sys.modules and os.environ.get(MODE) != "token":  # Ray reads it as it is imported
        raise BusyError(f"ray was imported without a token; set {MODE}=token before, or call ray.init yourself")
    os.environ[MODE] = "token"
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def check_joined(address: str) -> None:
    """Look whether the Ray at an address lets in who has no token. Raises BusyError if it does."""
    if _allowed():
        return
    if os.environ.get(MODE) != "token":
        raise BusyError(f"the Ray that is running was joined without a token: {ADVICE}")
    if _lets_in(address):
        raise BusyError(f"the Ray that is running lets in who has no token: {ADVICE}")


@cache
def _lets_in(address: str) -> bool:
    """Whether `ray status` works without a token. What cannot be found out counts as open."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_TOKEN")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address],
            env={**kept, MODE: "disabled"},
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode == 0 or "AuthenticationError" not in done.stderr


def _allowed() -> bool:
    return os.environ.get(OPEN) == "1"
