"""A private Ray on this machine: its own folder, its own token, on no network, nothing that it joins or that joins it."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..lake.errors import EnvironmentFailure
from ..workers.process import ENVIRONMENT
from . import tokens

LONGEST = 18
"""Letters of the temporary folder. Below it come some 24 of ours and 65 of Ray's, and a socket's path has 107 at most."""

HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""How soon Ray notices that a node is gone; docs/ray.md says how soon that is, and has the same for an operator's Ray."""
SETTINGS = HEALTH | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's name for: this node is 127.0.0.1. Its `_node_ip_address` does not take that, and would listen everywhere.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""What a Ray that we start gets in its environment, where the user has not set it."""


@contextmanager
def private_ray(workers: int, *, dashboard: bool = False) -> Iterator[None]:
    """Start Ray with a slot for each worker, and stop it. A Ray that the caller has started is used as it is.

    The `dashboard`, and Ray's API for jobs with it, is there only for whoever asks for it; it needs `ray[default]`.

    Raises EnvironmentFailure where it does not start, BusyError where it would let in who has no token.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        tokens.check_joined(sys.modules["ray"].get_runtime_context().gcs_address)
        yield
        return
    tokens.set_token()
    for name, value in SETTINGS.items() | ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # Ray reads these as it is imported, and the workers inherit them
    import ray

    folder = _folder()
    below = f"{folder}/r"  # Ray opens the folder that it is given to all users; the one above stays ours
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=dashboard,
            object_store_memory=100 * 2**20,  # only descriptions of shards and answers pass through it
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=below,
        )
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise EnvironmentFailure(
            f"Ray failed: {' '.join(str(error).split())[:300]}; or run with --workers 0"
        ) from error
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> str:
    """A folder for one Ray, short, and named after its driver: what a killed driver left there is removed by the next."""
    place = Path(tempfile.gettempdir())
    place = place if len(str(place)) <= LONGEST else Path("/tmp")  # noqa: S108 - mkdtemp makes one that is ours alone
    for left in place.glob("dia-*-*"):
        try:
            os.kill(int(left.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (ValueError, PermissionError):
            continue  # not a folder of ours
    return tempfile.mkdtemp(prefix=f"dia-{os.getpid()}-", dir=place)
