"""`make audit`: known faults of the packages that constraints.txt pins, by pip-audit.

Exit code 1 where one is known, 0 where none is. Where data of faults cannot be reached, of all packages or of some, it says
`not audited: …` and how many: pip-audit itself would say that nothing was found. One package is asked about first, so that an
index without such data is not asked a hundred times.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 90


def ask(requirements: str) -> tuple[list[dict[str, Any]], str]:
    """What pip-audit knows of each package of a file, and where it knows nothing at all, why."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
        "--timeout",
        "5",
    ]
    try:
        done = subprocess.run(
            [*command, "--format", "json", "-r", requirements],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return list(json.loads(done.stdout)["dependencies"]), ""
    except subprocess.TimeoutExpired:
        return [], f"no answer within {SECONDS} s"
    except (ValueError, KeyError):
        return [], (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:200]


def main(lock: str) -> int:
    """Ask, and say what came of it."""
    pinned = [line for line in Path(lock).read_text().splitlines() if "==" in line]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as one:
        one.write(pinned[0] + "\n")
        one.flush()
        found, why = ask(one.name)
    if why or all("skip_reason" in package for package in found):
        print(f"not audited: {why or 'the package index that is set up here has no data of known faults'}")
        return 0
    found, why = ask(lock)
    bad = [(p["name"], p["version"], fault["id"]) for p in found for fault in p.get("vulns", ())]
    left = len(pinned) - sum("skip_reason" not in package for package in found)
    print("\n".join(" ".join(fault) for fault in bad) or "no known faults in what was audited")
    if left or why:
        print(f"not audited: {left} of {len(pinned)} packages; {why or 'the index has no data of them'}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
