"""What readers of sequences give, and the files that Biopython tests itself with."""

import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from published import data

from diastole.workers.formats import ReadOptions

PLAIN = ReadOptions()


def biopython(folder: str) -> Path:
    """A folder of Tests/ in Biopython's sdist, taken out once."""
    path = data.CACHE / "biopython-tests" / folder
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as out:
            with tarfile.open(data.archive("biopython")) as sdist:
                start = f"biopython-1.88/Tests/{folder}/"
                sdist.extractall(out, [one for one in sdist if one.name.startswith(start)], filter="data")
            shutil.move(Path(out) / start, path)
    return path


def records(reader, path, tmp_path, options=PLAIN):
    """Entries, and of each record (id, letters, attributes), whose letters fill their file."""
    folder = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    reader.preflight(path, options.limits)
    entries = reader.read(path, folder, options)
    found = []
    for entry in entries:
        letters, at = (folder / entry["file"]).read_text(), 0
        for line in (folder / entry["records"]).read_text().splitlines():
            record_id, length, occurring, said = json.loads(line)
            found.append((record_id, letters[at : at + length], said))
            assert occurring == "".join(sorted(set(letters[at : at + length].upper())))
            at += length
        assert at == len(letters)
    return entries, found
