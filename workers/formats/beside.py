"""Files that lie beside a source and are parts of it: plain names in the same folder, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from diastole.lake.errors import ItemError


def plain(name: str) -> str:
    """A name that a header gives. Raises ItemError where it is a path, or none."""
    if not name or name in (".", "..") or len(name.encode()) > 255 or any(c in name for c in "/\\:\0\r\n"):
        raise ItemError(
            "header_lies", "it names a file that is not beside it; let it name a plain file of its own folder"
        )
    return name


def there(path: Path, name: str, parts: Sequence[Path] = ()) -> bool:
    """Whether a file is beside `path`, and is one of its parts where these are known."""
    if parts and name not in {Path(part).name for part in parts}:
        return False
    found = path.parent / name
    if found.is_symlink() and not path.is_symlink() and found.resolve().parent != path.parent.resolve():
        return False  # a folder that is kept by git-annex has links only; a single one that leads out is another matter
    return found.is_file()


def find(path: Path, name: str, parts: Sequence[Path], what: str) -> Path:
    """A file beside `path`. Raises ItemError where it is not there."""
    if not there(path, plain(name), parts):
        raise ItemError(
            "part_missing", f"its {what} is not beside it; put both into one folder, under the names that it has"
        )
    return path.parent / name
