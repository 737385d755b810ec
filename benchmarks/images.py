"""Images cut at random from pictures that scikit-image ships, a little noise on each so that no two are alike."""

from collections.abc import Iterator
from pathlib import Path

import nets
import numpy as np
import torch
from cohorts import FILE_BYTES, add_model, ingest, write_stack

PICTURES = ("retina.jpg", "ihc.png", "hubble_deep_field.jpg", "coffee.png", "chelsea.png", "rocket.jpg")
SCALE = {"mean": 0.4, "std": 0.25}


def small(folder: Path, count: int) -> str:
    """64 × 64, grey."""
    _make(folder, count, (1, 64, 64), nets.SmallCNN, batch=256)
    return f"{count:,} images of 64 × 64 uint8, a small CNN"


def large(folder: Path, count: int) -> str:
    """224 × 224, colour."""
    _make(folder, count, (3, 224, 224), nets.ResNet18, batch=16)
    return f"{count:,} images of 224 × 224 × 3 uint8, a network of ResNet-18's size"


def _make(
    folder: Path,
    count: int,
    shape: tuple[int, int, int],
    network: type[nets.SmallCNN] | type[nets.ResNet18],
    batch: int,
) -> None:
    channels, side, _ = shape
    first, sample = 0, torch.empty(0)
    for stack in _stacks(count, side, channels):
        if first == 0:
            pixels = torch.from_numpy(stack[:64].reshape(-1, side, side, channels)).permute(0, 3, 1, 2)
            sample = (pixels / 255 - SCALE["mean"]) / SCALE["std"]
        write_stack(folder, first, stack)
        first += len(stack)
    ingest(folder, _number, "--modality", "SM", source="npy")
    nets.save(network, sample, net := folder / "net.pt")
    manifest = {
        "task": "classify",
        "runtime": "torchscript",
        "inputs": {"input": {"modality": ["SM"]}},
        "classes": [f"class{n}" for n in range(nets.CLASSES)],
        "options": {"scale": 1 / 255, "mean": [SCALE["mean"]], "std": [SCALE["std"]]},
        "batch": batch,
        "tolerance": 1e-4,
    }
    stored = [side, side] if channels == 1 else [side, side, channels]
    add_model(folder, net, manifest, {"kind": "images", "scale": SCALE, "shape": stored})


def _stacks(count: int, side: int, channels: int) -> Iterator[np.ndarray]:
    """(n, side, side[, channels]) uint8."""
    random = np.random.default_rng(0)
    pictures = [_picture(name, channels) for name in PICTURES]
    most = FILE_BYTES // (side * side * channels)
    for start in range(0, count, most):
        stack = np.empty((min(most, count - start), side, side, channels), np.uint8)
        for image in stack:
            picture = pictures[random.integers(len(pictures))]
            y, x = (int(random.integers(size - side)) for size in picture.shape[:2])
            image[:] = picture[y : y + side, x : x + side]
        stack ^= random.integers(0, 4, stack.shape, np.uint8)  # noise in the two lowest bits
        yield stack[..., 0] if channels == 1 else stack


def _picture(name: str, channels: int) -> np.ndarray:
    """(H, W, channels) uint8; grey is the green channel."""
    import skimage
    from PIL import Image

    pixels = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))
    return pixels if channels == 3 else pixels[..., 1:2]


def _number(name: str) -> int:
    """The number of an image, of the name that ingest gives it: its stack, named for its first image, and its row."""
    stack, _, row = name.partition("#")
    return int(stack.removesuffix(".npy")) + int(row)
