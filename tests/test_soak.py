"""A short soak: run after run with a fault in each, and after each the lake is as it should be (tests/soak/)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent / "soak" / "run.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_runs_with_faults_nothing_is_lost_or_doubled_and_no_reader_saw_a_part(tmp_path):
    line = [sys.executable, SOAK, "--runs", "40", "--fresh", "20", "--seed", "1", "--keep", tmp_path]
    done = subprocess.run([str(part) for part in line], capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    counts = json.loads(done.stdout[done.stdout.index("{") :])["counts"]
    assert counts["runs"] == 40
    assert counts["killed"] > 5
    assert counts["reads"] > 500
