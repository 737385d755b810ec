"""What is fuzzed: for each kind of file sound seeds, how they are edited, and what reading them must never do.

Whatever comes in, reading gives a value or raises one of our own errors, and data that have a digest are right or refused.
"""

import atexit
import bz2
import contextlib
import csv
import functools
import gzip
import io
import json
import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edfio
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from mutate import Edit, mutate, mutate_json, with_index_sum, with_png_sums, within_gzip
from PIL import Image

from diastole.jobs import check, commit, runs, tuned
from diastole.jobs.parts import read_part
from diastole.jobs.plan import Plan
from diastole.jobs.receipts import Part, Receipt
from diastole.jobs.spec import Resources, load_job, parse_job
from diastole.jobs.units import UNITS
from diastole.lake import arrays, leases, models, packs, predictions, sequences
from diastole.lake.errors import CommitError, DiastoleError, ItemError
from diastole.lake.ids import sha256_bytes
from diastole.lake.layout import Lake
from diastole.workers import sources
from diastole.workers.decode import Decoder, _answer
from diastole.workers.formats import Limits, ReadOptions, part_of
from diastole.workers.models import archives

ITEM_BYTES = 2**22
"""Decoded bytes of one source, while fuzzing."""


@dataclass(frozen=True)
class Target:
    """A kind of file."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes], Any]
    """Raises DiastoleError, or nothing; AssertionError where what came out is wrong."""
    edit: Callable[[bytes, Sequence[Edit], Sequence[bytes]], bytes] = mutate


@functools.cache
def folder() -> Path:
    """One folder for all that is written while fuzzing."""
    return Path(tempfile.mkdtemp(prefix="diastole-fuzz-"))


@contextlib.contextmanager
def own_keys() -> Iterator[None]:
    """The keys of lakes lie here, as long as it is entered."""
    before = os.environ.get("DIASTOLE_KEYS")
    os.environ["DIASTOLE_KEYS"] = str(folder() / "keys")
    try:
        yield
    finally:
        del os.environ["DIASTOLE_KEYS"]
        if before is not None:
            os.environ["DIASTOLE_KEYS"] = before


@functools.cache
def lake() -> Lake:
    """A small lake with a volume, a pack of images, one of sequences and a model; its key lies beside it."""
    with own_keys():
        made = Lake.create(str(folder() / "lake"))
    rng = np.random.default_rng(0)
    meta = {"spacing": [1.0, 2.0, 3.0], "affine": [float(n) for n in np.eye(4).ravel()], "rescale": [1.0, 0.0]}
    arrays.write_volume(made, "datasets/d/arrays", rng.integers(0, 99, (9, 70, 5)).astype(np.int16), meta)
    images = rng.integers(0, 4, (40, 1, 6, 6)).astype(np.uint8)
    packs.write_pack(made, "datasets/d/images", images, [f"{n:032x}" for n in range(40)], {"channels": "grey"})
    letters = [b"MKVW", b"AC", b"GGG"]
    digests = [sequences.sequence_digest("protein", one) for one in letters]
    sequences.write_pack(made, "datasets/d/sequences", digests, letters)
    return made


def stored(pattern: str) -> str:
    """The path in the lake of the one file that a pattern finds."""
    [found] = [path for path in lake().store.local.glob(pattern) if path.is_file()]
    return found.relative_to(lake().store.local).as_posix()


def nothing_wrong(lake_path: str, data: bytes, read: Callable[[], Any]) -> Any:
    """What reading gives while a file of the lake has other bytes."""
    path = lake().store.local / lake_path
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        return read()
    finally:
        path.write_bytes(whole)


# Sources, as the decoding child reads them


def source(data: bytes) -> None:
    """A source through the child's own code: entries that can be stored, or a code and a text."""
    place = folder() / "source"
    place.write_bytes(data)
    source_at(place)


def source_at(place: Path) -> None:
    """A source with its parts beside it: what it says that they are, and what is read of it."""
    out = folder() / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    with contextlib.suppress(ItemError):
        part_of(place, None)
    options = ReadOptions(Limits(ITEM_BYTES), allow_burned_in=True)
    answer = _answer({"path": os.fsencode(place).hex(), "folder": str(out), "format": None, "options": asdict(options)})
    json.dumps(answer)
    if not answer["ok"]:
        assert "gave up with" not in answer["message"], f"{answer['message']}"
        return
    for entry in answer["entries"]:
        if entry["kind"] == "sequences":
            lines = [json.loads(line) for line in (out / entry["records"]).read_text().splitlines()]
            assert sum(line[1] for line in lines) == (out / entry["file"]).stat().st_size
            continue
        found = np.load(out / entry["file"], mmap_mode="r", allow_pickle=False)
        assert found.nbytes <= ITEM_BYTES + 2**16
        assert found.dtype.kind in "iuf"


@functools.cache
def child() -> Decoder:
    """A decoder for what may end its process: htslib dies of some files."""
    made = Decoder()
    atexit.register(made.close)
    return made


def in_child(data: bytes) -> None:
    """A source through a decoding process: entries whose arrays are there, or an error with a code."""
    place = folder() / "source"
    place.write_bytes(data)
    found = child().decode(place, None, ReadOptions(Limits(ITEM_BYTES)))
    try:
        for described in (one for entry in found.entries for one in entry["arrays"].values()):
            assert np.load(found.file(described["file"]), mmap_mode="r", allow_pickle=False).nbytes <= ITEM_BYTES
    except ItemError as error:
        raise AssertionError("a file is missing") from error
    finally:
        found.discard()


def nifti() -> list[bytes]:
    data = np.arange(60).reshape(3, 4, 5)
    made = [
        nibabel.Nifti1Image(data.astype(np.int16), np.eye(4)),
        nibabel.Nifti2Image(data.astype(np.float32), np.eye(4)),
    ]
    made.append(nibabel.Nifti1Image(data.reshape(3, 4, 1, 5).astype(np.uint8), np.diag([-2.0, 2, 3, 1])))
    return [image.to_bytes() for image in made]


def edf() -> list[bytes]:
    files = []
    for kind, signal in ((edfio.Edf, edfio.EdfSignal), (edfio.Bdf, edfio.BdfSignal)):
        wave = np.sin(np.arange(200))
        made = kind(
            [signal(wave, 100, label="EEG Fpz-Cz"), signal(wave[:20], 10, label="Resp")],
            annotations=[edfio.EdfAnnotation(0, 1, "x")] if kind is edfio.Edf else None,
        )
        buffer = io.BytesIO()
        made.write(buffer)
        files.append(buffer.getvalue())
    return files


def waves() -> np.ndarray:
    """Three channels of EEG-like numbers."""
    return np.random.default_rng(0).normal(0, 50, (3, 300)).round(1)


BRAINVISION = """Brain Vision Data Exchange Header File Version 1.0
[Common Infos]
Codepage=UTF-8
DataFile=$b.eeg
MarkerFile=$b.vmrk
DataFormat=BINARY
DataOrientation=MULTIPLEXED
NumberOfChannels=3
SamplingInterval=4000
[Binary Infos]
BinaryFormat=INT_16
[Channel Infos]
Ch1=Fp1,,0.1,µV
Ch2=Cz,FCz,0.1,µV
Ch3=ECG,,0.1,mV
"""
MARKERS = """Brain Vision Data Exchange Marker File Version 1.0
[Marker Infos]
Mk1=New Segment,,1,1,0,20200101010101000000
Mk2=Stimulus,S  1,10,5,0
Mk3=Comment,somebody,20,1,0
"""


def beside(files: dict[str, bytes], name: str) -> Callable[[bytes], None]:
    """A part of a source of several files: what is fuzzed takes the place of one of them."""

    def read(data: bytes) -> None:
        place = folder() / "parts"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for other, content in (files | {name: data}).items():
            (place / other).write_bytes(content)
        source_at(place / next(iter(files)))

    return read


def recording_files() -> dict[str, bytes]:
    """A recording in BrainVision with BIDS' sidecars; the header first."""
    stem = "sub-1_task-x_eeg"
    return {
        f"{stem}.vhdr": BRAINVISION.encode(),
        f"{stem}.eeg": (waves().T * 10).astype("<i2").tobytes(),
        f"{stem}.vmrk": MARKERS.encode(),
        "sub-1_task-x_channels.tsv": b"name\ttype\tunits\tstatus\nFp1\tEEG\tuV\tgood\nCz\tEEG\tuV\tbad\n",
        "sub-1_task-x_events.tsv": b"onset\tduration\ttrial_type\n0.5\t1\tEyes open\n1\tn/a\tblink\n",
        f"{stem}.json": b'{"EEGReference": "average", "PowerLineFrequency": 50}',
    }


def of_recording(ending: str) -> Callable[[], list[bytes]]:
    """One of its files."""
    return lambda: [content for name, content in recording_files().items() if name.endswith(ending)]


def matlab(*, compressed: bool) -> Callable[[], list[bytes]]:
    """EEGLAB in MATLAB 5."""

    def seeds() -> list[bytes]:
        import scipy.io

        labels = np.array([("Fp1", "EEG"), ("Cz", ""), ("E1", "")], [("labels", "O"), ("type", "O")])[None]
        said = np.array([("S  1", 10.0, 1.0), (7.0, 20.0, 0.0)], [("type", "O"), ("latency", "O"), ("duration", "O")])[
            None
        ]
        fields = {"nbchan": 3.0, "trials": 1.0, "srate": 250.0, "pnts": 300.0, "data": waves().astype("f4")}
        fields |= {"chanlocs": labels, "event": said, "ref": "common"}
        out = []
        for content in (fields, {"EEG": fields}):
            buffer = io.BytesIO()
            scipy.io.savemat(buffer, content, do_compression=compressed)
            out.append(buffer.getvalue())
        return out

    return seeds


def hdf5() -> list[bytes]:
    """EEGLAB in MATLAB 7.3."""
    import eeglabio.raw

    path = folder() / "seed.set"
    eeglabio.raw.export_set(
        str(path),
        waves() * 1e-6,
        250.0,
        ["Fp1", "Cz", "E1"],
        annotations=[["S  1"], np.array([1.0]), np.array([0.5])],
        fmt="v7.3",
    )
    return [path.read_bytes()]


def fif() -> list[bytes]:
    """FIF as mne writes it, in two types."""
    import mne

    raw = mne.io.RawArray(waves() * 1e-6, mne.create_info(["Fp1", "Cz", "E1"], 250.0, "eeg"), verbose="ERROR")
    raw.set_annotations(mne.Annotations([0.5], [0.1], ["blink"]))
    raw.info["bads"] = ["Cz"]
    out = []
    for fmt in ("single", "short"):
        raw.save(folder() / "seed_raw.fif", fmt=fmt, overwrite=True, verbose="ERROR")
        out.append((folder() / "seed_raw.fif").read_bytes())
    return out


def fasta() -> list[bytes]:
    return [b">a one\nMKVWLA\nAC*\n>b\nGGG\n", b"\xef\xbb\xbf>chr1\r\nacgtNNRY\r\n\r\n>chr2\nUUACG\n"]


def genbank() -> list[bytes]:
    head = b"LOCUS       X%d 12 bp DNA circular BCT 1-JAN-2000\nVERSION     X%d.1\nFEATURES             Location/Qualifiers\n"
    table = b'     source          1..12\n                     /db_xref="taxon:562"\n     CDS             complement(join(1..4,7..9))\n'
    return [
        b"".join(head % (n, n) + table + b"ORIGIN\n        1 acgtnacgta cg\n//\n" for n in range(2)),
        b"LOCUS       P 4 aa linear BCT\nACCESSION   P\nORIGIN\n        1 mkvw\n//\n",
    ]


def structure() -> list[bytes]:
    import gemmi

    made = gemmi.Structure()
    chain = gemmi.Chain("A")
    for number, name in enumerate(("MSE", "GLY", "TRP", "ALA"), 1):
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.het_flag = name, gemmi.SeqId(number, " "), "A"
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(4.0 * number, 0, 0)
        residue.add_atom(atom)
        chain.add_residue(residue)
    made.add_model(gemmi.Model(1))
    made[0].add_chain(chain)
    made.setup_entities()
    helix = b"HELIX    1   1 MSE A    1  GLY A    2  1                                   2    \n"
    return [b"HEADER    X\n" + helix + made.make_pdb_string().encode(), made.make_mmcif_document().as_string().encode()]


def vcf() -> list[bytes]:
    head = "".join(f"##{kind}=<ID={key},Number={n},Type={t},Description=\"x\">\n" for kind, key, n, t in (
        ("INFO", "AC", "A", "Integer"), ("INFO", "AF", "A", "Float"), ("INFO", "SVTYPE", "1", "String"), ("INFO", "DB", "0", "Flag"),
        ("FORMAT", "GT", "1", "String"), ("FORMAT", "AD", "R", "Integer"), ("FORMAT", "GQ", "1", "Float"),
    ))  # fmt: skip
    head = "##fileformat=VCFv4.2\n##contig=<ID=1,length=99>\n" + head + "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
    rows = "1\t5\trs1\tA\tC,<DEL>\t3\tPASS\tAC=1,2;AF=.,0.5;DB\tGT:AD:GQ\t0|2:1,2,3:5\t./.:.:.\n1\t6\t.\tT\tT[1:5[\t.\tq\tSVTYPE=BND\tGT\t1\t0/1/1\n"
    return [f"{head}\tFORMAT\tS1\tS2\n{rows}".encode(), f"{head}\n1\t5\t.\tA\tG\t.\t.\t.\n".encode()]


def zips() -> list[bytes]:
    made = []
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for number, data in enumerate([nifti()[0], fasta()[0], dicoms()[0]]):
                archive.writestr(f"folder/{number}", data)
        made.append(buffer.getvalue())
    return made


def npy() -> list[bytes]:
    made = []
    for shape, kind in (((2, 20, 21), np.uint8), ((2, 20, 21, 3), np.float32), ((1, 2, 20, 21), ">i2")):
        buffer = io.BytesIO()
        np.save(buffer, np.ones(shape, kind))
        made.append(buffer.getvalue())
    return made


def picture(kind: str, modes: Sequence[str], **options: Any) -> list[bytes]:
    made = []
    for mode in modes:
        buffer = io.BytesIO()
        Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 30) % 7).convert(mode).save(buffer, kind, **options)
        made.append(buffer.getvalue())
    return made


def tiff() -> list[bytes]:
    import tifffile

    made = picture("TIFF", ["L", "RGB"]) + picture("TIFF", ["L"], compression="tiff_lzw")
    for data, options in (
        (np.ones((3, 9, 8), np.uint16), {"imagej": True}),
        (np.ones((9, 8, 3), np.uint8), {"compression": "zlib", "photometric": "rgb"}),
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, data, **options)
        made.append(buffer.getvalue())
    return made


def dicoms() -> list[bytes]:
    """Small files of pydicom's, some of them compressed, and a structure set."""
    import pydicom

    names = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "rtdose_1frame.dcm", "JPEGLSNearLossless_08.dcm",
             "SC_rgb_small_odd_jpeg.dcm", "image_dfl.dcm", "rtstruct.dcm", "rtdose_rle.dcm")  # fmt: skip
    return [(Path(pydicom.__file__).parent / "data" / "test_files" / name).read_bytes() for name in names]


def nrrd() -> list[bytes]:
    said = "NRRD0004\n# x\ntype: short\ndimension: 3\nsizes: 3 4 5\nendian: little\nspace: LPS\n"
    said += (
        "space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (1,2,3)\nkinds: domain domain domain\nkey:=value\n"
    )
    data = np.arange(60, dtype="<i2").tobytes()
    packed = {"raw": data, "gzip": gzip.compress(data, 1, mtime=0), "bzip2": bz2.compress(data)}
    made = [f"{said}encoding: {kind}\n\n".encode() + body for kind, body in packed.items()]
    four = "NRRD0005\ntype: uint8\ndimension: 4\nsizes: 2 3 4 5\nencoding: raw\nkinds: time space space space\nspacings: nan 1 2 3\n\n"
    return [*made, four.encode() + bytes(120), made[0].replace(b"encoding", b"data file: x.raw\nencoding")]


def metaimage() -> list[bytes]:
    said = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    said += "Offset = 1 2 3\nElementSpacing = 1 2 3\nDimSize = 3 4 5\nElementType = MET_SHORT\n"
    data = np.arange(60, dtype="<i2").tobytes()
    packed = zlib.compress(data)
    zipped = f"{said}CompressedData = True\nCompressedDataSize = {len(packed)}\nElementDataFile = LOCAL\n".encode()
    return [
        f"{said}ElementDataFile = LOCAL\n".encode() + data,
        zipped + packed,
        f"{said}ElementDataFile = x.raw\n".encode(),
    ]


def ome_tiff() -> list[bytes]:
    """A z-stack of OME and of ImageJ, and a pyramid."""
    import tifffile

    stacks, stack = [], np.arange(2 * 3 * 9 * 8, dtype=np.uint16).reshape(2, 3, 9, 8)
    for options in (
        {"ome": True, "metadata": {"axes": "CZYX", "PhysicalSizeX": 0.2, "Channel": {"Name": ["DAPI", "x"]}}},
        {"imagej": True, "metadata": {"axes": "ZCYX", "unit": "um", "spacing": 2.0}},
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, stack, **options)
        stacks.append(buffer.getvalue())
    for kind in (True, False):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, ome=kind) as writer:
            said = {"tile": (16, 16), "photometric": "rgb", "compression": "zlib"}
            writer.write(
                np.ones((40, 50, 3), np.uint8),
                subifds=1 if kind else 0,
                metadata={"axes": "YXS"} if kind else None,
                **said,
            )
            writer.write(np.ones((20, 25, 3), np.uint8), subfiletype=1, metadata=None, **said)
        stacks.append(buffer.getvalue())
    return stacks


# Jobs and models


JOB = b"""name: brain
dataset: mri   # which
where: modality = 'MR' and site in ('A', 'B')
model: deepbet@1.0.2
output: brain
options: {threshold: 0.5, grid: [1, 2, 3], "x": null, deep: {a: [1.5, -2, true]}}
resources: {workers: 2, threads: 1, memory_gb: 1.5, price_per_hour: 0.1}
"""
MODEL = b"""name: m
version: "1"
task: residues
runtime: python
files:
  net: {path: net.pt, sha256: a000000000000000000000000000000000000000000000000000000000000000}
network: diastole.workers.models.residue_lstm:ResidueLSTM
network_options: {letters: 20, hidden: 4}
inputs:
  input: {modality: [protein], length: {min: 1, max: 100}}
classes: [H, E, C]
options: {alphabet: ACDE}
tolerance: 1.0e-3
"""


def job(data: bytes) -> None:
    path = folder() / "job.yaml"
    path.write_bytes(data)
    found = load_job(path)
    assert len(found.job_digest) == 32
    assert parse_job(json.loads(json.dumps(found.model_dump(mode="json")))) == found


def manifest(data: bytes) -> None:
    import yaml

    found = models.parse_manifest(data, "model.yaml")
    again = models.parse_manifest(yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False).encode(), "again")
    assert again.model_digest == found.model_digest


def weights() -> list[bytes]:
    made = []
    for legacy in (False, True):
        buffer = io.BytesIO()
        torch.save({"fc.weight": torch.ones(2, 3)}, buffer, _use_new_zipfile_serialization=not legacy)
        made.append(buffer.getvalue())
    return made


def state_dict(data: bytes) -> None:
    for value in archives.state_dict(data, "net.pt").values():
        if isinstance(value, torch.Tensor):
            assert value.numel() * value.element_size() <= max(2**22, 2 * len(data))


@functools.cache
def scripts() -> tuple[bytes, ...]:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Net(), torch.zeros(1, 2)), buffer)
    return (buffer.getvalue(),)


def field(number: int, value: bytes) -> bytes:
    """A field of a protobuf message, of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value


def onnx(*, outside: bytes | None = None) -> bytes:
    """An ONNX model: y = x + w, where w is in the file, or in another one."""
    tensor = bytes([1 << 3, 1, 2 << 3, 1]) + field(8, b"w")
    if outside is None:
        tensor += field(9, np.ones(1, np.float32).tobytes())
    else:
        tensor += field(13, field(1, b"location") + field(2, outside)) + bytes([14 << 3, 1])
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"Add")
    shape = field(2, field(1, bytes([1 << 3, 1])))  # one dimension, of 1
    kind = field(2, field(1, bytes([1 << 3, 1]) + shape))
    graph = field(1, node) + field(2, b"g") + field(5, tensor) + field(11, field(1, b"x") + kind)
    graph += field(12, field(1, b"y") + kind)
    return bytes([1 << 3, 8]) + field(7, graph) + field(8, field(1, b"") + bytes([2 << 3, 13]))


# Files of a run


RECEIPT = Receipt(
    "0" * 32, "00003-0", 2,
    (Part("level=item/key_group=ab/x-00003-0-1.parquet", 10, "0" * 64, 3, "item"),), ({"path": "maps/o/x", "bytes": 1, "sha256": "1" * 64},), 3, 0,
    {"read": 0.5}, {"00003-0-0": [1, 2]},
)  # fmt: skip


def receipt(data: bytes) -> None:
    found = Receipt.from_bytes(data, "receipt")
    assert Receipt.from_bytes(found.to_bytes(), "again") == found
    assert all(file["path"].startswith("maps/") for file in found.files)


def wave(data: bytes) -> None:
    lake().store.put("runs/x/waves/1.json", data, durable=False)
    commit._fixed(lake(), "runs/x/waves/1.json")


def plan_of() -> Plan:
    units = pa.table({f.name: pa.array([None, None], f.type) for f in UNITS}, schema=UNITS)
    return Plan(
        {"name": "j", "resources": {"attempts": 3}},
        "m@1",
        "0" * 32,
        "1" * 32,
        "ab",
        "residues",
        1,
        {},
        "o",
        -1,
        "cpu",
        1,
        {},
        units,
        {},
    )


def plan(data: bytes) -> None:
    lake().store.put("runs/x/plan.parquet", data, durable=False)
    for units in (True, False):
        found = runs.read_plan(lake(), "x", units=units)
        assert found.units.schema == UNITS
        repr(found.header())


def plan_header(data: bytes) -> None:
    table = plan_of().units.replace_schema_metadata({"diastole": data})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    plan(buffer.getvalue())


def json_of_run(data: bytes) -> None:
    for name, read in (("run.json", runs.read_record), ("estimate.json", runs.read_estimate)):
        lake().store.put(f"runs/x/{name}", data, durable=False)
        assert isinstance(read(lake(), "x"), dict)


TUNED = {"model": "m@1", "model_digest": "0" * 32, "device": "cpu", "versions": {"torch": "2"}, "runtime": {"batch": 2}}


def tuned_file(data: bytes) -> None:
    found = models.parse_manifest(MODEL, "m")
    lake().store.put("tuned/m/1/cpu.json", data, durable=False)
    runtime, _ = tuned.choose(lake(), found, "cpu", Resources(batch=1))
    assert isinstance(runtime, dict)


def lease(data: bytes) -> None:
    lake().store.put("leases/shared/x.json", data, durable=False)
    holder = leases.living(lake(), "leases/shared/x.json")
    if holder is not None:
        f"{holder['what']} {leases._who(holder)}"


def lake_json(data: bytes) -> None:
    def read() -> None:
        opened = Lake.open(str(lake().store.local))
        try:
            assert len(opened.key) == 32
        except FileNotFoundError as error:
            raise AssertionError from error

    with own_keys():
        nothing_wrong("lake.json", data, read)


OUTPUT = {"task": "residues", "schema_version": 1, "classes": ["H"], "columns": {"x": "string"}, "units": {}}


def output(data: bytes) -> None:
    lake().store.put("predictions/o/output.json", data, durable=False)
    predictions.fix_output(lake(), "o", "residues", ["H"], pa.schema([("x", pa.string())]), {})


def table(data: bytes) -> None:
    """The CSV that comes with sources."""
    path, root = folder() / "m.csv", folder()
    path.write_bytes(data)
    for name in ("a.nii", "b.nii"):
        (root / name).touch()
    for _, row in sources.read_manifest(str(path), [str(root)]).values():
        sources.acquired_at(row.get("acquired_at"))


def csvs() -> list[bytes]:
    out = io.StringIO()
    csv.writer(out).writerows(
        [["path", "key", "name", "acquired_at"], ["a.nii", "k", "n, m", "2020-01-31T12:00:00+02:00"]]
    )
    return [out.getvalue().encode(), b'path,subject\n"a.nii",07\nb.nii,\n']


# Data of a lake: right, or refused


@functools.cache
def original(what: str) -> Any:
    return _READ[what]()


def volume() -> Any:
    path = stored("datasets/d/arrays/*.zarr/zarr.json").rpartition("/")[0]
    return arrays.read_whole(lake(), path, path.rpartition("/")[2].removesuffix(".zarr"))[0]


def pack() -> Any:
    path = stored("datasets/d/images/*.zarr/zarr.json").rpartition("/")[0]
    opened = packs.Pack.open(lake(), path)
    assert opened.image_bytes < 2**40
    expected = packs.raw_digests([f"{n:032x}" for n in range(40)])
    images, bad = opened.read(0, 40, expected)
    scattered, lost = opened.take(np.array([39, 3, 17]), expected[[39, 3, 17]])
    return images, bad, scattered, lost


def letters() -> Any:
    path = stored("datasets/d/sequences/*.parquet")
    found = sequences.read_rows(lake(), path, [0, 1, 2])
    digests = [sequences.sequence_digest("protein", one) for one in (b"MKVW", b"AC", b"GGG")]
    right = {}
    for row, text in found.items():
        try:
            sequences.verified(digests[row], text)
            right[row] = text
        except ItemError:
            continue
    return right


_READ: dict[str, Callable[[], Any]] = {"volume": volume, "pack": pack, "letters": letters}


def data_of(pattern: str, what: str) -> Callable[[bytes], None]:
    """Reading a file of the lake's data, edited: what comes is what was there, or is known not to be."""

    def read(data: bytes) -> None:
        right = original(what)
        found = nothing_wrong(stored(pattern), data, _READ[what])
        if what == "volume":
            assert np.array_equal(found, right)
        elif what == "letters":
            assert all(right[row] == text for row, text in found.items())
        else:
            images, bad, scattered, lost = found
            assert bad.all() or np.array_equal(images[~bad], right[0][~bad])
            assert lost.all() or np.array_equal(scattered[~lost], right[2][~lost])

    return read


def bytes_of(pattern: str) -> Callable[[], list[bytes]]:
    return lambda: [lake().store.get(stored(pattern))]


def part(data: bytes) -> None:
    """A part whose receipt has the digest of what is there: its maker may have written anything."""
    lake().store.put("predictions/o/p.parquet", data, durable=False)
    said = Part("p.parquet", len(data), sha256_bytes(data), 2, "item")
    found = read_part(lake(), "predictions/o", said, check._ROWS.names)
    try:
        found.cast(check._ROWS)
    except (pa.ArrowInvalid, ValueError, pa.ArrowNotImplementedError) as error:
        raise CommitError("columns") from error


def parts() -> list[bytes]:
    buffer = io.BytesIO()
    rows = pa.table({"item_id": ["a", "b"], "input_digest": ["c", "d"], "n_rows": [0, 1]})
    pq.write_table(rows, buffer, write_page_checksum=True)
    return [buffer.getvalue()]


def as_json(value: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode()]


ZARR, IMAGES = "datasets/d/arrays/*.zarr", "datasets/d/images/*.zarr"
TARGETS: dict[str, Target] = {
    "nifti": Target(nifti, source),
    "nifti.gz": Target(lambda: [gzip.compress(one, 1, mtime=0) for one in nifti()], source, within_gzip),
    "dicom": Target(dicoms, source),
    "nrrd": Target(nrrd, source),
    "metaimage": Target(metaimage, source),
    "tiff.ome": Target(ome_tiff, source),
    "edf": Target(edf, source),
    "brainvision": Target(lambda: [BRAINVISION.encode()], beside(recording_files(), "sub-1_task-x_eeg.vhdr")),
    "brainvision.markers": Target(lambda: [MARKERS.encode()], beside(recording_files(), "sub-1_task-x_eeg.vmrk")),
    "bids.channels": Target(of_recording("channels.tsv"), beside(recording_files(), "sub-1_task-x_channels.tsv")),
    "bids.events": Target(of_recording("events.tsv"), beside(recording_files(), "sub-1_task-x_events.tsv")),
    "bids.json": Target(of_recording("eeg.json"), beside(recording_files(), "sub-1_task-x_eeg.json"), mutate_json),
    "eeglab": Target(matlab(compressed=False), source),
    "eeglab.packed": Target(matlab(compressed=True), source),
    "eeglab.hdf5": Target(hdf5, source),
    "fif": Target(fif, source),
    "fif.gz": Target(lambda: [gzip.compress(one, 1, mtime=0) for one in fif()], source, within_gzip),
    "fasta": Target(fasta, source),
    "fasta.gz": Target(lambda: [gzip.compress(one, 1, mtime=0) for one in fasta()], source, within_gzip),
    "genbank": Target(genbank, source),
    "structure": Target(structure, source),
    "vcf": Target(vcf, in_child),
    "zip": Target(zips, source),
    "vcf.gz": Target(lambda: [gzip.compress(one, 1, mtime=0) for one in vcf()], in_child, within_gzip),
    "npy": Target(npy, source),
    "png": Target(lambda: picture("PNG", ["L", "RGB", "P", "RGBA", "1", "I;16"]), source, with_png_sums),
    "jpeg": Target(lambda: picture("JPEG", ["L", "RGB"]), source),
    "tiff": Target(tiff, source),
    "job": Target(lambda: [JOB], job),
    "model": Target(lambda: [MODEL], manifest),
    "state_dict": Target(weights, state_dict),
    "torchscript": Target(lambda: list(scripts()), lambda data: archives.torchscript(data, "net.pt")),
    "onnx": Target(lambda: [onnx(), onnx(outside=b"x")], lambda data: archives.onnx(data, "net.onnx")),
    "receipt": Target(lambda: [RECEIPT.to_bytes()], receipt, mutate_json),
    "wave": Target(as_json([asdict(p) for p in RECEIPT.parts]), wave, mutate_json),
    "plan": Target(lambda: [plan_of().to_bytes()], plan),
    "plan.header": Target(as_json(plan_of().header()), plan_header, mutate_json),
    "run.json": Target(as_json({"state": "done", "predicted": None}), json_of_run, mutate_json),
    "tuned": Target(as_json(TUNED), tuned_file, mutate_json),
    "lease": Target(as_json({"what": "w", "host": "h", "pid": 3, "owner": "o", "until": 9e12}), lease, mutate_json),
    "lake.json": Target(bytes_of("lake.json"), lake_json, mutate_json),
    "output.json": Target(as_json(OUTPUT), output, mutate_json),
    "manifest": Target(csvs, table),
    "array.group": Target(bytes_of(f"{ZARR}/zarr.json"), data_of(f"{ZARR}/zarr.json", "volume"), mutate_json),
    "array.meta": Target(bytes_of(f"{ZARR}/0/zarr.json"), data_of(f"{ZARR}/0/zarr.json", "volume"), mutate_json),
    "array.shard": Target(bytes_of(f"{ZARR}/0/c/**/*"), data_of(f"{ZARR}/0/c/**/*", "volume"), lambda d, e, o: with_index_sum(d, e, 2)),
    "pack.group": Target(bytes_of(f"{IMAGES}/zarr.json"), data_of(f"{IMAGES}/zarr.json", "pack"), mutate_json),
    "pack.meta": Target(bytes_of(f"{IMAGES}/images/zarr.json"), data_of(f"{IMAGES}/images/zarr.json", "pack"), mutate_json),
    "pack.shard": Target(bytes_of(f"{IMAGES}/images/c/**/*"), data_of(f"{IMAGES}/images/c/**/*", "pack"), lambda d, e, o: with_index_sum(d, e, 1)),
    "pack.digests": Target(bytes_of(f"{IMAGES}/digests/c/**/*"), data_of(f"{IMAGES}/digests/c/**/*", "pack"), lambda d, e, o: with_index_sum(d, e, 1)),
    "sequences": Target(bytes_of("datasets/d/sequences/*.parquet"), data_of("datasets/d/sequences/*.parquet", "letters")),
    "part": Target(parts, part),
}  # fmt: skip
"""By name."""


def attempt(name: str, data: bytes) -> None:
    """Read what a target may be given. Raises what is a finding, and nothing else."""
    said = ""
    try:
        TARGETS[name].read(data)
    except DiastoleError as error:
        said = str(error)
    assert "\n" not in said, f"more than one line: {said!r}"
    assert len(said) < 2000, "it quotes the whole file"
