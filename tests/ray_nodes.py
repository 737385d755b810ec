"""A Ray of several nodes on this machine, of real raylets, that tests and benchmarks kill, pause and drain.

The nodes are children of a process of its own (`serve`), so that nothing of them is left in the test's. What drives a run
is another (`drive`): it joins the Ray as a user's script would, and is the command line from then on.
"""

import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

HEALTH = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}


class Nodes:
    """A head without cores, and nodes with one core each."""

    def __init__(self, nodes: int, seed: int = 0, **environment: str) -> None:
        self.chosen = random.Random(seed)
        self.folder = tempfile.mkdtemp(prefix="dia-t", dir="/tmp")
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        self.environment = {**os.environ, **quiet, **HEALTH, **token, **environment}
        self._said = Path(self.folder) / "serve.err"
        with self._said.open("w") as said:
            self._server = subprocess.Popen(
                [sys.executable, __file__, "serve", self.folder],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                start_new_session=True,
            )
        try:
            self.head = self.ask("head")
            self.nodes = [self.add() for _ in range(nodes)]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Have the server do something; what it says of it."""
        print(json.dumps({"do": what, **more}), file=self._server.stdin, flush=True)
        line = self._server.stdout.readline()
        assert line, self._said.read_text()[-2000:]
        return json.loads(line)

    def add(self) -> dict[str, Any]:
        """One more node: its raylet's process id, and Ray's id for it."""
        return self.ask("add")

    def drain(self, node: dict[str, Any], seconds: float) -> bool:
        """Tell Ray that a node will be gone in so many seconds. Whether Ray takes note."""
        return self.ask("drain", node=node["node"], seconds=seconds)["accepted"]

    def kill_gcs(self) -> None:
        """The head's service is gone, with all that it knew."""
        os.kill(self.head["gcs"], signal.SIGKILL)

    def processes(self, node: dict[str, Any]) -> list[psutil.Process]:
        """A node's raylet, and all that it started."""
        with suppress(psutil.NoSuchProcess):
            raylet = psutil.Process(node["raylet"])
            return [raylet, *raylet.children(recursive=True)]
        return []

    def signal(self, node: dict[str, Any], number: signal.Signals) -> list[psutil.Process]:
        """All processes of a node get a signal, the raylet first: a machine that loses its power, or hangs."""
        found = self.processes(node)
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return found

    def workers(self) -> list[psutil.Process]:
        """Our actors, on all nodes, that are past their start."""
        found = []
        for node in [self.head, *self.nodes]:
            for process in self.processes(node):
                with suppress(psutil.NoSuchProcess):
                    if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                        found.append(process)
        return found

    def drive(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """The command line in a process that has joined this Ray."""
        return subprocess.Popen(
            [sys.executable, __file__, "drive", self.head["address"], *arguments],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def close(self) -> None:
        """End all of it."""
        left = psutil.Process(self._server.pid).children(recursive=True)
        for process in [*left, self._server]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._server.wait()
        psutil.wait_procs(left, timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)


def serve(folder: str) -> None:
    """Start nodes, and say of each what its processes are."""
    from threading import Thread

    from ray.cluster_utils import Cluster

    dashboard = os.environ.get("NODES_DASHBOARD") == "1"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": dashboard,
            "temp_dir": folder,
            "object_store_memory": 80 * 2**20,
            **({"dashboard_port": 0} if dashboard else {}),
        },
    )

    def reap() -> None:
        while True:
            for node in cluster.list_all_nodes():  # a raylet that is not waited for would look alive to its workers
                node.any_processes_alive()
            time.sleep(0.1)

    Thread(target=reap, daemon=True).start()
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_answer(cluster, asked)), flush=True)


def _answer(cluster: Any, asked: dict[str, Any]) -> dict[str, Any]:
    if asked["do"] == "head":
        processes = cluster.head_node.all_processes
        return {
            "address": cluster.address,
            "gcs": processes["gcs_server"][0].process.pid,
            "raylet": processes["raylet"][0].process.pid,
            "webui": cluster.head_node.webui_url,
            "session": cluster.head_node.get_session_dir_path(),
        }
    if asked["do"] == "add":
        node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        return {"raylet": node.all_processes["raylet"][0].process.pid, "node": node.node_id}
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + asked["seconds"]) * 1000)
    accepted, _ = GcsClient(address=cluster.address).drain_node(asked["node"], reason, "", deadline)
    return {"accepted": accepted}


def drive(address: str, arguments: list[str]) -> None:
    """Join a Ray, then be the command line."""
    import logging

    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    from diastole.cluster import cli

    sys.argv = ["diastole", *arguments]
    cli.main()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        drive(sys.argv[2], sys.argv[3:])
