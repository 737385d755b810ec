"""NRRD, MetaImage and NIfTI pairs: voxels and affine are SimpleITK's, or the file is refused with a code and no text of its own."""

import bz2
import gzip
import shutil
import zlib

import nibabel
import nrrd as pynrrd
import numpy as np
import published
import pytest
import SimpleITK as sitk

from diastole.lake import arrays, items, quarantine
from diastole.lake.errors import ItemError
from diastole.workers import formats
from diastole.workers.decode import Decoder
from diastole.workers.formats import Limits, ReadOptions, metaimage, nifti, nrrd
from diastole.workers.ingest import IngestOptions, ingest

REAL = [f"{name}_{kind}" for name in ("brain1", "brain2", "breast1", "lung1", "lung2") for kind in ("image", "label")]
NAME = "SMITHJOHN1957"


def real(name):
    return published.data.member("pyradiomics", f"pyradiomics-3.0.1/data/{name}.nrrd")


def read(path, folder, *, limits=Limits()):  # noqa: B008
    """As the parent does: what it is a part of first, then all parts."""
    reader, part = formats.part_of(path, None)
    parts = (path, *(path.with_name(name) for name in part.beside)) if part.beside else ()
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    options = ReadOptions(limits, parts=tuple(sorted(parts)))
    reader.preflight(path, limits)
    [entry] = reader.read(path, out, options)
    return np.load(out / entry["file"], allow_pickle=False), entry


def code(path, folder, **said):
    with pytest.raises(ItemError) as caught:
        read(path, folder, **said)
    assert NAME not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.code


def to_ras(image):
    """The affine of voxel (x, y, z) to RAS in mm, of an image of SimpleITK's."""
    affine = np.eye(4)
    turned = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)
    affine[:3, :3] = turned[:3, :3] @ np.diag(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return np.diag([-1, -1, 1, 1]) @ affine


def assert_is(found, entry, image):
    """Voxel for voxel, and the affine within 1e-6 mm."""
    wanted = sitk.GetArrayFromImage(image)
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted)
    assert np.abs(np.reshape(entry["meta"]["affine"], (4, 4)) - to_ras(image)).max() < 1e-6
    assert "".join(nibabel.aff2axcodes(to_ras(image))) == entry["meta"]["orientation"]
    assert np.allclose(entry["meta"]["spacing"], image.GetSpacing()[:3], atol=1e-6)


@pytest.mark.parametrize("name", REAL)
def test_real_nrrd_files_are_what_simpleitk_and_pynrrd_read(tmp_path, name):
    found, entry = read(real(name), tmp_path)
    assert_is(found, entry, sitk.ReadImage(str(real(name))))
    theirs, _ = pynrrd.read(str(real(name)), index_order="C")
    assert np.array_equal(found, theirs)
    assert entry["attributes"] == {"format": "nrrd", "affine": "space"} | (
        {"non_finite": 0} if found.dtype.kind == "f" else {}
    )


@pytest.fixture(scope="module")
def volume():
    """A part of a real CT, turned by an odd angle, so that no axis is that of the body."""
    image = sitk.ReadImage(str(real("lung2_image")))[100:160, 200:250, 5:45]
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.2, -0.1, 0.3)
    image.SetDirection((np.reshape(turn.GetMatrix(), (3, 3)) @ np.reshape(image.GetDirection(), (3, 3))).ravel())
    return image


KINDS = ["UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.hdr"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_simpleitk_wrote_is_what_it_reads(tmp_path, volume, kind, name, packed):
    image = sitk.Cast(volume[:20, :15, :10], getattr(sitk, f"sitk{kind}"))
    sitk.WriteImage(image, str(tmp_path / name), packed)
    if name == "a.hdr":
        image = sitk.ReadImage(str(tmp_path / name))  # NIfTI keeps less than double precision
    found, entry = read(tmp_path / name, tmp_path / "out")
    assert_is(found, entry, image)


@pytest.mark.parametrize("writes", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("big", [True, False])
def test_encodings_and_byte_orders_of_nrrd_are_what_pynrrd_reads(tmp_path, writes, attached, big):
    data = np.random.default_rng(0).integers(-999, 999, (7, 8, 9)).astype(">i2" if big else "<i2")
    header = {"encoding": writes, "spacings": [1.5, 2.0, 3.0], "endian": "big" if big else "little"}
    path = tmp_path / ("a.nrrd" if attached else "a.nhdr")
    pynrrd.write(str(path), data, header, index_order="C", detached_header=not attached)
    found, entry = read(path, tmp_path / "out")
    assert found.dtype.str == "<i2"
    assert np.array_equal(found, pynrrd.read(str(path), index_order="C")[0])
    assert (entry["meta"]["spacing"], entry["meta"]["orientation"]) == ([1.5, 2.0, 3.0], None)


def by_hand(path, fields, data):
    path.write_bytes(b"NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in fields.items()).encode() + b"\n" + data)
    return path


CUBE = {"type": "uint8", "dimension": 3, "sizes": "4 3 2", "encoding": "raw"}
TURNED = CUBE | {"space directions": "(0,2,0) (-3,0,0) (0,0,4)", "space origin": "(10,20,30)"}
BYTES = bytes(range(24))


@pytest.mark.parametrize(
    ("space", "flips"),
    [("right-anterior-superior", (1, 1, 1)), ("RAS", (1, 1, 1)), ("LAS", (-1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)),
     ("LPS", (-1, -1, 1)), ("left-posterior-superior", (-1, -1, 1))],
)  # fmt: skip
def test_every_space_becomes_ras_in_mm(tmp_path, space, flips):
    path = by_hand(tmp_path / "a.nrrd", TURNED | {"space": space, "space units": '"cm" "cm" "cm"'}, BYTES)
    found, entry = read(path, tmp_path / "out")
    assert np.array_equal(found, np.arange(24).reshape(2, 3, 4))
    voxel, expected = np.array([1, 2, 1, 1]), 10 * np.array([10 - 6, 20 + 2, 30 + 4]) * flips
    assert np.allclose(np.reshape(entry["meta"]["affine"], (4, 4)) @ voxel, [*expected, 1])
    assert entry["meta"]["spacing"] == [20, 30, 40]


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-left-handed"])
def test_a_space_that_says_nothing_of_the_body_has_no_orientation(tmp_path, space):
    _, entry = read(by_hand(tmp_path / "a.nrrd", TURNED | {"space": space}, BYTES), tmp_path / "out")
    assert (entry["meta"]["orientation"], entry["attributes"]["affine"]) == (None, "assumed")


@pytest.mark.parametrize(("kinds", "first"), [("time space space space", True), ("domain domain domain list", False)])
def test_time_may_be_the_slowest_axis_or_the_fastest(tmp_path, kinds, first):
    data = np.random.default_rng(1).integers(0, 99, (5, 2, 3, 4)).astype("<u2")  # t, z, y, x
    stored = np.moveaxis(data, 0, -1) if first else data
    directions = ["(1,0,0)", "(0,1,0)", "(0,0,1)"]
    directions.insert(0 if first else 3, "none")
    fields = {"type": "ushort", "dimension": 4, "sizes": " ".join(map(str, stored.shape[::-1])), "encoding": "gzip"}
    fields |= {"endian": "little", "kinds": kinds, "space": "RAS", "space directions": " ".join(directions)}
    path = by_hand(tmp_path / "a.nrrd", fields, gzip.compress(np.ascontiguousarray(stored).tobytes()))
    found, entry = read(path, tmp_path / "out")
    assert np.array_equal(found, data)
    assert entry["meta"]["orientation"] == "RAS"
    assert entry["attributes"]["fourth_axis"] in ("time", "list")


def test_two_axes_are_an_image_with_its_pixel_size(tmp_path):
    plane = sitk.ReadImage(str(real("lung2_image")))[100:160, 200:250, 3]
    for name in ("a.nrrd", "a.mha"):
        sitk.WriteImage(plane, str(tmp_path / name))
        found, entry = read(tmp_path / name, tmp_path / "out")
        assert entry["kind"] == "images"
        assert np.array_equal(found[0, 0], sitk.GetArrayFromImage(plane))
        assert np.allclose(entry["meta"]["spacing"], plane.GetSpacing())


def test_time_is_the_fourth_axis_of_metaimage_and_of_a_nifti_pair(tmp_path, volume):
    series = sitk.JoinSeries([volume[:9, :8, :7], 2 * volume[:9, :8, :7] + 1])
    for name in ("a.mha", "a.hdr"):
        sitk.WriteImage(series, str(tmp_path / name))
        found, entry = read(tmp_path / name, tmp_path / "out")
        assert_is(found, entry, sitk.ReadImage(str(tmp_path / name)) if name == "a.hdr" else series)


def test_packed_images_of_nifti_pairs_are_read(tmp_path, volume):
    sitk.WriteImage(volume, str(tmp_path / "a.hdr"))
    (tmp_path / "a.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
    (tmp_path / "a.img").unlink()
    found, _ = read(tmp_path / "a.hdr", tmp_path / "out")
    assert np.array_equal(found, sitk.GetArrayFromImage(volume))


# Refused


VECTOR = {"dimension": 4, "sizes": "3 4 2 1"}


@pytest.mark.parametrize(
    "change",
    [VECTOR | {"kinds": "vector domain domain domain"}, VECTOR | {"kinds": "RGB-color domain domain domain"}, VECTOR, VECTOR | {"kinds": "domain domain list domain"},
     {"kinds": "3-vector domain domain"}, {"encoding": "hex"}, {"encoding": "text"}, {"type": "block", "block size": 1}, {"line skip": 2}, {"space": "RAST", "space directions": "(1,0,0) (0,1,0) (0,0,1)"},
     {"data file": "LIST"}, {"data file": "a.%03d.raw 1 3 1"}, {"spacings": "1 1 1", "units": '"px" "px" "px"'}],
)  # fmt: skip
def test_nrrd_that_is_no_plain_volume_is_refused(tmp_path, change):
    assert code(by_hand(tmp_path / "a.nrrd", CUBE | change, BYTES), tmp_path / "out") == "unsupported"


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    "change",
    [{"sizes": "4 3 -2"}, {"sizes": "4 3 0"}, {"sizes": "4 3"}, {"dimension": 4}, {"type": NAME}, {"sizes": NAME}, {"dimension": NAME}, {"sizes": "4 3 1"}, {"type": "int16"},
     {"space": "LPS", "space directions": "(0,0,0) (0,1,0) (0,0,1)"}, {"space": "LPS", "space directions": "(nan,0,0) (0,1,0) (0,0,1)"},
     {"space": "LPS", "space directions": "(1,0,0) (1,0,0) (0,0,1)"}, {"space": "LPS", "space directions": f"({NAME},0,0) (0,1,0) (0,0,1)"},
     {"spacings": "0 1 1"}, {"spacings": "inf 1 1"}, {"sizes": "9" * 30 + " 1 1"}],
)  # fmt: skip
def test_lying_nrrd_headers_are_found(tmp_path, change):
    path = by_hand(tmp_path / "a.nrrd", CUBE | change, BYTES)
    assert code(path, tmp_path / "out") in ("header_lies", "too_large", "unsupported")


META = {"ObjectType": "Image", "NDims": 3, "BinaryData": "True", "ElementType": "MET_UCHAR", "DimSize": "4 3 2"}


def meta(path, change=None, data=BYTES):
    fields = META | (change or {})
    fields["ElementDataFile"] = fields.pop("ElementDataFile", "LOCAL")
    path.write_bytes("".join(f"{k} = {v}\n" for k, v in fields.items()).encode() + data)
    return path


def test_metaimage_without_a_matrix_has_no_orientation(tmp_path):
    _, entry = read(meta(tmp_path / "a.mha", {"ElementSpacing": "1 2 3"}), tmp_path / "out")
    assert (entry["meta"]["spacing"], entry["meta"]["orientation"]) == ([1, 2, 3], None)


@pytest.mark.parametrize(
    "change",
    [{"ElementNumberOfChannels": 3}, {"ElementType": "MET_STRING"}, {"BinaryData": "False"}, {"ObjectType": "Image", "NDims": 5, "DimSize": "4 3 2 1 2"},
     {"ElementDataFile": "LIST"}, {"ElementDataFile": "a%03d.raw 1 3 1"}, {"DistanceUnits": NAME}],
)  # fmt: skip
def test_metaimage_that_is_no_plain_volume_is_refused(tmp_path, change):
    assert code(meta(tmp_path / "a.mha", change), tmp_path / "out") == "unsupported"


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    "change",
    [{"DimSize": "4 3 -2"}, {"DimSize": "4 3"}, {"DimSize": "4 3 0"}, {"DimSize": NAME}, {"NDims": 4}, {"DimSize": "4 3 1"}, {"ElementSpacing": "0 1 1"}, {"ElementSpacing": "1 1"},
     {"ElementSpacing": "nan 1 1"}, {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, {"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, {"HeaderSize": -7}, {"CompressedData": NAME},
     {"CompressedData": "True", "CompressedDataSize": -1}, {"Offset": f"{NAME} 1 1"}, {"DimSize": "99999999 99999999 99999999"}],
)  # fmt: skip
def test_lying_metaimage_headers_are_found(tmp_path, change):
    assert code(meta(tmp_path / "a.mha", change), tmp_path / "out") in ("header_lies", "too_large")


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    "target", ["../secret.raw", "/etc/passwd", "http://169.254.169.254/x", "file:///etc/passwd", "a/../b.raw", "..", "C:\\x.raw"]
)  # fmt: skip
def test_a_data_file_elsewhere_is_refused(tmp_path, target):
    (tmp_path / "secret.raw").write_bytes(BYTES)
    inner = tmp_path / "in"
    inner.mkdir()
    assert code(meta(inner / "a.mhd", {"ElementDataFile": target}, b""), tmp_path / "out") == "header_lies"
    path = by_hand(inner / "a.nhdr", CUBE | {"data file": target}, b"")
    assert code(path, tmp_path / "out") == "header_lies"


@pytest.mark.fault(41)
def test_a_data_file_that_is_a_link_or_not_there_is_refused(tmp_path):
    (tmp_path / "secret.raw").write_bytes(BYTES)
    inner = tmp_path / "in"
    inner.mkdir()
    for path in (
        meta(inner / "a.mhd", {"ElementDataFile": "a.raw"}, b""),
        by_hand(inner / "a.nhdr", CUBE | {"data file": "a.raw"}, b""),
    ):
        assert code(path, tmp_path / "out") == "part_missing"
        (inner / "a.raw").symlink_to(tmp_path / "secret.raw")
        assert code(path, tmp_path / "out") == "part_missing"
        (inner / "a.raw").unlink()


def files(folder, volume):
    """One of each, each of which ends with its voxels."""
    for name, packed in (
        ("a.nrrd", False),
        ("b.nrrd", True),
        ("a.mha", False),
        ("b.mha", True),
        ("a.mhd", True),
        ("a.nhdr", True),
    ):
        sitk.WriteImage(volume[:20, :15, :10], str(folder / name), packed)
    by_hand(folder / "c.nrrd", CUBE | {"encoding": "bzip2"}, bz2.compress(BYTES))
    return {
        p.name: p.with_suffix({".mhd": ".zraw", ".nhdr": ".raw.gz"}.get(p.suffix, p.suffix))
        for p in sorted(folder.iterdir())
        if p.suffix not in (".zraw", ".gz")
    }


@pytest.mark.fault(32, 34)
def test_files_cut_anywhere_are_refused(tmp_path, volume):
    (tmp_path / "in").mkdir()
    for name, data in files(tmp_path / "in", volume).items():
        whole = data.read_bytes()
        for left in [0, 3, 9, 40, 200, *range(len(whole) // 7, len(whole), len(whole) // 7), len(whole) - 1]:
            if left >= len(whole):
                continue
            data.write_bytes(whole[:left])
            found = code(tmp_path / "in" / name, tmp_path / "out")
            assert found in ("truncated", "checksum", "header_lies", "unknown_format", "unsupported"), (name, left)
        data.write_bytes(whole + b"\0\1\2")
        if data.suffix != ".bz2" and name != "c.nrrd":
            assert code(tmp_path / "in" / name, tmp_path / "out") in ("header_lies", "checksum")
        data.write_bytes(whole)
        read(tmp_path / "in" / name, tmp_path / "out")


@pytest.mark.fault(35)
def test_flipped_bytes_in_packed_voxels_are_found(tmp_path, volume):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for name, data in files(tmp_path / "in", volume).items():
        whole = data.read_bytes()
        if name in ("a.nrrd", "a.mha"):
            continue  # these have no checksum
        for place in rng.integers(len(whole) * 2 // 3 if len(whole) > 500 else len(whole) - 40, len(whole), 20):
            damaged = bytearray(whole)
            damaged[place] ^= 0x10
            data.write_bytes(damaged)
            assert code(tmp_path / "in" / name, tmp_path / "out") in ("truncated", "checksum", "header_lies"), (
                name,
                place,
            )
        data.write_bytes(whole)


@pytest.mark.fault(33)
def test_bombs_cost_one_item_and_no_memory(tmp_path):
    nothing = bytes(2**20)
    packers = {"gzip": zlib.compressobj(9, wbits=31), "bzip2": bz2.BZ2Compressor(), "zlib": zlib.compressobj(9)}
    bombs = {}
    for kind, packer in packers.items():
        bombs[kind] = b"".join([*(packer.compress(nothing) for _ in range(100)), packer.flush()])
    by_hand(tmp_path / "small.nrrd", CUBE | {"encoding": "gzip"}, bombs["gzip"])
    by_hand(tmp_path / "bz.nrrd", CUBE | {"encoding": "bzip2"}, bombs["bzip2"])
    meta(tmp_path / "small.mha", {"CompressedData": "True"}, bombs["zlib"])
    huge = {"sizes": "30000 30000 30000", "encoding": "gzip"}
    by_hand(tmp_path / "huge.nrrd", CUBE | huge, bombs["gzip"])
    meta(tmp_path / "huge.mha", {"CompressedData": "True", "DimSize": "3000 3000 400"}, bombs["zlib"])
    said = {}
    with Decoder(memory_bytes=2**29) as decoder:
        for path in sorted(tmp_path.iterdir()):
            with pytest.raises(ItemError) as caught:
                decoder.decode(path, None, ReadOptions(Limits(2**32)))
            said[path.name] = caught.value.code
    assert said == {
        "bz.nrrd": "header_lies", "huge.mha": "truncated", "huge.nrrd": "too_large",
        "small.mha": "header_lies", "small.nrrd": "header_lies",
    }  # fmt: skip


def test_a_volume_larger_than_the_childs_memory_is_read_through(tmp_path):
    path = tmp_path / "a.nrrd"
    fields = {
        "type": "uint16",
        "endian": "big",
        "dimension": 4,
        "sizes": "3 512 512 260",
        "kinds": "time domain domain domain",
        "encoding": "raw",
    }
    by_hand(path, fields, np.arange(2**19, dtype=">u2").tobytes() * (3 * 512 * 512 * 260 * 2 // 2**20))
    with Decoder(memory_bytes=2**28 + 2**27) as decoder:
        decoded = decoder.decode(path, None, ReadOptions())
        found = np.load(decoded.file("voxels.npy"), mmap_mode="r")
        assert found.shape == (3, 260, 512, 512)
        assert found.nbytes > 2**28 + 2**27
        assert found[1, 200, 7, 9] == (((200 * 512 + 7) * 512 + 9) * 3 + 1) % 2**16


@pytest.mark.fault(43)
def test_names_in_any_text_field_are_found_nowhere(tmp_path, volume):
    sitk.WriteImage(volume[:9, :8, :7], str(tmp_path / f"{NAME}.nrrd"))
    path = tmp_path / f"{NAME}.nrrd"
    head, data = path.read_bytes().split(b"\n\n", 1)
    texts = f'content: {NAME}\n# {NAME}\nlabels: "{NAME}" "b" "c"\nsample units: {NAME}\nPatientName:={NAME}\n{NAME}:={NAME}\nSizes:=1 1 1'
    path.write_bytes(head + b"\n" + texts.encode() + b"\n\n" + data)
    sitk.WriteImage(volume[:9, :8, :7], str(tmp_path / f"{NAME}.mhd"))
    header = tmp_path / f"{NAME}.mhd"
    header.write_text(
        f"Comment = {NAME}\nName = {NAME}\n{NAME} = {NAME}\nAcquisitionDate = 19570101\n" + header.read_text()
    )
    sitk.WriteImage(volume[:9, :8, :7], str(tmp_path / f"{NAME}.hdr"))
    for one in (path, header, tmp_path / f"{NAME}.hdr"):
        _, entry = read(one, tmp_path / "out")
        assert NAME not in str(entry)
        assert "1957" not in str(entry)
    for junk in (
        f"NRRD0004\ntype: {NAME}\n\n",
        f"ObjectType = Image\nNDims = 3\nDimSize = {NAME}\nElementDataFile = {NAME}/x\n",
    ):
        (tmp_path / "junk").write_text(junk)
        code(tmp_path / "junk", tmp_path / "out")


@pytest.mark.fault(43)
def test_a_cohort_of_them_is_ingested_with_its_data_files_and_without_a_name(lake, tmp_path, volume):
    small, place = volume[:9, :8, :7], tmp_path / "in"
    place.mkdir()
    for name, packed in (("a.nrrd", True), ("b.nhdr", True), ("c.mha", False), ("d.mhd", True), ("e.hdr", False)):
        sitk.WriteImage(small + ord(name[0]), str(place / f"{NAME}{name}"), packed)
    header = place / f"{NAME}d.mhd"
    header.write_text(f"Comment = {NAME}\n" + header.read_text())
    (place / "junk.mha").write_text(f"ObjectType = Image\nNDims = 3\nDimSize = {NAME}\nElementDataFile = LOCAL\n")
    report = ingest(lake, "d", [place], IngestOptions(modality="CT"))
    assert report.quarantined == {"header_lies": 1}
    found = {}
    for row in items.read_items(lake, "d").to_pylist():
        data, _ = arrays.read_whole(lake, row["array"], row["content_digest"])
        found[int(data.flat[0])] = data
    wanted = sitk.GetArrayFromImage(small)
    assert sorted(found) == [int(wanted.flat[0]) + ord(letter) for letter in "abcde"]
    for first, data in found.items():
        assert np.array_equal(data, wanted + (first - int(wanted.flat[0])))
    sitk.WriteImage(small + 300, str(place / f"{NAME}d.mhd"), True)  # only its data file is another
    header.write_text(f"Comment = {NAME}\n" + header.read_text())
    ingest(lake, "d", [place], IngestOptions(modality="CT"))
    assert items.read_items(lake, "d").num_rows == 5
    for path in lake.store.local.rglob("*"):
        assert NAME not in str(path.relative_to(lake.store.local))
        assert not path.is_file() or NAME.encode() not in path.read_bytes()
    assert NAME not in str(quarantine.read(lake).to_pylist())


def test_they_are_told_by_their_first_bytes(tmp_path, volume):
    sitk.WriteImage(volume, str(tmp_path / "a.nrrd"))
    sitk.WriteImage(volume, str(tmp_path / "a.mha"))
    shutil.copy(tmp_path / "a.nrrd", tmp_path / "a.dat")
    shutil.copy(tmp_path / "a.mha", tmp_path / "b.dat")
    assert formats.choose(tmp_path / "a.dat", None) is nrrd
    assert formats.choose(tmp_path / "b.dat", None) is metaimage
    assert formats.part_of(tmp_path / "a.dat", None)[1].beside == ()
    sitk.WriteImage(volume, str(tmp_path / "c.mhd"), True)
    assert formats.part_of(tmp_path / "c.mhd", None)[1].beside == ("c.zraw",)
    sitk.WriteImage(volume, str(tmp_path / "d.hdr"))
    assert formats.part_of(tmp_path / "d.hdr", None) == (nifti, formats.Part(beside=("d.img",)))
