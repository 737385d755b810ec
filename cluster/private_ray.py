"""A private Ray on this machine: its own folder, its own token, no dashboard, nothing that it joins or that joins it."""

import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..lake.errors import BusyError, EnvironmentFailure
from ..workers.process import ENVIRONMENT

LONGEST = 40
"""Ray puts sockets some 60 letters below its folder, and a socket's path has 107 at most."""


@contextmanager
def private_ray(workers: int) -> Iterator[None]:
    """Start Ray with a slot for each worker, and stop it. A Ray that the caller has started is used as it is.

    Raises EnvironmentFailure where it does not start.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise BusyError("ray was imported without a token; set RAY_AUTH_MODE=token before, or call ray.init yourself")
    # Ray reads these as it is imported. Without a token, any process of this machine could run code in it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.update(
        {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # the workers inherit it
    import ray

    folder = _folder()
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=100 * 2**20,  # only descriptions of shards and answers pass through it
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=folder,
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
    place = place if len(str(place)) < LONGEST else Path("/tmp")  # noqa: S108 - mkdtemp makes one that is ours alone
    for left in place.glob("dia-*-*"):
        try:
            os.kill(int(left.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (ValueError, PermissionError):
            continue  # not a folder of ours
    return tempfile.mkdtemp(prefix=f"dia-{os.getpid()}-", dir=place)
