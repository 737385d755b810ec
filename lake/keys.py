"""The lake's key, which makes ids opaque. It lives outside of the lake, in a file that only its owner can read."""

import os
import secrets
from pathlib import Path

from .errors import LakeError


def folder() -> Path:
    """Where keys lie: DIASTOLE_KEYS, else ~/.config/diastole/keys."""
    return Path(os.environ.get("DIASTOLE_KEYS") or Path.home() / ".config" / "diastole" / "keys")


def create(lake_id: str) -> bytes:
    """Make the key of a new lake, readable by its owner only."""
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder() / f"{lake_id}.key"
    key = secrets.token_bytes(32)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key.hex().encode())
    return key


def load(lake_id: str) -> bytes:
    """Read a lake's key. Raises LakeError where it is not on this machine."""
    path = folder() / f"{lake_id}.key"
    try:
        return bytes.fromhex(path.read_text().strip())
    except FileNotFoundError:
        raise LakeError(
            f"the key of lake {lake_id} is not in {folder()}; copy {lake_id}.key there, "
            "or point DIASTOLE_KEYS at the folder that has it"
        ) from None
    except ValueError:
        raise LakeError(f"{lake_id}.key in {folder()} is damaged; restore it from its backup") from None
