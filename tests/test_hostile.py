"""Hostile files: sources, weights, archives, jobs, URLs. Each is made here, does what it can, and costs only itself."""

import gzip
import http.server
import io
import os
import pickle
import ssl
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import edfio
import made
import nibabel
import numpy as np
import psutil
import pytest
import targets
import torch

from diastole.jobs.spec import load_job
from diastole.lake import items, models, quarantine
from diastole.lake.errors import LakeError, ModelError, SpecError
from diastole.lake.store import Store
from diastole.workers import recipes
from diastole.workers.decode import MEMORY_BYTES
from diastole.workers.ingest import IngestOptions, ingest
from diastole.workers.models import archives

LIMIT = 2**26
"""Decoded bytes of one source in these tests."""
PEAK = 420 * 2**20
"""What a decoding child may take in memory here: its libraries, and what a reader holds of a stream."""


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")


class Watch(threading.Thread):
    """The most memory that children of this process had: resident, and as addresses."""

    def __init__(self):
        super().__init__(daemon=True)
        self.resident = self.addresses = 0
        self._over = threading.Event()

    def run(self):
        while not self._over.wait(0.02):
            for child in psutil.Process().children():
                try:
                    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                except OSError:
                    continue
                values = dict(line.split(":", 1) for line in lines if line.startswith(("VmHWM", "VmPeak")))
                self.resident = max(self.resident, _bytes(values.get("VmHWM", "0")))
                self.addresses = max(self.addresses, _bytes(values.get("VmPeak", "0")))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()


def _bytes(value):
    return int(value.split()[0]) * 1024


def nifti(shape, dtype=np.uint8):
    head = nibabel.Nifti1Header()
    head.set_data_dtype(dtype)
    head.set_data_shape(shape)
    head["vox_offset"], head["magic"], head["sform_code"] = 352, b"n+1", 1
    head["srow_x"][0] = head["srow_y"][1] = head["srow_z"][2] = 1
    return head.binaryblock + b"\0" * 4


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *more, depth=8):
    pixels = zlib.compress(bytes((width * depth // 8 + 1) * height), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff_bomb(side):
    """A strip that unpacks to side², of which the tags say so."""
    packed = zlib.compress(bytes(side * side), 9)
    values = [
        (256, 4, side),
        (257, 4, side),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, side),
        (279, 4, len(packed)),
    ]
    tags = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in values)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(values)) + tags + bytes(4)


def edf(seconds=20):
    out = io.BytesIO()
    edfio.Edf([edfio.EdfSignal(np.sin(np.arange(100.0 * seconds)), 100, label="EEG Cz")]).write(out)
    return out.getvalue()


def hostile_sources():
    """name → (bytes, codes that it may be quarantined with)."""
    voxels = np.random.default_rng(0).integers(0, 255, (40, 40, 40)).astype(np.uint8).tobytes()
    corrupt = bytearray(gzip.compress(nifti((40, 40, 40)) + voxels))
    corrupt[len(corrupt) // 2] ^= 0x10
    npy = io.BytesIO()
    np.lib.format.write_array_header_1_0(npy, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**4, 10**4)})
    deep = b"(" * 3000 + b")" * 3000
    return {
        "lying.nii": (nifti((300, 300, 300)) + bytes(10**5), ["truncated"]),
        "lying.nii.gz": (gzip.compress(nifti((300, 300, 300)) + bytes(10**5)), ["truncated"]),
        "huge.nii": (nifti((30000, 30000, 30000)) + bytes(10**5), ["too_large"]),
        "bomb.nii.gz": (gzip.compress(nifti((10, 10, 10)) + bytes(2**28), 1), ["too_large"]),
        "corrupt.nii.gz": (bytes(corrupt), ["checksum", "truncated"]),
        "short.edf": (edf()[:-200], ["truncated"]),
        "long.edf": (edf() + bytes(200), ["header_lies"]),
        "lying.edf": (edf()[:236] + b"99999999" + edf()[244:], ["truncated"]),
        "bomb.fa.gz": (gzip.compress(b">a\n" + b"A" * 2**28, 1), ["too_large"]),
        "junk.fa": (b">a\nMK\x00\x01VW\n", ["unreadable"]),
        "endless_header.fa": (b">" + b"x" * 2**20, ["unreadable"]),
        "bomb.png": (png(20000, 20000), ["too_large"]),
        "text_bomb.png": (png(20, 20, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28), 9))), ["checksum"]),
        "bomb.tif": (tiff_bomb(20000), ["too_large"]),
        "circle.tif": (b"II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 8), ["unreadable", "unsupported"]),
        "lying.npy": (npy.getvalue(), ["too_large"]),
        "deep.npy": (b"\x93NUMPY\x01\x00" + struct.pack("<H", len(deep)) + deep, ["unreadable"]),
        "cut.dcm": (bytes(128) + b"DICM" + bytes(400), ["truncated", "unsupported"]),
        "random": (np.random.default_rng(1).bytes(10**5), ["unknown_format"]),
        "wave.vcf": (b"##fileformat=VCFv4.2\n" + b"\xff" * 1000, ["unreadable"]),
    }


@pytest.mark.fault(32, 33, 34, 35, 36, 37, 38)
def test_hostile_sources_are_quarantined_under_the_cap_and_the_rest_is_ingested(lake, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    wanted = hostile_sources()
    for name, (data, _) in wanted.items():
        (src / name).write_bytes(data)
    (src / "volume.nii").write_bytes(nifti((9, 8, 7)) + bytes(9 * 8 * 7))
    (src / "night.edf").write_bytes(edf())
    (src / "proteins.fa").write_bytes(b">a\nMKVW\n>b\nMKL\n")
    (src / "photo.png").write_bytes(png(24, 20))
    with Watch() as watch:
        report = ingest(lake, "d", [src], IngestOptions(max_item_bytes=LIMIT, deadline_s=60))
    found = {r["source_key"]: r["error_code"] for r in quarantine.read(lake).to_pylist()}
    assert len(items.read_items(lake, "d")) == report.added >= 5
    got = {name: found.pop(lake.source_key(str(src / name)), None) for name in wanted}
    assert {name: code for name, code in got.items() if code not in wanted[name][1]} == {}
    assert found == {}
    assert 0 < watch.resident < PEAK
    assert watch.addresses <= MEMORY_BYTES


# Weights


def peak_of(script, *arguments):
    """Peak memory of a process that runs a script after torch was imported, beyond what it had then; and what it said."""
    start = (
        "import sys, io, torch; from diastole.workers.models import archives; from diastole.lake.errors import ModelError\n"
        "def status(): return {k: int(v.split()[0]) * 1024 for k, _, v in (l.partition(':') for l in open('/proc/self/status')) if k in ('VmHWM', 'VmRSS')}\n"
        "before = status()['VmRSS']\ntry:\n    data = open(sys.argv[1], 'rb').read()\n"
        f"    {script}\n    print('taken')\nexcept ModelError as error: print(error)\nprint(status()['VmHWM'] - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    said, grown = done.stdout.strip().splitlines()
    return said, int(grown)


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "how", ["one number, ten thousand million times", "a storage that is not there", "packed zeros", "no dictionary"]
)
def test_weights_that_claim_more_than_they_have_are_refused_in_little_memory(tmp_path, how):
    out = io.BytesIO()
    if how == "one number, ten thousand million times":
        torch.save({"w": torch.zeros(1).expand(10**10)}, out)
    elif how == "a storage that is not there":
        torch.save({"w": torch.zeros(4)}, out, _use_new_zipfile_serialization=False)
        raw = out.getvalue().replace(b"K\x04", b"\x8a\x05" + (10**10).to_bytes(5, "little"))
        out = io.BytesIO(raw)
    elif how == "packed zeros":
        torch.save({"w": torch.zeros(2**28)}, out)
        packed = io.BytesIO()
        with zipfile.ZipFile(out) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        out = packed
    else:
        torch.save([torch.zeros(1)], out)
    path = tmp_path / "net.pt"
    path.write_bytes(out.getvalue())
    assert path.stat().st_size < 2**21
    said, grown = peak_of("archives.state_dict(data, 'net.pt')", str(path))
    assert said.startswith("net.pt ")
    assert grown < 2**28


@pytest.mark.fault(40)
def test_a_network_of_any_size_is_not_made_before_its_weights_are_there(lake, tmp_path):
    made.add_proteins(lake, tmp_path / "src", made.proteins(1))
    said = {"letters": 20, "hidden": 10**6, "layers": 9, "classes": 3}  # 10¹⁴ numbers
    made.add_model(
        lake,
        {"net.pt": made.saved({"a": torch.zeros(1)})},
        task="residues",
        runtime="python",
        network="diastole.workers.models.residue_lstm:ResidueLSTM",
        network_options=said,
        inputs={"input": {}},
        classes=["H", "E", "C"],
        options={"alphabet": made.LETTERS},
    )
    with pytest.raises(ModelError, match="does not fit the network"):
        made.run(lake)


class Saves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "/tmp/diastole-planted-by-script")
        return x


class Opens(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/passwd", False, 10, dtype=torch.uint8)


class Prints(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print(x)
        return x


@pytest.mark.fault(40)
@pytest.mark.parametrize("net", [Saves, Opens, Prints])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_that_opens_files_or_prints_is_refused_before_it_is_loaded(net, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(net()), out)
    with pytest.raises(ModelError, match="would do more than compute"):
        archives.torchscript(out.getvalue(), "net.pt")
    assert not Path("/tmp/diastole-planted-by-script").exists()


@pytest.mark.fault(40)
def test_of_an_archive_only_what_was_looked_at_is_given_to_torch(tmp_path):
    good = targets.scripts()[0]
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("../outside", b"x")
    with pytest.raises(ModelError, match="lead out of it"):
        archives.torchscript(out.getvalue(), "net.pt")
    hidden = b"PK\x03\x04 something else that begins like an archive" + good
    looked_at = archives.torchscript(hidden, "net.pt")
    assert b"something else" not in looked_at
    assert torch.jit.load(io.BytesIO(looked_at))(torch.zeros(1, 2)).shape == (1, 2)


@pytest.mark.fault(40)
@pytest.mark.parametrize("where", [b"weights.bin", b"../weights.bin", b"/etc/hostname"])
def test_an_onnx_model_may_not_name_other_files(where, tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    whole = onnxruntime.InferenceSession(archives.onnx(targets.onnx(), "m"))
    assert whole.run(None, {"x": np.ones(1, np.float32)})[0].tolist() == [2.0]
    with pytest.raises(ModelError, match="weights in other files"):
        archives.onnx(targets.onnx(outside=where), "m")


@pytest.mark.fault(40)
def test_a_pickle_of_any_runtime_is_refused_and_not_run(tmp_path):
    class Planted:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    data = pickle.dumps(Planted())
    for look in (archives.state_dict, archives.torchscript, archives.onnx):
        with pytest.raises(ModelError):
            look(data, "net")
    assert not (tmp_path / "ran").exists()


# Packages and archives


@pytest.mark.fault(41)
@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.pt", "/dev/zero"])
def test_a_link_in_a_package_that_leads_out_is_refused(lake, tmp_path, target):
    (tmp_path / "outside.pt").write_bytes(b"x")
    package = tmp_path / "package"
    package.mkdir()
    (package / "net.pt").symlink_to(target)
    (package / "model.yaml").write_bytes(targets.MODEL)
    with pytest.raises(ModelError, match="no plain file of its folder"):
        models.add_folder(lake, package)


@pytest.mark.fault(41)
def test_a_wheel_is_never_unpacked_and_a_bomb_in_it_is_refused(lake, tmp_path, monkeypatch):
    manifest = recipes.recipe("predictdssp")
    member = manifest.source.members["main"]
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside", b"x")
        archive.writestr(member, bytes(2**28))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="would unpack to 268435456 bytes"):
        recipes.fetch(lake, "predictdssp", wheel)
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(ModelError, match="is damaged"):
        recipes.fetch(lake, "predictdssp", wheel)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "lake", "w.whl"]


# Jobs and manifests


LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (n + 1, n + 1, b", ".join([b"*%c" % n] * 9)) for n in range(ord("a"), ord("k"))
)
YAML = {
    "aliases that stand for gigabytes": (LAUGHS, "aliases"),
    "merged aliases": (b"a: &a {x: 1}\n<<: *a", "aliases"),
    "an object": (b"name: !!python/object/apply:os.system ['touch /tmp/x']", "not YAML"),
    "a key twice": (b"name: a\nname: b", "twice"),
    "a number without end": (b"n: " + b"9" * 100_000, "too long"),
    "sixties without end": (b"n: 1" + b":1" * 100_000, "too long"),
    "infinity": (b"n: .inf", "infinite"),
    "a number beyond any": (b"n: 1000000000000000000000", "beyond"),
    "a date": (b"n: 2020-01-31", "quotes"),
    "a date that is none": (b"n: 2020-13-45", "not YAML"),
    "bytes": (b"n: !!binary aGVsbG8=", "quotes"),
    "a key that is no text": (b"on: 1", "quotes"),
    "half a character": (b'n: "\\ud800"', "half of a character"),
    "brackets": (b"[" * 100_000, "deeper"),
    "values": (b"[" + b"1," * 100_000 + b"]", "more than"),
    "100 MB": (b"a: 1\n" * 20_000_000, "bytes that are read"),
    "no text": (b"\xff\xfe\x00\xd8" * 10, "not YAML"),
    "two documents": (b"a: 1\n---\nb: 2", "not YAML"),
}


@pytest.mark.fault(41)
@pytest.mark.parametrize("what", YAML)
def test_hostile_yaml_is_refused_in_one_line_quickly_and_in_little_memory(tmp_path, what):
    data, said = YAML[what]
    (tmp_path / "job.yaml").write_bytes(data)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before, begun = _status("VmRSS"), time.monotonic()
    with pytest.raises(SpecError, match=said) as caught:
        load_job(tmp_path / "job.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=said):
        models.parse_manifest(data, "model.yaml")
    assert time.monotonic() - begun < 20
    assert _status("VmHWM") - before < 2**27


def _status(name):
    return next(
        _bytes(v) for k, _, v in (line.partition(":") for line in Path("/proc/self/status").open()) if k == name
    )


def test_a_job_file_that_never_ends_is_refused():
    with pytest.raises(SpecError, match="bytes that are read"):
        load_job(Path("/dev/zero"))


def test_xml_is_parsed_in_one_place_alone_which_refuses_entities():
    """Entities can stand for gigabytes, or for files: test_slides holds workers/formats/ome.py to refusing them."""
    root = Path(__file__).resolve().parents[1]
    code = [path for room in ("lake", "jobs", "workers", "cluster") for path in (root / room).rglob("*.py")]
    words = ("xml.etree", "xml.dom", "xml.sax", "lxml", "ElementTree", "minidom", "ome_metadata", "xml2dict")
    assert not [
        (path.name, word) for path in code if path.name != "ome.py" for word in words if word in path.read_text()
    ]


# Where a lake may lie


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:secret@bucket/lake",
        "s3://secret@bucket/lake",
        "s3://bucket/lake?token=secret",
        "az://c/lake#secret",
        "abfss://c:secret@account/x",
    ],
)
def test_a_key_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(LakeError, match="may have no keys") as caught:
        Store(url)
    assert "secret" not in str(caught.value)


class Answers(http.server.BaseHTTPRequestHandler):
    """Redirects everything to what its server says, or says so."""

    def do_GET(self):
        self.server.seen[self.command] += 1
        body = b"" if self.server.to else b'{"min_reader": 1, "lake_id": "secret"}'
        self.send_response(307 if self.server.to else 200)
        if self.server.to:
            self.send_header("Location", self.server.to)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, *_):
        pass


def served(to=None, certificate=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.to, server.seen = to, Counter()
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.fault(42)
def test_a_store_cannot_send_us_to_a_metadata_service(tmp_path):
    """Those answer plain http alone, and a store that is reached by https is never left for it, whatever it answers."""
    certificate = (tmp_path / "cert.pem", tmp_path / "key.pem")
    made_by = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*made_by, "-out", certificate[0], "-keyout", certificate[1]], check=True, capture_output=True)
    metadata = served()
    store = served(f"http://127.0.0.1:{metadata.server_port}/latest/meta-data/", certificate)
    script = "from diastole.lake.store import Store; Store('s3://bucket/lake').get('lake.json')"
    env = {"AWS_ENDPOINT_URL": f"https://localhost:{store.server_port}", "AWS_ALLOW_INVALID_CERTIFICATES": "true"}
    env |= {
        "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
        "AWS_SECRET_ACCESS_KEY": "planted",
        "AWS_REGION": "r",
        "DIASTOLE_RETRY_SECONDS": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "EnvironmentFailure" in done.stderr
    assert store.seen["GET"] >= 1
    assert not metadata.seen
    assert "planted" not in (done.stdout + done.stderr).lower()
