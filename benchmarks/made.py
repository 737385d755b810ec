"""Cohorts and models of the benchmarks, made here with a seed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

PROTEINS, VOLUMES, SIDE = 2000, 200, 64


def proteins(folder: Path) -> str:
    """2,000 proteins whose lengths are spread as in a proteome (gamma, mean 330), and PredictDSSP."""
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    lengths = (random.gamma(2, 150, PROTEINS) + 30).astype(int)
    records = (f">p{n}\n{letters[random.integers(0, 20, size)].tobytes().decode()}\n" for n, size in enumerate(lengths))
    (folder / "proteins.fasta").write_text("".join(records))
    diastole("init", str(folder / "lake"))
    diastole("ingest", "proteins", str(folder / "proteins.fasta"), "--alphabet", "protein")
    diastole("models", "fetch", "predictdssp")
    return f"{PROTEINS} sequences, {lengths.sum()} residues, LSTM of PredictDSSP"


def volumes(folder: Path) -> str:
    """200 volumes of 64³ int16 as .nii.gz, and a small U-net in TorchScript with untrained weights."""
    import nibabel as nib
    import torch

    random = np.random.default_rng(0)
    (folder / "volumes").mkdir()
    for number in range(VOLUMES):
        noise = random.integers(0, 1000, (SIDE,) * 3, dtype=np.int16)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), folder / "volumes" / f"{number:03d}.nii.gz")
    torch.manual_seed(0)
    package = folder / "package"
    package.mkdir()
    torch.jit.trace(_unet(), torch.zeros(1, 1, 32, 32, 32)).save(package / "unet.pt")
    digest = subprocess.check_output(["sha256sum", package / "unet.pt"], text=True).split()[0]
    manifest = {
        "name": "unet",
        "version": "1",
        "task": "segment",
        "runtime": "torchscript",
        "files": {"main": {"path": "unet.pt", "sha256": digest}},
        "inputs": {"input": {"modality": ["MR"], "axes": "zyx", "orientation": "RAS"}},
        "classes": ["object"],
        "options": {"passes": [{"net": "main"}], "intensity": {"standardise": True}},
    }
    (package / "model.yaml").write_text(yaml.safe_dump(manifest))
    diastole("init", str(folder / "lake"))
    diastole("ingest", "volumes", str(folder / "volumes"), "--modality", "MR")
    diastole("models", "add", str(package))
    return f"{VOLUMES} volumes of {SIDE}³ int16, small 3D U-net, masks written"


def _unet() -> "object":
    import torch

    class UNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU())
            self.deep = torch.nn.Sequential(
                torch.nn.MaxPool3d(2),
                torch.nn.Conv3d(8, 16, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.Upsample(scale_factor=2),
            )
            self.out = torch.nn.Conv3d(24, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            near = self.down(x)
            return torch.sigmoid(self.out(torch.cat([near, self.deep(near)], 1)))

    return UNet().eval()


WORKLOADS: dict[str, Callable[[Path], str]] = {"proteins": proteins, "volumes": volumes}
MODELS = {"proteins": "predictdssp", "volumes": "unet"}
RESOURCES = {
    "ceiling": {"workers": 0, "threads": 2},
    "here": {"workers": 0, "threads": 2},
    "ray-1": {"workers": 1, "threads": 2},
    "ray-2": {"workers": 2, "threads": 1},
}


def write_job(folder: Path, workload: str, name: str, variant: str) -> Path:
    """A job file for one run, with an output of its own so that everything is scored again."""
    path = folder / f"{name}.yaml"
    job = {
        "name": name,
        "dataset": workload,
        "model": MODELS[workload],
        "output": name,
        "resources": RESOURCES[variant],
    }
    path.write_text(json.dumps(job))
    return path


def diastole(*arguments: str) -> None:
    """Run a command as a user would."""
    subprocess.run([str(Path(sys.executable).parent / "diastole"), *arguments], check=True, stdout=subprocess.DEVNULL)
