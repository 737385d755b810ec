"""deepbet on nilearn's MNI template and nibabel's 4-D example: make_deepbet.py NILEARN_DATA_FOLDER OUT.json OUT.bin"""

import hashlib
import importlib
import sys
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepbet.bet import BrainExtraction
from make_common import best_seconds, rounded, write

nib: Any = importlib.import_module("nibabel")  # untyped
PACKAGES = "deepbet connected-components-3d fill_voids nibabel numpy torch"
NAME = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
FLIP = "np.array([[-1, 0, 0, 196], [0, -1, 0, 232], [0, 0, 1, 0], [0, 0, 0, 1]])"
RECIPES = {  # name: (data, matrix on the right of the affine, type, scl_slope, scl_inter)
    "mni_lps": ("v[::-1, ::-1, :]", FLIP, "uint8", 1.0, 0.0),
    "mni_sra": ("v.transpose(2, 0, 1)", "np.eye(4)[:, [2, 0, 1, 3]]", "uint8", 1.0, 0.0),
    "mni_2mm_int16": ("v[::2, ::2, ::2]", "np.diag([2, 2, 2, 1])", "int16", 0.25, -64.0),
    "mni_lps_int16_negative_slope": ("v[::-1, ::-1, :]", FLIP, "int16", -0.5, 500.0),
}
NOTES = """
cases: mni = the T1 file; nibabel_example4d = nibabel/tests/data/example4d.nii.gz; the others are made from mni (recipe)
recipe: v = array of the T1 file; raw = (data - scl_inter) / scl_slope, so scaled values are data; affine = mni's @ affine
bbox: start and stop of the mask on each source axis; net_bbox: slices for the mask net on the closest canonical image
dice_gm_wm: with gm / 255 + wm / 255 > 0.5 (both files uint8, 0 to 255, unscaled), put through data
near_half: voxels of the image with |p - 0.5| under the key; threshold_voxels: p > 0.5, before components and holes
packed_sha256: of np.packbits(mask > 0), C order, source axes; OUT.bin is zlib of these bytes for case mni
seconds: one call of each net on random numbers, best of 3, 2 threads
"""


def describe(bet: BrainExtraction, path: Path, tissue: np.ndarray | None = None) -> tuple[dict[str, Any], bytes]:
    """Run deepbet on a file; return what the tests compare and the packed mask."""
    mask, tiv = bet.run(str(path))[1:]
    x = nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32)
    p, m = bet.run_model(x.reshape(*x.shape[:3], -1)[..., 0].copy()), np.asarray(mask.dataobj) > 0
    where, packed = np.argwhere(m)[:, :3], np.packbits(m).tobytes()
    entry = {"shape": m.shape, "axes": "".join(nib.aff2axcodes(mask.affine)), "affine": rounded(mask.affine)}
    entry |= {"voxels": len(where), "tiv_ml": rounded(tiv), "threshold_voxels": int((p > 0.5).sum())}
    entry |= {"packed_sha256": hashlib.sha256(packed).hexdigest(), "net_bbox": [[s.start, s.stop] for s in bet.bbox]}
    entry["bbox"] = np.stack([where.min(0), where.max(0) + 1], axis=1).tolist()
    entry["centroid"], entry["centroid_mm"] = rounded(where.mean(0)), rounded(mask.affine[:3] @ [*where.mean(0), 1])
    entry["near_half"] = {str(d): int((np.abs(p - 0.5) < d).sum()) for d in (0.0001, 0.001, 0.01, 0.1)}
    if tissue is not None:
        entry["dice_gm_wm"] = rounded(2 * (m & tissue).sum() / (m.sum() + tissue.sum()))
    return entry, packed


def main(folder: Path, out: Path, packed_out: Path) -> None:
    torch.set_num_threads(2)
    t1, gm, wm = (nib.load(folder / NAME.format(k)) for k in ("t1", "gm", "wm"))
    v, tissue = np.asarray(t1.dataobj), np.asarray(gm.dataobj) / 255 + np.asarray(wm.dataobj) / 255 > 0.5
    bet = BrainExtraction(no_gpu=True)
    example, _ = describe(bet, Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz")
    mni, packed = describe(bet, folder / NAME.format("t1"), tissue)
    packed_out.write_bytes(zlib.compress(packed, 9))
    cases = {"nibabel_example4d": example, "mni": mni}
    for name, (data, columns, kind, slope, inter) in RECIPES.items():
        image = nib.Nifti1Image(((eval(data, {"v": v}) - inter) / slope).astype(kind), t1.affine @ eval(columns))
        image.header.set_slope_inter(slope, inter)
        with tempfile.TemporaryDirectory() as temporary:
            nib.save(image, Path(temporary) / "image.nii")
            cases[name], _ = describe(bet, Path(temporary) / "image.nii", eval(data, {"v": tissue}))
        cases[name]["recipe"] = {"data": data, "affine": columns, "type": kind, "slope": slope, "inter": inter}
    with torch.no_grad():
        seconds = {"bbox_net": best_seconds(partial(bet.bbox_model, torch.rand(1, 1, 128, 128, 128)))}
        seconds["mask_net"] = best_seconds(partial(bet.model, torch.rand(1, 1, 256, 256, 256)))
    call = "BrainExtraction(no_gpu=True).run(path), threshold 0.5, n_dilate 0, 2 threads"
    write(out, call, NOTES, PACKAGES, {"cases": cases, "seconds": seconds})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
