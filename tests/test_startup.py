"""The command line answers at once because it imports nothing heavy; how soon is measured by `make bench`."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "duckdb", "deltalake", "pyarrow", "numpy", "zarr", "nibabel", "onnxruntime", "scipy")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["models", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import json, sys\n"
        "from typer.testing import CliRunner\n"
        "from diastole.cluster.cli import app\n"
        f"assert CliRunner().invoke(app, {arguments!r}).exit_code == 0\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert loaded.isdisjoint(HEAVY)
