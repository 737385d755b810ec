"""`make audit`: known faults of the packages that constraints.txt pins, by pip-audit.

Exit code 1 where one is known, 0 where none is, and 0 with the word 'not audited' where its data cannot be reached.
"""

import subprocess
import sys

SECONDS = 60


def main() -> int:
    """Ask, and say what came of it."""
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, "--timeout", "5", "-r", sys.argv[1]],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"not audited: no answer within {SECONDS} s")
        return 0
    lines = (done.stdout + done.stderr).strip().splitlines() or ["pip-audit said nothing"]
    if done.returncode == 0 or "known vulnerabilit" in done.stderr:
        print("\n".join(lines))
        return done.returncode
    print(f"not audited: {lines[-1][:200]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
