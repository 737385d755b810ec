"""A lake: one root that holds datasets, models, predictions and runs, and the paths of each."""

import json
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from . import keys
from .errors import LakeError
from .ids import keyed, sha256_bytes
from .plain_json import from_json
from .store import Store

FORMAT = 1
"""The version of the layout that this code writes, and the newest that it reads."""

NEWEST = 10_000
"""Above all versions of the layout that there will be."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LAKE_ID = re.compile("[0-9a-f]{32}")


def check_name(kind: str, name: str) -> str:
    """A dataset's, output's or model's name becomes a folder: it must be plain."""
    if not _NAME.fullmatch(name):
        raise LakeError(
            f"{name!r} cannot name a {kind}: use up to 63 of a-z, 0-9, '.', '_', '-', a letter or digit first"
        )
    return name


@dataclass(frozen=True)
class Lake:
    """An opened lake. `Lake.create` makes one, `Lake.open` opens one; both are cheap."""

    store: Store
    lake_id: str
    _key: bytes | None = field(default=None, repr=False)

    @classmethod
    def create(cls, root: str) -> "Lake":
        """Make an empty lake at `root`. Raises LakeError where one is already, or the store cannot put if absent."""
        store = _store(root)
        lake_id = uuid.uuid4().hex
        if store.local is not None and store.local.exists() and any(store.local.iterdir()):
            if store.size("lake.json") is not None:
                raise LakeError(f"{root} is a lake already")
            raise LakeError(f"{root} is not empty; choose a new folder")
        if store.local is not None and not store.local.exists():
            store.local.mkdir(parents=True, mode=0o700)  # libraries that write into it may not keep others out
        probe_conditional_put(store)
        key = keys.create(lake_id)
        header = {
            "format": FORMAT,
            "min_reader": FORMAT,
            "min_writer": FORMAT,
            "lake_id": lake_id,
            "key_check": sha256_bytes(b"diastole-key-check" + key)[:16],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if not store.put_if_absent("lake.json", json.dumps(header, indent=1).encode()):
            raise LakeError(f"{root} is a lake already")
        return cls(store, lake_id, key)

    @classmethod
    def open(cls, root: str) -> "Lake":
        """Open the lake at `root`. Raises LakeError where there is none, or one of a newer format."""
        store = _store(root)
        try:
            header = from_json(store.get("lake.json"))
            needed, lake_id = int(header["min_reader"]), str(header["lake_id"])
            if not _LAKE_ID.fullmatch(lake_id) or not 0 < needed < NEWEST:
                raise ValueError("its id would be a path to another key, or its version is none")
        except (FileNotFoundError, NotADirectoryError):
            raise LakeError(f"there is no lake at {root}; make one with: diastole init {root}") from None
        except (ArithmeticError, ValueError, KeyError, TypeError):
            raise LakeError(f"lake.json at {root} is damaged; restore it from a backup") from None
        if needed > FORMAT:
            raise LakeError(
                f"the lake at {root} has format {needed}, this diastole reads up to {FORMAT}; "
                "upgrade with: pip install --upgrade diastole"
            )
        return cls(store, lake_id)

    @cached_property
    def key(self) -> bytes:
        """The lake's secret, needed to make ids; planning, scoring and querying work without it."""
        key = self._key or keys.load(self.lake_id)
        header = from_json(self.store.get("lake.json"))
        if header.get("key_check") != sha256_bytes(b"diastole-key-check" + key)[:16]:
            raise LakeError(f"the key that is here is not the one of lake {self.lake_id}; ids would change")
        return key

    def item_id(self, dataset: str, natural_key: str) -> str:
        """The opaque id of an item."""
        return keyed(self.key, "item", dataset, natural_key)

    def subject_id(self, subject: str) -> str:
        """The opaque id of a subject, the same in all datasets of the lake."""
        return keyed(self.key, "subject", subject)

    def source_key(self, path: str) -> str:
        """The opaque id of a source file's absolute path."""
        return keyed(self.key, "source", path)

    def dataset(self, name: str, part: str) -> str:
        """Path of a dataset's `items`, `sources`, `arrays`, `images` or `sequences`."""
        return f"datasets/{check_name('dataset', name)}/{part}"

    def datasets(self) -> list[str]:
        """Names of the datasets that hold something."""
        return list(self.store.folders("datasets"))

    def predictions(self, output: str) -> str:
        """Path of an output's table."""
        return f"predictions/{check_name('output', output)}"

    def current(self, output: str) -> str:
        """Path of the table of what an output's job means now."""
        return f"current/{check_name('output', output)}"

    def maps(self, output: str) -> str:
        """Path of an output's dense maps."""
        return f"maps/{check_name('output', output)}"

    def model(self, name: str, version: str) -> str:
        """Path of a model package."""
        return f"models/{check_name('model', name)}/{check_name('model version', version)}"

    def tuned(self, name: str, version: str, device: str) -> str:
        """Path of how a model's networks run best on a kind of device."""
        return f"tuned/{check_name('model', name)}/{check_name('model version', version)}/{device}.json"

    def run(self, run_id: str) -> str:
        """Path of a run's folder."""
        return f"runs/{check_name('run', run_id)}"


def _store(root: str) -> Store:
    """The store at `root`. Refuses roots that deltalake reads as another place than the rest of the lake does."""
    store = Store(root)
    if bad := sorted(set(store.root) & set("%[]")):
        raise LakeError(f"{root} has {' and '.join(bad)} in it, which Delta tables cannot have; choose another folder")
    return store


def probe_conditional_put(store: Store) -> None:
    """Refuse a store that lets the second of two writers win: nothing could be committed once on it."""
    name = f"probe-{uuid.uuid4().hex}"
    first, second = store.put_if_absent(name, b"1"), store.put_if_absent(name, b"2")
    kept = store.get(name)
    store.delete(name)
    if not first or second or kept != b"1":
        raise LakeError(f"{store.root} has no conditional put, so results could be lost there; use another store")
