"""Fault 43: names of people and secrets are planted wherever they may be; a cohort goes the whole way; all that was written
and said is searched for them.
"""

import base64
import contextlib
import json
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import edfio
import made
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from diastole.cluster import cli

PERSON = "SMITHJOHN1957"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY00",
    "AWS_SECRET_ACCESS_KEY": "plantedsecretkey0123456789",
    "AWS_SESSION_TOKEN": "plantedsession0123456789",
    "AZURE_STORAGE_ACCOUNT_KEY": "plantedazurekey0123456789",
    "GOOGLE_SERVICE_ACCOUNT_KEY": "plantedgooglekey0123456789",
}
TELLS = '''
import torch

class Net(torch.nn.Module):
    """A class per residue, whose errors quote what it was given; one that begins with M is refused, with Y it is odd."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(20, 3)

    def forward(self, x, lengths):
        first = x[:, 0].argmax(-1)
        if (first == 19).any():
            letters = "".join("ACDEFGHIKLMNPQRSTVWY"[n] for n in x[0].argmax(-1).tolist())
            raise ValueError(f"cannot score {letters}, that is not a sequence")
        return torch.where((first == 18)[:, None, None], torch.nan, self.fc(x))
'''
SEQUENCE = "YDWWHPLANTEDLETTERSKCDWWHHHHHH".replace("B", "A")
"""Of an item that the model quotes in its error."""


def sources(folder):
    folder.mkdir(parents=True)
    text = PERSON.encode()
    image = nibabel.Nifti1Image(np.ones((9, 8, 7), np.int16), np.eye(4))
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = text
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text))
    nibabel.save(image, folder / f"{PERSON}.nii.gz")
    (folder / f"sub-{PERSON}_T1w.nii").write_bytes((folder / f"{PERSON}.nii.gz").read_bytes()[:-9])
    signal = edfio.EdfSignal(np.sin(np.arange(500.0)), 50, label="EEG Cz", transducer_type=PERSON, prefiltering=PERSON)
    edfio.Edf(
        [signal],
        patient=edfio.Patient(name=PERSON, code=PERSON),
        recording=edfio.Recording(hospital_administration_code=PERSON, investigator_technician_code=PERSON),
        annotations=[edfio.EdfAnnotation(0, 1, PERSON)],
    ).write(folder / f"{PERSON} night.edf")
    (folder / f"short {PERSON}.edf").write_bytes((folder / f"{PERSON} night.edf").read_bytes()[:-7])
    said = PngImagePlugin.PngInfo()
    said.add_text("Patient", PERSON)
    Image.fromarray(np.ones((30, 40), np.uint8)).save(folder / f"{PERSON}.png", pnginfo=said)
    (folder / f"{PERSON}.dat").write_bytes(text * 100)
    (folder / f"{PERSON}.fa").write_text(
        f">{PERSON}1 {PERSON}\nACDEFGHIK\n>{PERSON}2\nWACDE\n>{PERSON}3\n{SEQUENCE}\n>{PERSON}4\nACDKKK\n"
    )
    (folder / "junk.fa").write_text(f">{PERSON}\nMK1{PERSON}\n")
    (folder / f"{PERSON} link.nii").symlink_to(f"/nowhere/{PERSON}")
    return folder


def texts_of(*roots):
    """(where, text) of every name and every file below, Parquet unpacked."""
    for root in roots:
        for path in sorted(root.rglob("*")):
            yield path, str(path.relative_to(root))
            if path.is_symlink() or not path.is_file():
                continue
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                columns = [
                    c for c in table.column_names if c != "sequence"
                ]  # the letters themselves are the item's content
                yield path, str(table.select(columns).to_pylist()) + str(table.schema.metadata)
            else:
                yield path, path.read_bytes().decode("latin-1")


def found_in(texts, words):
    """Where any word is, as it is or encoded, whatever its case."""
    forms = {
        form.lower()
        for word in words
        for form in (word, base64.b64encode(word.encode()).decode().rstrip("="), word.encode().hex())
    }
    wanted = re.compile("|".join(map(re.escape, sorted(forms))))
    return [(str(where), hit[0]) for where, text in texts if (hit := wanted.search(text.lower()))]


class Follow(threading.Thread):
    """Looks, all the time, for words in a folder whose files are removed at the end: Ray's session, what is spilled."""

    def __init__(self, folder, words):
        super().__init__(daemon=True)
        self.folder, self.words, self.found, self.files = folder, words, [], set()
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(0.2):
            with contextlib.suppress(OSError):  # it is gone already
                texts = list(texts_of(self.folder))
                self.files |= {path.name for path, _ in texts}
                self.found += found_in(texts, self.words)


@pytest.fixture
def temporary():
    """A folder with a short name, for Ray's sockets, that is there until the test is over."""
    folder = Path(tempfile.mkdtemp(prefix="p-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.fault(43)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_was_planted_is_in_nothing_that_is_written_or_said(temporary, lake, tmp_path, monkeypatch, capfd, workers):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    monkeypatch.setenv("DIASTOLE_LAKE", lake.store.root)
    env = {**SECRETS, "TMPDIR": str(temporary)}
    words = [PERSON, SEQUENCE, *env.values()][:-1]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", None)
    src = sources(tmp_path / "src" / PERSON)
    manifest = tmp_path / "m.csv"
    columns = "path,subject,session,key,derived_from\n"
    manifest.write_text(f"{columns}{src / f'{PERSON} night.edf'},{PERSON},{PERSON},{PERSON},{PERSON}\n")
    made.add_model(
        lake,
        {"net.pt": made.network(), "code.py": TELLS.encode()},
        task="residues",
        runtime="python",
        network="code.py:Net",
        inputs={"input": {"modality": ["protein"], "alphabet": made.LETTERS}},
        classes=["H", "E", "C"],
        options={"alphabet": made.LETTERS},
    )
    job = made.job_file(tmp_path, resources={"workers": workers})
    capfd.readouterr()
    said = []

    def do(*arguments, codes=(0,)):
        monkeypatch.setattr(sys, "argv", ["diastole", *map(str, arguments)])
        code = cli.answer()
        out, err = capfd.readouterr()
        said.extend([(arguments[0], out), (arguments[0], err)])
        assert code in codes, err
        return out

    do("ingest", "d", tmp_path / "src", "--manifest", manifest, codes=(1,))
    do("items", "d", "--json")
    do("plan", job)
    follow = Follow(temporary, words)
    follow.start()
    done = made.cli(lake, "run", job, "--json")
    follow.over.set()
    follow.join()
    said += [("run", done.stdout), ("run", done.stderr)]
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["scored"], outcome["failed"]) == (2, 4)  # NaN, the model's error, and two that are no protein
    for arguments in (
        ["runs", "--json"],
        ["show", outcome["run_id"]],
        ["predictions", "o", "--json"],
        ["quarantine", "--json"],
    ):
        do(*arguments)
    do("predictions", "o", "--csv", temporary / "all.csv")
    do("check", "--deep")
    do("doctor", codes=(0, 1))
    assert "model_error" in {row["error_code"] for row in made.table(lake)}
    everything = [*texts_of(lake.store.local, temporary), *said]
    assert any("content_digest" in text for _, text in everything)  # the tables were unpacked
    assert found_in(everything, words) == []
    assert follow.found == []
    assert bool(workers) == any(name.startswith(("raylet", "worker-")) for name in follow.files)


def test_the_search_finds_what_is_there(tmp_path):
    """It would see a name in a table, in a name of a file, and encoded."""
    (tmp_path / f"{PERSON}.txt").write_text("x")
    (tmp_path / "b").write_bytes(base64.b64encode(PERSON.encode()))
    pq.write_table(pa.table({"a": [PERSON.lower()]}), tmp_path / "c.parquet")
    assert len({where for where, _ in found_in(texts_of(tmp_path), [PERSON])}) == 3
