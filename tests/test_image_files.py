"""PNG, JPEG and TIFF: pixels as they are stored, or a refusal with a code; nothing else of the file gets into the lake."""

import io
import json
import struct
import zlib
from pathlib import Path

import made
import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from PIL import Image, PngImagePlugin

from diastole.lake import integrity, items, packs, quarantine
from diastole.lake.layout import Lake
from diastole.workers.ingest import IngestOptions, ingest

from .test_images import model

REAL = Path(skimage.data.__file__).parent
PUBLIC = IngestOptions(public=True, modality="XC")
NAME = "Anna Beispiel"


def noise(*shape, dtype=np.uint8, seed=0, low=0, high=250):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def png(image, **said):
    file = io.BytesIO()
    image.save(file, "PNG", **said)
    return file.getvalue()


def jpeg(image, **said):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **said)
    return file.getvalue()


def tiff(data, **said):
    file = io.BytesIO()
    tifffile.imwrite(file, data, **said)
    return file.getvalue()


def png_by_hand(width, height, depth, colour, data, ends=True):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    end = chunk(b"IEND", b"") if ends else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + end


def taken(lake, folder, files):
    """(report, row and pixels by name) of files, by name, as one ingest takes them in."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    report = ingest(lake, "d", [folder], PUBLIC)
    found = {}
    for row in items.read_items(lake, "d").to_pylist():
        pack = packs.Pack.open(lake, row["array"])
        data, bad = pack.read(row["row"], row["row"] + 1, packs.raw_digests([row["content_digest"]]))
        assert not bad.any()
        assert (list(data.shape[1:]), data.dtype.name) == (row["shape"], row["dtype"])
        found[row["name"]] = (row, data[0], pack.meta)
    return report, found


GREY, RGB = noise(15, 22), noise(15, 22, 3)
GREY16 = noise(15, 22, dtype=np.uint16, high=65535)
PALETTE = Image.fromarray(noise(15, 22, high=16)).convert("P")
PALETTE.putpalette(noise(768).tobytes())
TURNED = Image.Exif()
TURNED[274] = 6  # the camera was held upright: shown, the picture is turned to the right


def planes(image):
    image = np.asarray(image)
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


STORED = {
    "grey.png": (png(Image.fromarray(GREY)), planes(GREY)),
    "rgb.png": (png(Image.fromarray(RGB)), planes(RGB)),
    "grey16.png": (png(Image.fromarray(GREY16)), planes(GREY16)),
    "two_levels.png": (png(Image.fromarray(GREY > 99)), planes((GREY > 99) * np.uint8(255))),
    "four_bits.png": (png_by_hand(4, 1, 4, 0, b"\0\x0f\x17"), np.array([[[0, 255, 17, 119]]], np.uint8)),
    "palette.png": (png(PALETTE), planes(PALETTE.convert("RGB"))),
    "opaque.png": (png(Image.fromarray(np.dstack([RGB, np.full((15, 22), 255, np.uint8)]))), planes(RGB)),
    "turned.jpg": (jpeg(Image.fromarray(GREY), exif=TURNED), None),
    "grey.tif": (tiff(GREY), planes(GREY)),
    "grey16.tif": (tiff(GREY16, byteorder=">"), planes(GREY16)),
    "real.tif": (tiff(GREY.astype(np.float32) / 7), planes(GREY.astype(np.float32) / 7)),
    "signed.tif": (tiff(GREY.astype(np.int16) - 99), planes(GREY.astype(np.int16) - 99)),
    "rgb.tif": (tiff(RGB, photometric="rgb"), planes(RGB)),
    "planar.tif": (tiff(planes(RGB), photometric="rgb", planarconfig="separate"), planes(RGB)),
    "deflated.tif": (tiff(RGB, photometric="rgb", compression="zlib", predictor=True), planes(RGB)),
    "five.tif": (tiff(noise(5, 20, 20), imagej=True, metadata={"axes": "CYX"}), noise(5, 20, 20)),
    "opaque.tif": (tiff(np.dstack([RGB, np.full((15, 22), 255, np.uint8)]), photometric="rgb", extrasamples=[2]), planes(RGB)),
}  # fmt: skip


@pytest.fixture(scope="module")
def all_stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        lake = Lake.create(str(folder / "lake"))
        files = {name.replace(".", "_", 1) + Path(name).suffix: data for name, (data, _) in STORED.items()}
        yield lake, *taken(lake, folder / "in", files)


@pytest.mark.parametrize("name", STORED)
def test_pixels_are_stored_as_they_are(all_stored, name):
    _, report, found = all_stored
    assert report.quarantined == {}
    row, pixels, meta = found[name.replace(".", "_", 1)]
    wanted = STORED[name][1]
    if name == "turned.jpg":
        wanted = planes(np.rot90(np.asarray(Image.open(io.BytesIO(STORED[name][0]))), -1))
    assert pixels.dtype == np.dtype(wanted.dtype).newbyteorder("=")
    assert np.array_equal(pixels, wanted)
    assert meta["channels"] == {1: "grey", 3: "RGB"}.get(len(wanted))
    assert row["geometry"] is None


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_tiff_in_lzw_and_jpeg_is_read(lake, tmp_path, compression):
    file = io.BytesIO()
    Image.fromarray(RGB).save(
        file, "TIFF", compression=compression, save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())]
    )
    _, found = taken(lake, tmp_path / "in", {"a.tif": file.getvalue()})
    assert set(found) == {"a#0", "a#1"}
    if compression == "tiff_lzw":
        assert np.array_equal(found["a#1"][1], planes(RGB[::-1]))
    assert np.abs(found["a#0"][1].astype(int) - planes(RGB)).mean() < 40


def test_pages_of_one_shape_are_images_of_their_own(lake, tmp_path):
    stack = noise(4, 15, 22)
    report, found = taken(
        lake,
        tmp_path / "in",
        {
            "plain.tif": tiff(stack, photometric="minisblack"),
            "time.tif": tiff(stack, imagej=True, metadata={"axes": "TYX"}),
            "colour.tif": tiff(noise(4, 15, 22, 3), photometric="rgb"),
        },
    )
    assert report.quarantined == {}
    for number in range(4):
        assert np.array_equal(found[f"plain#{number}"][1][0], stack[number])
        assert np.array_equal(found[f"time#{number}"][1][0], stack[number])
        assert np.array_equal(found[f"colour#{number}"][1], planes(noise(4, 15, 22, 3)[number]))


def two_pages():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(GREY, metadata=None)
        writer.write(GREY[:9], metadata=None)
    return file.getvalue()


def animation():
    file = io.BytesIO()
    frames = [Image.fromarray(noise(9, 9, seed=n)) for n in range(3)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    return file.getvalue()


WHOLE = png(Image.fromarray(RGB))
PHOTO = jpeg(Image.fromarray(noise(200, 200, 3)))
REFUSED = {
    "animated.png": (animation(), "unsupported"),
    "transparent.png": (png(Image.fromarray(noise(15, 22, 4))), "unsupported"),
    "one_colour_transparent.png": (png(Image.fromarray(RGB), transparency=tuple(map(int, RGB[0, 0]))), "unsupported"),
    "rgb16.png": (png_by_hand(2, 1, 16, 2, b"\0" + bytes(12)), "unsupported"),
    "cmyk.jpg": (jpeg(Image.fromarray(RGB).convert("CMYK")), "unsupported"),
    "cut.png": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "no_end.png": (png_by_hand(2, 1, 8, 0, b"\0ab", ends=False), "truncated"),
    "cut.jpg": (PHOTO[: len(PHOTO) // 2], "truncated"),
    "head.png": (WHOLE[:20], "truncated"),
    "flipped.png": (WHOLE[:200] + bytes([WHOLE[200] ^ 1]) + WHOLE[201:], "checksum"),
    "bomb.png": (png_by_hand(60000, 60000, 8, 0, bytes(10**6)), "too_large"),
    "pages.tif": (two_pages(), "unsupported"),
    "coloured_stack.tif": (tiff(noise(4, 15, 22, 3), imagej=True, metadata={"axes": "ZYXS"}), "unsupported"),
    "white_is_zero.tif": (tiff(GREY, photometric="miniswhite"), "unsupported"),
    "palette.tif": (tiff(GREY, photometric="palette", colormap=noise(3, 256, dtype=np.uint16)), "unsupported"),
    "double.tif": (tiff(GREY.astype(np.float64)), "unsupported"),
    "mirrored.tif": (tiff(GREY, extratags=[(274, 3, 1, 2, True)]), "unsupported"),
    "transparent.tif": (tiff(noise(15, 22, 4), photometric="rgb", extrasamples=[2]), "unsupported"),
    "cut.tif": (tiff(noise(90, 90))[:-50], "truncated"),
    "cut_deflated.tif": (tiff(noise(90, 90), compression="zlib")[:-50], "truncated"),
    "bomb.tif": (tiff(np.zeros((20000, 20000), np.uint8), compression="zlib"), "too_large"),
    "head.tif": (tiff(GREY)[:20], "unreadable"),
}


@pytest.fixture(scope="module")
def all_refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIASTOLE_KEYS", str(folder / "keys"))
        lake = Lake.create(str(folder / "lake"))
        for name, (data, _) in REFUSED.items():
            (folder / name).write_bytes(data)
        ingest(lake, "d", [folder / name for name in REFUSED], PUBLIC)
        keys = {lake.source_key(str(folder / name)): name for name in REFUSED}
        yield {keys[row["source_key"]]: row for row in quarantine.read(lake).to_pylist()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_stored_as_it_is_is_refused(all_refused, name):
    assert name in all_refused
    row = all_refused[name]
    assert row["error_code"] == REFUSED[name][1], row["error"]
    assert name not in row["error"]


def test_nothing_of_texts_and_names_gets_into_the_lake(lake, tmp_path):
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[315] = exif[270] = NAME
    text.add_text("Author", NAME)
    files = {
        f"{NAME}.png": png(Image.fromarray(RGB), pnginfo=text, exif=exif),
        f"{NAME}2.jpg": jpeg(Image.fromarray(RGB), exif=exif, comment=NAME),
        f"{NAME}3.tif": tiff(GREY, description=NAME, software=NAME, metadata={"who": NAME}),
    }
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        assert NAME.encode() in data
        (tmp_path / "in" / name).write_bytes(data)
    assert ingest(lake, "d", [tmp_path / "in"], IngestOptions(modality="XC")).added == 3
    assert all(NAME.encode() not in lake.store.get(path) for path, _ in lake.store.list("datasets"))
    shown = json.dumps(items.read_items(lake, "d").to_pylist(), default=str)
    assert NAME not in shown
    assert "who" not in shown


def test_the_size_of_a_pixel_is_kept_where_it_is_one_of_the_tissue(lake, tmp_path):
    _, found = taken(
        lake,
        tmp_path / "in",
        {
            "png.png": png(Image.fromarray(GREY), dpi=(2540.0, 5080.0)),
            "screen.png": png(Image.fromarray(GREY), dpi=(300, 300)),
            "photo.jpg": jpeg(Image.fromarray(GREY), dpi=(2540, 2540)),
            "cm.tif": tiff(GREY, resolution=(2000, 4000), resolutionunit="CENTIMETER"),
            "print.tif": tiff(GREY, resolution=(300, 300), resolutionunit="INCH"),
            "imagej.tif": tiff(GREY, imagej=True, resolution=(4, 2), metadata={"unit": "um"}),
            "no_unit.tif": tiff(GREY, imagej=True, resolution=(4, 2)),
        },
    )
    sizes = {name: (row["geometry"] or {}).get("spacing") for name, (row, _, _) in found.items()}
    assert sizes["png"] == pytest.approx([0.01, 0.005])
    assert sizes["cm"] == pytest.approx([0.005, 0.0025])
    assert sizes["imagej"] == pytest.approx([0.00025, 0.0005])
    assert {name for name, size in sizes.items() if size is None} == {"screen", "photo", "print", "no_unit"}


def test_many_files_of_one_shape_are_one_pack_and_a_changed_one_moves(lake, tmp_path):
    images = {f"cell{n}.png": noise(16, 16, seed=n) for n in range(20)}
    report, found = taken(lake, tmp_path / "in", {n: png(Image.fromarray(image)) for n, image in images.items()})
    assert report.added == 20
    assert len({row["array"] for row, _, _ in found.values()}) == 1
    assert ingest(lake, "d", [tmp_path / "in"], PUBLIC).opened == 0
    report, after = taken(lake, tmp_path / "in", {"cell7.png": png(Image.fromarray(noise(16, 16, seed=99)))})
    assert (report.opened, report.changed) == (1, 1)
    moved = {name for name in found if found[name][0]["array"] != after[name][0]["array"]}
    assert moved == {"cell7"}
    assert np.array_equal(after["cell7"][1][0], noise(16, 16, seed=99))


@pytest.mark.slow
def test_a_large_photo_fits_the_decoder(lake, tmp_path):
    image = Image.fromarray(np.kron(noise(90, 90, 3), np.ones((100, 100, 1), np.uint8)))
    _, found = taken(lake, tmp_path / "in", {"large.png": png(image, compress_level=1)})
    assert np.array_equal(found["large"][1], planes(image))


PUBLISHED = ("retina.jpg", "ihc.png", "cell.png", "microaneurysms.png")


def test_real_images_are_scored_from_the_command_line_as_plain_pytorch_scores_them(lake, tmp_path):
    (tmp_path / "in").mkdir()
    for name in PUBLISHED:
        (tmp_path / "in" / name).write_bytes((REAL / name).read_bytes())
    done = made.cli(lake, "ingest", "d", str(tmp_path / "in"), "--modality", "OP", "--public")
    assert done.returncode == 0, done.stderr
    options = {"scale": 1 / 255, "resize": [96, 80], "crop": [64, 64], "channels": [0], "mean": [0.4], "std": [0.2]}
    net = model(lake, options=options, inputs={"input": {"modality": ["OP"], "axes": "cyx"}})
    done = made.cli(lake, "run", made.job_file(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    found = made.by_name(lake)
    assert set(found) == {name.partition(".")[0] for name in PUBLISHED}
    for name in PUBLISHED:
        pixels = planes(Image.open(REAL / name))
        x = torch.tensor(pixels[:1].copy())[None].float() * (1 / 255)
        x = torch.nn.functional.interpolate(x, size=(96, 80), mode="bilinear", antialias=True)[:, :, 16:80, 8:72]
        with torch.inference_mode():
            wanted = net((x - 0.4) / 0.2).softmax(1)[0]
        row = found[name.partition(".")[0]]
        assert row["probabilities"] == pytest.approx(wanted.tolist(), abs=1e-6)
        assert row["label"] == "abc"[int(wanted.argmax())]
    assert integrity.check(lake, deep=True) == []
