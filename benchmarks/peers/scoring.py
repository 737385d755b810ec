"""What every peer does with a batch: the network of the workload, as a careful user would call it.

A batch is a dict of `number`, the places of the items in the cohort, and `data`, as the peers' copy of the cohort has it.
What comes out is an Arrow table with what diastole publishes of them. Nothing of diastole is used here but the class of
the proteins' network.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch


class Images:
    """(n, H, W) or (n, H, W, C) uint8 → the probabilities of n images."""

    schema = pa.schema({"number": pa.int64(), "probabilities": pa.list_(pa.float32())})

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.net, self.scale = _network(folder, settings), settings["scale"]
        self.shape = settings["shape"]

    @torch.inference_mode()
    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        x = torch.from_numpy(_stacked(batch["data"], np.uint8, self.shape))
        x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
        found = self.net(x.float().mul_(1 / 255).sub_(self.scale["mean"]).div_(self.scale["std"])).softmax(-1).numpy()
        return pa.table([batch["number"], _lists(found)], schema=self.schema)


class Volumes:
    """(n, 128, 128, 128) int16, the way the network sees them → n masks."""

    schema = pa.schema(
        {"number": pa.int64(), "voxels": pa.int64(), "mean_probability": pa.float64(), "mask": pa.binary()}
    )

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.net, self.scale = _network(folder, settings), settings["scale"]
        self.shape = settings["shape"]

    @torch.inference_mode()
    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        volumes = _stacked(batch["data"], np.int16, self.shape)
        x = torch.stack([self._scaled(volume) for volume in volumes])[:, None]
        probability = self.net(x)[:, 1].numpy()
        masks = probability > 0.5
        means = [float(p[mask].mean()) if mask.any() else None for p, mask in zip(probability, masks, strict=True)]
        packed = [mask.tobytes() for mask in masks]
        return pa.table([batch["number"], masks.sum((1, 2, 3)), means, packed], schema=self.schema)

    def _scaled(self, volume: np.ndarray) -> torch.Tensor:
        x = volume.astype(np.float32)
        low, high = np.quantile(x, self.scale["quantiles"])
        x = torch.from_numpy(x).sub_(low).div_(high - low).clamp_(0, 1)
        deviation, mean = torch.std_mean(x)
        return x.sub_(mean).div_(deviation).mul_(self.scale["scale"]).add_(self.scale["shift"])


class Proteins:
    """n sequences → the class of each residue, and its probabilities."""

    schema = pa.schema(
        {"number": pa.int64(), "classes": pa.string(), "probabilities": pa.list_(pa.list_(pa.float32()))}
    )

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from diastole.workers.models.residue_lstm import ResidueLSTM

        alphabet, self.names = settings["alphabet"].encode(), np.frombuffer(settings["classes"].encode(), np.uint8)
        self.code = np.full(256, len(alphabet), np.uint8)
        self.code[np.frombuffer(alphabet, np.uint8)] = np.arange(len(alphabet))
        self.table = torch.cat([torch.eye(len(alphabet)), torch.zeros(1, len(alphabet))])
        self.net = ResidueLSTM(**settings["network"])
        state = torch.load(folder / "net.pt", weights_only=True)
        self.net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        self.net.eval()

    @torch.inference_mode()
    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        letters = [self.code[np.frombuffer(sequence.encode(), np.uint8)] for sequence in batch["data"]]
        lengths = torch.tensor([len(one) for one in letters])
        codes = np.full((len(letters), int(lengths.max())), len(self.table) - 1, np.uint8)
        for row, one in zip(codes, letters, strict=True):
            row[: len(one)] = one
        found = self.net(self.table[torch.from_numpy(codes).int()], lengths).softmax(-1)
        flat = found[torch.arange(codes.shape[1]) < lengths[:, None]].numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths.numpy())]).astype(np.int32)
        classes = pa.StringArray.from_buffers(
            len(letters), pa.py_buffer(offsets), pa.py_buffer(self.names[flat.argmax(1)])
        )
        return pa.table(
            [batch["number"], classes, pa.ListArray.from_arrays(pa.array(offsets), _lists(flat))], schema=self.schema
        )


def _network(folder: Path, settings: Mapping[str, Any]) -> Any:
    """TorchScript, frozen where that is set."""
    network = torch.jit.load(str(folder / "net.pt")).eval()
    return torch.jit.optimize_for_inference(torch.jit.freeze(network)) if settings.get("freeze") else network


def from_arrow(number: Any, data: Any) -> dict[str, Any]:
    """A batch out of Arrow columns: texts as a list, bytes as one buffer."""
    data = data.combine_chunks() if isinstance(data, pa.ChunkedArray) else data
    if pa.types.is_string(data.type) or pa.types.is_large_string(data.type):
        return {"number": number.to_numpy(), "data": data.to_pylist()}
    _, offsets, values = data.buffers()
    wide = np.int64 if pa.types.is_large_binary(data.type) else np.int32
    ends = np.frombuffer(offsets, wide)[data.offset : data.offset + len(data) + 1]
    return {"number": number.to_numpy(), "data": memoryview(values)[ends[0] : ends[-1]]}


def _stacked(data: Any, kind: Any, shape: Sequence[int]) -> np.ndarray:
    """Items one after the other as an array (n, …), which may be written to: they come as one, as bytes, or as a buffer."""
    if isinstance(data, np.ndarray) and data.dtype == kind:
        return data
    whole = bytearray(data) if isinstance(data, memoryview) else bytearray().join(data)
    return np.frombuffer(whole, kind).reshape(-1, *shape)


def _lists(values: np.ndarray) -> pa.Array:
    """(n, k) float32 → n lists of k."""
    count, width = values.shape
    offsets = pa.array(np.arange(0, (count + 1) * width, width, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))


KINDS = {"images": Images, "volumes": Volumes, "proteins": Proteins}


def scorer(folder: Path, out: Path, told: Mapping[str, Any]) -> Any:
    """The scorer of a cohort, ready to be called; when it became ready is noted in `out`.

    `told` has torch's number of `threads`, which stays as it is where that is none, and may have `freeze`.
    """
    if told["threads"] is not None:
        torch.set_num_threads(told["threads"])
    settings = {**json.loads((folder / "settings.json").read_text()), "freeze": told.get("freeze")}
    made = KINDS[settings["kind"]](folder, settings)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"ready-{os.getpid()}-{time.monotonic_ns()}").write_text(repr(time.time()))
    return made
