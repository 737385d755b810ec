"""Head MRI of 128³ voxels, made from the MNI template, and the network of deepbet that finds the head's box."""

from pathlib import Path

import fetched
import nibabel as nib
import numpy as np
from cohorts import add_model, ingest, write_stack
from scipy.ndimage import affine_transform

SIDE = 128
PER_STACK = 8


def make(folder: Path, count: int) -> str:
    """Each is the template turned, shifted and scaled a little, brighter or darker, with noise; int16, RAS.

    The peers' copies are as the network sees them: (x, y, z).
    """
    random = np.random.default_rng(0)
    template = np.asarray(nib.load(fetched.data().brain()).dataobj, np.float32)
    (folder / "source").mkdir()
    stack: list[np.ndarray] = []
    for number in range(count):
        volume = _volume(template, random)
        nib.save(nib.Nifti1Image(volume, np.diag([1.5, 1.8, 1.5, 1])), folder / "source" / f"{number}.nii")
        stack.append(volume)
        if len(stack) == PER_STACK or number == count - 1:
            write_stack(folder, number + 1 - len(stack), np.stack(stack))
            stack.clear()
    ingest(folder, lambda name: int(Path(name).name.partition(".")[0]), "--modality", "MR")
    recipe, net = fetched.model("deepbet", "box", folder)
    intensity = recipe["options"]["intensity"]
    options = {"axes": "xyz", "passes": [{"net": "main", "grid": [SIDE] * 3, "channel": 1}], "intensity": intensity}
    wanted = ("task", "runtime", "inputs", "classes", "batch", "tolerance")
    manifest = {**{key: recipe[key] for key in wanted}, "options": options}
    add_model(folder, net, manifest, {"kind": "volumes", "scale": intensity, "shape": [SIDE] * 3})
    return f"{count:,} volumes of 128³ int16, the first network of deepbet, masks written"


def _volume(template: np.ndarray, random: np.random.Generator) -> np.ndarray:
    turn = random.normal(0, 0.03, (3, 3)) + np.eye(3)
    matrix = turn * (np.array(template.shape) / SIDE)[:, None] * random.uniform(0.95, 1.1)
    centre = np.array(template.shape) / 2 + random.normal(0, 3, 3)
    warped = affine_transform(template, matrix, centre - matrix @ np.full(3, SIDE / 2), (SIDE,) * 3, order=1)
    noise = random.standard_normal((SIDE,) * 3, dtype=np.float32)
    return (warped * random.uniform(2, 6) + np.abs(noise) * 20).astype(np.int16)
