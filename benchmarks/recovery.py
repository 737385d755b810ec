"""How long a run stands still when a worker, a node or its driver dies: on a real Ray of several nodes on this machine.

    python benchmarks/recovery.py [--times 5] [--what worker node hung driver] [--docs]

A run of one worker scores shards of half a second. When it has begun, its worker is killed; or its node, with the raylet
and all; or its node hangs (SIGSTOP); or its driver is killed and the same command is given again at once. Another node is
free. Measured are the seconds from there to the next receipt, of which the shard itself is half a second, and to the end
of the run. Nodes look for each other as a Ray of ours does. Prints a table; --docs writes docs/recovery.json.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import made  # noqa: E402 - beside the tests, whose nodes and cohorts it uses
import psutil  # noqa: E402
from ray_nodes import Nodes  # noqa: E402

from diastole.cluster.private_ray import HEALTH  # noqa: E402
from diastole.lake.layout import Lake  # noqa: E402

KINDS = ("worker", "node", "hung", "driver")
SHARDS = 12


def receipts(lake: Lake) -> int:
    return sum(1 for _ in lake.store.list("runs") if "/receipts/" in _[0])


def wait(lake: Lake, count: int, seconds: float = 180.0) -> float:
    """Wait for so many receipts; when they were there."""
    until = time.monotonic() + seconds
    while receipts(lake) < count:
        if time.monotonic() > until:
            raise SystemExit("no receipt came")
        time.sleep(0.02)
    return time.monotonic()


def measure(kind: str, nodes: Nodes, folder: Path) -> dict[str, float]:
    os.environ |= {"DIASTOLE_KEYS": str(folder / "keys"), "DIASTOLE_ALLOW_CODE": ""}
    lake = Lake.create(str(folder / "lake"))
    made.add_proteins(lake, folder / "src", made.proteins(15 * SHARDS, low=40, high=80))
    made.residues(lake, batch=2**16, options={"pause": 0.5})
    file = made.job_file(folder, resources={"workers": 1, "attempts": 1})
    mine = {name: os.environ[name] for name in ("DIASTOLE_KEYS", "DIASTOLE_ALLOW_CODE")}
    environment = {**mine, "DIASTOLE_LAKE": lake.store.root}
    driver = nodes.drive("run", file, "--json", **environment)
    wait(lake, 2)
    [worker] = nodes.workers()
    before = receipts(lake)
    begun = time.monotonic()
    stopped = hit(kind, nodes, driver, worker)
    if kind == "driver":
        driver.communicate()
        driver = nodes.drive("run", file, "--json", **environment)
    next_one = wait(lake, before + 1) - begun
    out, err = driver.communicate(timeout=180)
    took = time.monotonic() - begun
    for process in stopped:
        process.send_signal(signal.SIGCONT)
    psutil.wait_procs(stopped, timeout=20)  # what wakes may still write into the lake
    if driver.returncode or json.loads(out)["failed"]:
        raise SystemExit(err)
    made.assert_each_once(lake, 15 * SHARDS)
    return {"next_receipt_s": round(next_one, 2), "end_s": round(took, 2)}


def hit(kind: str, nodes: Nodes, driver: "subprocess.Popen[str]", worker: Any) -> list[Any]:
    """Do it. Processes that are to be woken."""
    if kind == "worker":
        worker.kill()
    elif kind == "driver":
        driver.kill()
    else:
        [victim] = [node for node in nodes.nodes if worker in nodes.processes(node)]
        nodes.nodes.remove(victim)
        processes = nodes.signal(victim, signal.SIGSTOP if kind == "hung" else signal.SIGKILL)
        nodes.nodes.append(nodes.add())
        return processes if kind == "hung" else []
    return []


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Median and maximum of what was measured, and of how many processes wanted a core meanwhile."""
    return {
        name: {
            "median": round(statistics.median(r[name] for r in runs), 2),
            "max": max(r[name] for r in runs),
            "runs": len(runs),
        }
        for name in ("next_receipt_s", "end_s", "load")
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--what", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--docs", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count(), "health": HEALTH, "shard_s": 0.5, "measured": {}}
    for kind in arguments.what:
        runs = []
        with Nodes(2, **HEALTH) as nodes:
            for _ in range(arguments.times):
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    runs.append({**measure(kind, nodes, Path(folder)), "load": round(os.getloadavg()[0], 1)})
                print(json.dumps({"what": kind, **runs[-1]}), flush=True)
        found["measured"][kind] = summary(runs)
    print(
        f"{'':8}{'next receipt, s':>24}{'end of the run, s':>24}\n{'':8}{'median':>12}{'max':>12}{'median':>12}{'max':>12}"
    )
    for kind, values in found["measured"].items():
        numbers = [values[name][of] for name in ("next_receipt_s", "end_s") for of in ("median", "max")]
        print(f"{kind:8}" + "".join(f"{number:12.2f}" for number in numbers))
    if arguments.docs:
        path = ROOT / "docs" / "recovery.json"
        before = json.loads(path.read_text())["measured"] if path.exists() else {}
        found["measured"] = {**before, **found["measured"]}  # what was not measured now stays as it was
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
