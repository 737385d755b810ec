"""Sequences and images into packs; damaged packs, made whole from the sources that are read again."""

from collections.abc import Sequence

import numpy as np

from diastole.lake import packs, sequences
from diastole.lake.ids import sha256_bytes
from diastole.lake.integrity import FileRecord, Recorded, hashed
from diastole.lake.layout import Lake

from .rows import Claim, Image, Row


def put_letters(lake: Lake, dataset: str, claims: Sequence[Claim]) -> list[FileRecord]:
    """Write the letters of sequences into packs; their rows then say where."""
    waiting = [claim for claim in claims if claim.letters is not None]
    files = []
    while waiting:
        stop, size = 0, 0
        while stop < len(waiting) and (stop == 0 or size + waiting[stop].row["nbytes"] <= sequences.PACK_BYTES):
            size += waiting[stop].row["nbytes"]
            stop += 1
        pack, waiting = waiting[:stop], waiting[stop:]
        digests, letters = [c.row["content_digest"] for c in pack], [c.letters or b"" for c in pack]
        path, record = sequences.write_pack(lake, lake.dataset(dataset, "sequences"), digests, letters)
        files.append(record)
        for number, claim in enumerate(pack):
            claim.row["array"], claim.row["row"] = path, number
    return files


def put_images(
    lake: Lake, dataset: str, claims: Sequence[Claim], damaged: "DamagedPacks | None" = None
) -> list[FileRecord]:
    """Write images into packs, those of one shape, dtype and meta together; their rows then say where.

    With `damaged`, a pack that is there already is looked at, and replaced where it is not whole.
    """
    alike: dict[bytes, list[tuple[Row, Image]]] = {}
    for claim in claims:
        if claim.image is not None:
            alike.setdefault(claim.image.like, []).append((claim.row, claim.image))
    files, prefix = [], lake.dataset(dataset, "images")
    for waiting in alike.values():
        most = max(packs.PACK_BYTES // max(waiting[0][0]["nbytes"], 1), 1)
        for start in range(0, len(waiting), most):
            pack = waiting[start : start + most]
            digests, data = [row["content_digest"] for row, _ in pack], np.stack([image.data for _, image in pack])
            anew = damaged is not None and not damaged.whole(packs.pack_path(prefix, digests))
            path, written = packs.write_pack(lake, prefix, data, digests, pack[0][1].meta, anew=anew)
            files += written
            for number, (row, _) in enumerate(pack):
                row["array"], row["row"] = path, number
    return files


class DamagedPacks:
    """Looks at the pack of each item that is read again, and keeps what belongs into a damaged one till all is there.

    A pack is put again, with the same content, when the sources of all its items were read. What is left in the end
    (`rest`) cannot be: a source is not there any more, or holds something else now.
    """

    def __init__(self, lake: Lake, recorded: Recorded) -> None:
        self._lake, self._recorded = lake, recorded
        self._whole: dict[str, bool] = {}
        self._waiting: dict[str, dict[int, tuple[Row, Claim]]] = {}  # pack → row → item, and its letters or image
        self.healed = 0
        """Items that are whole again."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def look(self, claim: Claim, there: Row) -> None:
        """Keep the letters or the image of an item whose pack is damaged."""
        if not self.whole(there["array"]) and (claim.letters is not None or claim.image is not None):
            self._waiting.setdefault(there["array"], {})[there["row"]] = (there, claim)

    def put(self) -> list[FileRecord]:
        """Write the packs anew whose items are all there: their digests together are the pack's name."""
        files = []
        for path, found in list(self._waiting.items()):
            rows = [found[row] for row in sorted(found)]
            prefix, digests = path.rpartition("/")[0], [there["content_digest"] for there, _ in rows]
            letters = [claim.letters for _, claim in rows if claim.letters is not None]
            images = [claim.image for _, claim in rows if claim.image is not None]
            if letters and sequences.pack_path(prefix, digests) == path:
                files.append(sequences.write_pack(self._lake, prefix, digests, letters, anew=True)[1])
            elif images and packs.pack_path(prefix, digests) == path:
                data = np.stack([image.data for image in images])
                files += packs.write_pack(self._lake, prefix, data, digests, images[0].meta, anew=True)[1]
            else:
                continue
            self._whole[path] = True
            self.healed += len(self._waiting.pop(path))
        return files

    def rest(self) -> dict[str, Claim]:
        """item_id → claim, with letters or an image, of what still waits."""
        left = {there["item_id"]: claim for found in self._waiting.values() for there, claim in found.values()}
        self._waiting.clear()
        self.healed += len(left)
        return left

    def whole(self, path: str) -> bool:
        """Whether a pack is there as it was recorded; looked at once."""
        if path not in self._whole:
            self._whole[path] = self._holds(path)
        return self._whole[path]

    def _holds(self, path: str) -> bool:
        if path.endswith(".zarr"):
            expected = self._recorded.below(path)
            return bool(expected) and hashed(self._lake, path) == expected
        expected_file = self._recorded.get(path)
        try:
            return expected_file is not None and sha256_bytes(self._lake.store.get(path)) == expected_file.sha256
        except FileNotFoundError:
            return False
