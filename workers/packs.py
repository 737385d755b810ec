"""Damaged packs of sequences, made whole from the sources that are read again."""

from diastole.lake import sequences
from diastole.lake.ids import sha256_bytes
from diastole.lake.integrity import FileRecord, Recorded
from diastole.lake.layout import Lake

from .rows import Claim, Row


class DamagedPacks:
    """Looks at the pack of each sequence that is read again, and keeps the letters of a damaged one till all are there.

    A pack is put again, with the same bytes, when the sources of all its sequences were read. What is left in the end
    (`rest`) cannot be: a source is not there any more, or holds something else now.
    """

    def __init__(self, lake: Lake, recorded: Recorded) -> None:
        self._lake, self._recorded = lake, recorded
        self._whole: dict[str, bool] = {}
        self._waiting: dict[str, dict[int, tuple[str, str, bytes]]] = {}  # pack → row → item, digest, letters
        self.healed = 0
        """Sequences that are whole again."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def look(self, claim: Claim, there: Row) -> None:
        """Keep the letters of a sequence whose pack is damaged."""
        path = there["array"]
        if path not in self._whole:
            self._whole[path] = self._holds(path)
        if not self._whole[path] and claim.letters is not None:
            entry = (there["item_id"], there["content_digest"], claim.letters)
            self._waiting.setdefault(path, {})[there["row"]] = entry

    def put(self) -> list[FileRecord]:
        """Write the packs anew whose sequences are all there: their digests together are the pack's name."""
        files = []
        for path, found in list(self._waiting.items()):
            rows = [found[row] for row in sorted(found)]
            prefix, digests = path.rpartition("/")[0], [digest for _, digest, _ in rows]
            if sequences.pack_path(prefix, digests) == path:
                files.append(sequences.write_pack(self._lake, prefix, digests, [r[2] for r in rows], anew=True)[1])
                self._whole[path] = True
                self.healed += len(self._waiting.pop(path))
        return files

    def rest(self) -> dict[str, bytes]:
        """item_id → letters of what still waits."""
        left = {item_id: letters for found in self._waiting.values() for item_id, _, letters in found.values()}
        self._waiting.clear()
        self.healed += len(left)
        return left

    def _holds(self, path: str) -> bool:
        expected = self._recorded.get(path)
        try:
            return expected is not None and sha256_bytes(self._lake.store.get(path)) == expected.sha256
        except FileNotFoundError:
            return False
