"""Model packages: a folder with `model.yaml` and weights, pinned by sha256, immutable once it is in the lake."""

import re
import sys
from functools import cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import ModelError
from .ids import digest, sha256_bytes
from .layout import Lake, check_name
from .plain_yaml import from_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Strict):
    """A closed interval; what is left out is open."""

    min: float | None = None
    max: float | None = None

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class InputContract(_Strict):
    """What an item must be for this model. An item that is not is refused before any compute."""

    modality: list[str] = Field(default_factory=list)
    """MR, CT, EEG, dna, protein, …; empty: any."""
    axes: str | None = None
    """Axes as stored: `zyx` for a volume, `channel time` for a recording."""
    orientation: str | None = None
    """The voxel axes that the net sees, first to last: RAS, LPS, … Items of another are turned."""
    spacing_mm: Range | None = None
    """Bounds of the voxel spacing along each axis, in mm."""
    rate_hz: Range | None = None
    """Bounds of the sampling rate, in Hz."""
    duration_s: Range | None = None
    """Bounds of a recording's length, in s."""
    unit: str | None = None
    """Unit of the values that the net sees (UCUM): recordings in V, mV, uV or nV are converted into it, others refused."""
    alphabet: str | None = None
    """The letters that a sequence may have."""
    length: Range | None = None
    """Bounds of a sequence's length, in letters."""


class PackageFile(_Strict):
    """One file of the package."""

    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if PurePosixPath(path).name != path or path.startswith("."):
            raise ValueError("a file lies directly in the package's folder")
        return path


class Source(_Strict):
    """Where the weights came from."""

    package: str
    version: str
    members: dict[str, str]
    """Name of the file in `files` → member of the package's archive."""


class Manifest(_Strict):
    """`model.yaml`."""

    name: str
    version: str
    task: str
    runtime: Literal["torchscript", "onnx", "python"]
    files: dict[str, PackageFile]
    """Weights and tables by the name that the task calls them."""
    network: str | None = None
    """`module:callable` that builds the network of a Python package; `file.py:callable` for a file of the package."""
    network_sha256: str | None = None
    """SHA-256 of the code that `network` names (`network_code` says how much of it), filled in when the package is added."""
    network_options: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, InputContract]
    """By role; the first names the result."""
    classes: list[str] = Field(default_factory=list)
    """In the order of the probabilities."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the task needs to know of this model: scaling, windows, thresholds. The task checks them."""
    batch: int = Field(default=1, ge=1)
    """Windows in one batch at most."""
    tolerance: float = 1e-5
    """By how much a probability may differ between devices, threads and batch shapes."""
    description: str = ""
    licence: str = "unknown"
    permitted_use: str | None = None
    citation: str = ""
    source: Source | None = None

    @property
    def ref(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @cached_property
    def model_digest(self) -> str:
        """Digest of weights, code and contract; what only describes the model is left out.

        Of the code of an installed network it holds what `network_code` gives: its whole package, not what that imports.
        """
        prose = {"description", "licence", "permitted_use", "citation", "source"}
        return digest(self.model_dump(mode="json", exclude=prose))


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read `model.yaml`. Raises ModelError with the first thing that is wrong."""
    try:
        return Manifest.model_validate(from_yaml(data))
    except ValidationError as error:
        raise ModelError(f"{where}: {first_problem(error)}") from None
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from None


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line, with the number of the others."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    # A misspelt key explains a missing one, so it comes first.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    at = ".".join(str(part) for part in first["loc"]) or "the file"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return " ".join(f"{at}: {first['msg'][0].lower()}{first['msg'][1:]}"[:300].split()) + more


def add(lake: Lake, manifest: Manifest, files: dict[str, bytes]) -> Manifest:
    """Put a package into the lake. `files` has the bytes by path. Adding the same again changes nothing.

    Raises ModelError where a file's sha256 is not the pinned one, or other bytes have that version already.
    """
    for entry in manifest.files.values():
        if entry.path not in files:
            raise ModelError(f"{manifest.ref}: {entry.path} is missing from the package's folder")
        found = sha256_bytes(files[entry.path])
        if found != entry.sha256:
            raise ModelError(
                f"{manifest.ref}: {entry.path} has sha256 {found[:16]}…, model.yaml says {entry.sha256[:16]}…; "
                "fetch the file again, or pin the new one under a new version"
            )
    if manifest.runtime == "python":
        code = network_code(manifest, files)
        manifest = manifest.model_copy(update={"network_sha256": sha256_bytes(code)})
    folder = lake.model(manifest.name, manifest.version)
    try:
        existing = parse_manifest(lake.store.get(f"{folder}/model.yaml"), manifest.ref)
    except FileNotFoundError:
        for entry in manifest.files.values():
            lake.store.put(f"{folder}/{entry.path}", files[entry.path])
        lake.store.put(
            f"{folder}/model.yaml", yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False).encode()
        )
        return manifest
    if existing.model_digest != manifest.model_digest:
        raise ModelError(f"{manifest.ref} is in the lake with other bytes; a version is immutable: raise the version")
    return existing


def add_folder(lake: Lake, folder: Path) -> Manifest:
    """Put a package from a local folder into the lake."""
    try:
        manifest = parse_manifest(_inside(folder, "model.yaml"), f"{folder}/model.yaml")
        return add(lake, manifest, {entry.path: _inside(folder, entry.path) for entry in manifest.files.values()})
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ModelError(
            f"{error.filename} is not there; a package is a folder with model.yaml and its files"
        ) from None


def _inside(folder: Path, name: str) -> bytes:
    """A file of a package's folder. What is no plain file there would never end, or be another's. Raises ModelError."""
    path = folder / name
    plain = path.is_file() and path.resolve().is_relative_to(folder.resolve())
    if path.exists() and not plain and not path.is_dir():
        raise ModelError(f"{name} of the package is no plain file of its folder; put the file itself there")
    return path.read_bytes()


def load(lake: Lake, ref: str) -> Manifest:
    """The manifest of `name@version`, or of the only version of `name`. Raises ModelError."""
    name, _, version = ref.partition("@")
    check_name("model", name)
    versions = list(lake.store.folders(f"models/{name}"))
    there = ", ".join(f"{m.ref}" for m in list_models(lake)) or "none yet"
    if not versions or (version and version not in versions):
        raise ModelError(
            f"there is no model {ref!r} in this lake; there is: {there}. Add one with: diastole models fetch|add"
        )
    if not version and len(versions) > 1:
        raise ModelError(f"{name} has versions {', '.join(versions)}; name one, as in {name}@{versions[-1]}")
    version = version or versions[0]
    return parse_manifest(lake.store.get(f"{lake.model(name, version)}/model.yaml"), f"{name}@{version}")


def list_models(lake: Lake) -> list[Manifest]:
    """Manifests of all packages of the lake."""
    found = []
    for name in lake.store.folders("models"):
        for version in lake.store.folders(f"models/{name}"):
            path = f"{lake.model(name, version)}/model.yaml"
            if lake.store.size(path) is not None:
                found.append(parse_manifest(lake.store.get(path), f"{name}@{version}"))
    return found


def read_file(lake: Lake, manifest: Manifest, name: str) -> bytes:
    """A file of the package, held to its sha256. Raises ModelError."""
    entry = manifest.files[name]
    try:
        data = lake.store.get(f"{lake.model(manifest.name, manifest.version)}/{entry.path}")
    except FileNotFoundError:
        raise ModelError(f"{manifest.ref}: {entry.path} is gone from the lake; fetch or add the model again") from None
    if sha256_bytes(data) != entry.sha256:
        raise ModelError(f"{manifest.ref}: {entry.path} is not the file that was pinned; fetch or add the model again")
    return data


def own_network(manifest: Manifest) -> bool:
    """Whether the network is of a module in which diastole keeps its own."""
    module = (manifest.network or "").partition(":")[0]
    return re.fullmatch(r"diastole\.workers\.models\.\w+", module) is not None and not module.endswith(".py")


def network_code(manifest: Manifest, files: dict[str, bytes] | None = None) -> bytes:
    """The code that builds a Python network, found without importing anything.

    Of diastole's own networks, and of a file of the package: that one file. Of an installed package: path and sha256 of
    each .py file of the top-level package (of the first one with files, below a namespace), and of the module itself.
    Raises ModelError.
    """
    where, separator, callable_name = (manifest.network or "").partition(":")
    if not separator or not callable_name:
        raise ModelError(f"{manifest.ref}: a Python package needs network: module:callable")
    if where.endswith(".py"):
        if files is None or where not in files:
            raise ModelError(f"{manifest.ref}: {where} must be listed in files with its sha256")
        return files[where]
    specs = _specs(where)
    if not specs or specs[-1].origin is None or not Path(specs[-1].origin).is_file():
        raise ModelError(f"{manifest.ref}: the module {where} is not installed here; pip install what it is part of")
    module = Path(specs[-1].origin)
    top = next(Path(spec.origin) for spec in specs if spec.origin is not None)
    if own_network(manifest) or top.name != "__init__.py":
        return module.read_bytes()
    found = {path.relative_to(top.parent).as_posix(): path for path in top.parent.rglob("*.py")}
    found[where] = module  # compiled, or installed elsewhere than its package
    return "".join(f"{name}\0{sha256_bytes(path.read_bytes())}\n" for name, path in sorted(found.items())).encode()


def _specs(module: str) -> list[ModuleSpec]:
    """Of each package on the way to a module, and of the module; empty where it is not installed.

    importlib.util.find_spec would import the packages on the way, so run their code before anyone has allowed it.
    """
    specs: list[ModuleSpec] = []
    parts, path = module.split("."), None
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        found = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or (count < len(parts) and spec.submodule_search_locations is None):
            return []
        specs.append(spec)
        path = spec.submodule_search_locations
    return specs
