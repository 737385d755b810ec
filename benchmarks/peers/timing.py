"""How a peer is called, and what it says at its end: seconds from the first network that was ready to the last row."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Peer = Callable[[Path, Path, dict[str, Any]], None]
"""The cohort's folder, the folder for predictions (Parquet), the settings."""


def main(peer: Peer) -> None:
    """Run a peer from the command line; prints JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", type=json.loads)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    peer(arguments.folder, arguments.out, arguments.settings)
    ended = time.time()
    begun = min(float(path.read_text()) for path in arguments.out.glob("ready-*"))
    print(json.dumps({"seconds": round(ended - begun, 3)}))
