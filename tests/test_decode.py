import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest

from diastole.lake.errors import ItemError
from diastole.workers.decode import Decoder
from diastole.workers.formats import Limits, ReadOptions

PLAIN = ReadOptions()
HOSTILE = """
import ctypes, os, signal, sys, time
name = "hostile"
def sniff(head): return head.startswith(b"HOSTILE")
def preflight(path, limits): pass
def read(path, folder, options):
    what = path.read_text().split()[1]
    if what == "hang": time.sleep(600)
    if what == "die": os.kill(os.getpid(), signal.SIGKILL)
    if what == "crash": ctypes.string_at(0)
    if what == "exit": sys.exit(0)
    if what == "eat": return [bytearray(2**33)]
    if what == "deep":
        def f(n): return f(n + 1)
        f(0)
    if what == "shout": print("JOHN SMITH"); os.write(1, b'{"ok": true}\\n')
    if what == "leak": raise ValueError("JOHN SMITH")
    if what == "environment": return [{"kind": "environment", "keys": sorted(os.environ), "mask": os.umask(0)}]
    if what == "endless": return ["x" * 2**25]
    if what == "link": (folder / "link").symlink_to("/etc/passwd")
    return [{"kind": "nothing", "file": "link", "suffix": "", "meta": {}, "attributes": {}, "modality": None}]
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A reader of another package, found by its entry point, that does what the file says."""
    site = tmp_path / "site"
    (site / "hostile-1.0.dist-info").mkdir(parents=True)
    (site / "hostile_reader.py").write_text(HOSTILE)
    (site / "hostile-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (site / "hostile-1.0.dist-info" / "entry_points.txt").write_text("[diastole.readers]\nhostile = hostile_reader\n")
    monkeypatch.setenv("PYTHONPATH", str(site))

    def make(what):
        path = tmp_path / f"{what}.dat"
        path.write_text(f"HOSTILE {what} ")
        return path

    return make


@pytest.fixture
def decoder():
    with Decoder(deadline_s=20) as decoder:
        yield decoder


def good(tmp_path):
    path = tmp_path / "good.fa"
    path.write_text(">a\nMKVW\n")
    return path


def code(decoder, path, options=PLAIN):
    with pytest.raises(ItemError) as caught:
        decoder.decode(path, None, options)
    assert "SMITH" not in str(caught.value)
    return caught.value.code


def test_one_child_serves_many_files(decoder, tmp_path):
    pids = set()
    for _ in range(3):
        decoded = decoder.decode(good(tmp_path), None, ReadOptions())
        assert decoded.format == "fasta"
        assert decoded.file("letters.bin").read_bytes() == b"MKVW"
        decoded.discard()
        pids.add(decoder.pid)
    assert len(pids) == 1


@pytest.mark.parametrize(
    ("what", "expected", "replaced"),
    [("die", "decoder_died", True), ("crash", "decoder_died", True), ("exit", "decoder_died", True), ("eat", "decoder_out_of_memory", True),
     ("deep", "unreadable", False), ("leak", "unreadable", False), ("endless", "decoder_died", True)],
)  # fmt: skip
def test_hostile_file_costs_one_item_and_the_next_is_read(decoder, hostile, tmp_path, what, expected, replaced):
    decoder.decode(good(tmp_path), None, ReadOptions()).discard()
    before = decoder.pid
    assert code(decoder, hostile(what)) == expected
    assert decoder.decode(good(tmp_path), None, ReadOptions()).format == "fasta"
    assert (decoder.pid != before) is replaced


def test_hung_decoder_is_killed_at_its_deadline(hostile, tmp_path):
    with Decoder(deadline_s=1.5) as decoder:
        decoder.decode(good(tmp_path), None, ReadOptions()).discard()
        before, started = decoder.pid, time.monotonic()
        assert code(decoder, hostile("hang")) == "decoder_timeout"
        assert time.monotonic() - started < 5
        assert not psutil.pid_exists(before)
        assert decoder.decode(good(tmp_path), None, ReadOptions()).format == "fasta"


def test_killed_decoder_costs_one_item(decoder, hostile, tmp_path):
    decoder.decode(good(tmp_path), None, ReadOptions()).discard()
    killer = threading.Timer(0.5, os.kill, (decoder.pid, signal.SIGKILL))
    killer.start()
    assert code(decoder, hostile("hang")) == "decoder_died"
    assert decoder.decode(good(tmp_path), None, ReadOptions()).format == "fasta"


def test_decoder_killed_between_files_is_replaced(decoder, tmp_path):
    decoder.decode(good(tmp_path), None, ReadOptions()).discard()
    os.kill(decoder.pid, signal.SIGKILL)
    psutil.Process(decoder.pid).wait(5)
    assert decoder.decode(good(tmp_path), None, ReadOptions()).format == "fasta"


def test_what_a_reader_prints_is_no_answer(decoder, hostile):
    assert decoder.decode(hostile("shout"), None, ReadOptions()).entries[0]["kind"] == "nothing"


def test_a_link_is_not_taken_for_what_was_decoded(decoder, hostile):
    decoded = decoder.decode(hostile("link"), None, ReadOptions())
    for name in ("link", "../x", "absent"):
        with pytest.raises(ItemError):
            decoded.file(name)


def test_child_sees_no_secrets_and_writes_private_files(decoder, hostile, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path))
    decoded = decoder.decode(good(tmp_path), None, ReadOptions())
    assert decoded.file("letters.bin").stat().st_mode & 0o077 == 0
    assert decoded.folder.parent.stat().st_mode & 0o077 == 0
    [entry] = decoder.decode(hostile("environment"), None, ReadOptions()).entries
    assert not {"AWS_SECRET_ACCESS_KEY", "DIASTOLE_KEYS"} & set(entry["keys"])
    assert entry["mask"] == 0o077


def peak(pid):
    """Peak resident memory of a process, in bytes."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def header(shape, dtype=np.uint8):
    head = nibabel.Nifti1Header()
    head.set_data_dtype(dtype)
    head.set_data_shape(shape)
    head["vox_offset"], head["magic"], head["srow_x"][0] = 352, b"n+1", 1
    return head.binaryblock + b"\0" * 4


@pytest.mark.fault(34)
def test_lying_dimensions_allocate_nothing(decoder, tmp_path):
    """The header claims 3.5 GB, within the limit; the file has a thousandth of that."""
    head = header((1500, 1500, 1500))
    (tmp_path / "a.nii").write_bytes(head + bytes(10**6))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(head + bytes(10**6)))
    assert code(decoder, tmp_path / "a.nii") == "truncated"
    assert code(decoder, tmp_path / "b.nii.gz") == "truncated"
    assert peak(decoder.pid) < 300 * 2**20


@pytest.mark.fault(33)
def test_gz_bomb_stays_under_the_cap_and_the_limit(decoder, tmp_path):
    """A megabyte that unpacks to 256 MB: as what its header claims, and after voxels that end early."""
    bomb = gzip.compress(header((256, 1024, 1024)) + bytes(2**28), compresslevel=1)
    assert len(bomb) < 2**21
    (tmp_path / "a.nii.gz").write_bytes(bomb)
    assert code(decoder, tmp_path / "a.nii.gz", ReadOptions(Limits(2**26))) == "too_large"
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(header((10, 10, 10)) + bytes(2**28), compresslevel=1))
    assert code(decoder, tmp_path / "b.nii.gz", ReadOptions(Limits(2**26))) == "too_large"
    (tmp_path / "c.fa.gz").write_bytes(gzip.compress(b">a\n" + b"A" * 2**28, compresslevel=1))
    assert code(decoder, tmp_path / "c.fa.gz", ReadOptions(Limits(2**26))) == "too_large"
    assert peak(decoder.pid) < 200 * 2**20


def test_failed_items_leave_no_files_behind(decoder, tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header((100, 100, 100)) + bytes(1000)))
    assert code(decoder, tmp_path / "a.nii.gz") == "truncated"
    folder = Path(f"/proc/{decoder.pid}/cwd").resolve()
    assert list(folder.iterdir()) == []
    decoder.close()
    assert not folder.exists()


def test_child_ends_and_tidies_up_when_its_parent_is_killed(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from diastole.workers.decode import Decoder, ReadOptions\n"
        "d = Decoder(); d.decode(Path(sys.argv[1]), None, ReadOptions()); print(d.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(good(tmp_path))], stdout=subprocess.PIPE)
    child = psutil.Process(int(parent.stdout.readline()))
    folder = Path(child.cwd())
    parent.kill()
    parent.wait()
    child.wait(10)
    assert not folder.exists()


def test_unreadable_files_say_so(decoder, tmp_path):
    assert code(decoder, tmp_path / "absent") == "unreadable"
    (tmp_path / "x").write_bytes(struct.pack("<4i", 1, 2, 3, 4))
    assert code(decoder, tmp_path / "x") == "unknown_format"
    (tmp_path / "j").write_text(json.dumps({}))
    assert code(decoder, tmp_path / "j") == "unknown_format"
