"""The networks of a model package, on one device: TorchScript, ONNX, or a Python network with a state dict."""

import importlib
import io
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ...jobs.task import Task
from ...lake.errors import EnvironmentFailure, ModelError
from ...lake.ids import sha256_bytes
from ...lake.layout import Lake
from ...lake.models import Manifest, network_code, own_network, read_file
from . import archives
from .fast import channels_last, compiled, frozen, laid, session_options
from .settings import Settings

CPU_LANES = 4
"""Batches side by side at most, each on its share of the threads."""
GPU_LANES = 2
"""One batch is copied while another computes, each on a stream of its own."""

Forward = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


NO_MEMORY = ("can't allocate memory", "not enough memory", "Failed to allocate memory", "bad_alloc")
"""What torch and onnxruntime say where memory for a tensor is refused; torch.OutOfMemoryError is of GPUs only."""


class OutOfMemory(Exception):  # noqa: N818 - a signal to halve the batch
    """The batch did not fit the device."""


class Networks:
    """The networks of a package by step, ready to compute. One is held by one worker."""

    def __init__(
        self,
        lake: Lake,
        manifest: Manifest,
        task: Task,
        device: str,
        threads: int,
        runtime: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = Settings.of(runtime or {})
        lanes = self.settings.lanes
        self.lanes = min(threads, lanes or CPU_LANES) if device == "cpu" else lanes or GPU_LANES
        """Batches that go through the network side by side."""
        self._threads = max(1, threads // self.lanes) if device == "cpu" else 1
        self.device = torch.device(device)
        torch.set_num_threads(self._threads)
        _full_precision()
        self._type = PRECISIONS[self.settings.precision]
        load = {"torchscript": _torchscript, "onnx": _onnx, "python": _python}[manifest.runtime]
        self._forward = [
            load(lake, manifest, name, task.outputs, self.device, self._threads, self.settings) for name in task.steps
        ]

    def enter(self) -> None:
        """Set up the thread that calls this for computing."""
        torch.set_num_threads(self._threads)
        if self.device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]  # torch has no type for it

    def forward(self, step: int, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs by name, first axis the batch, there and not only on their way: what fails on a device fails here."""
        with torch.inference_mode():
            if self._type is torch.float32:
                outputs = self._forward[step](inputs)
            else:
                with torch.autocast(self.device.type, self._type):
                    outputs = self._forward[step](inputs)
                outputs = {name: v.float() if v.dtype == self._type else v for name, v in outputs.items()}
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
            return outputs

    def finite(self, outputs: Mapping[str, torch.Tensor], count: int) -> list[bool]:
        """Of each of `count` windows, whether no output has NaN or infinite values."""
        values = [value for value in outputs.values() if value.is_floating_point()]
        if all(
            bool(torch.isfinite(value.sum())) for value in values
        ):  # one pass, and no memory: what is not finite stays
            return [True] * count
        fine = torch.stack([torch.isfinite(value).reshape(len(value), -1).all(1).cpu() for value in values])
        return list(fine.all(0)[:count].tolist())

    def joined(self, outputs: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The outputs of several batches as those of one."""
        return {name: torch.cat([one[name] for one in outputs]) for name in outputs[0]}

    def versions(self) -> str:
        """Of what computes, and how it is set where that is not as the package says."""
        libraries = f"torch {torch.__version__}, numpy {np.__version__}, python {platform.python_version()}"
        return f"{libraries}; {self.settings}" if self.settings.runtime() else libraries

    def device_name(self) -> str:
        """What it computes on."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"cpu {platform.machine()}"


@contextmanager
def device_errors() -> Iterator[None]:
    """What torch says of memory and of a broken device, in our words. Raises OutOfMemory, EnvironmentFailure."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory from error
    except Exception as error:  # onnxruntime's are no RuntimeErrors
        if any(words in str(error) for words in NO_MEMORY):
            raise OutOfMemory from error
        lost = isinstance(error, getattr(torch, "AcceleratorError", ()))  # since torch 2.8
        if lost or "CUDA error" in str(error):  # the context is lost with it: nothing computes after it in this process
            raise EnvironmentFailure(f"the device failed: {str(error).splitlines()[0]}") from error
        raise


def _full_precision() -> None:
    """float32 is float32 on a GPU too, not TF32: of a package's numbers only the last digits may differ by device."""
    torch.backends.cuda.matmul.allow_tf32 = False  # not the newer fp32_precision: after it, cudnn.flags() of a network
    torch.backends.cudnn.allow_tf32 = False  # raises that the two ways were mixed


def gpu_name() -> str:
    """Of the GPU that is used."""
    return torch.cuda.get_device_name()


def choose_device(wanted: str) -> str:
    """`cuda` where there is one and it is not refused, else `cpu`. Raises ModelError where a wanted one is missing."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("the job wants device: cuda, there is none here; use device: auto or cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _named(outputs: tuple[str, ...], values: Any) -> dict[str, torch.Tensor]:
    if isinstance(values, Mapping):
        return {name: values[name] for name in outputs}
    listed = list(values) if isinstance(values, tuple | list) else [values]
    return dict(zip(outputs, listed, strict=False))


def _torchscript(
    lake: Lake,
    manifest: Manifest,
    name: str,
    outputs: tuple[str, ...],
    device: torch.device,
    threads: int,
    settings: Settings,
) -> Forward:
    del threads
    try:
        data = archives.torchscript(read_file(lake, manifest, name), f"{manifest.ref}: {manifest.files[name].path}")
        module = torch.jit.load(io.BytesIO(data), map_location=device).eval()  # type: ignore[no-untyped-call]  # torch has no type for it
    except RuntimeError as error:
        raise ModelError(f"{manifest.ref}: {manifest.files[name].path} is not TorchScript") from error
    if settings.channels_last:
        channels_last(module)
    run = frozen(module, manifest.ref) if settings.freeze else module
    return lambda inputs: _named(outputs, run(*_laid(inputs, settings)))


def _onnx(
    lake: Lake,
    manifest: Manifest,
    name: str,
    outputs: tuple[str, ...],
    device: torch.device,
    threads: int,
    settings: Settings,
) -> Forward:
    import onnxruntime

    if settings.precision != "fp32":
        raise ModelError(f"{manifest.ref} is an ONNX network, which has a precision of its own; tune again")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ModelError("this onnxruntime has no CUDA; install onnxruntime-gpu, or set device: cpu in the job")
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), *providers]
    data = archives.onnx(read_file(lake, manifest, name), f"{manifest.ref}: {manifest.files[name].path}")
    try:
        session = onnxruntime.InferenceSession(data, session_options(settings, threads), providers=providers)
    except Exception as error:  # onnxruntime raises plain classes of its own for a bad file
        raise ModelError(f"{manifest.ref}: {manifest.files[name].path} is not an ONNX model that runs here") from error
    there = {output.name for output in session.get_outputs()}
    if not set(outputs) <= there:
        raise ModelError(
            f"{manifest.ref}: the task needs outputs {', '.join(outputs)}, the model has {', '.join(sorted(there))}"
        )

    def forward(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        values = session.run(list(outputs), {key: value.cpu().numpy() for key, value in inputs.items()})
        return {key: torch.from_numpy(value) for key, value in zip(outputs, values, strict=True)}

    return forward


def _python(
    lake: Lake,
    manifest: Manifest,
    name: str,
    outputs: tuple[str, ...],
    device: torch.device,
    threads: int,
    settings: Settings,
) -> Forward:
    del threads
    build = _builder(lake, manifest)
    what = f"{manifest.ref}: {manifest.files[name].path}"
    weights = archives.state_dict(read_file(lake, manifest, name), what)
    shared = {key: value for key, value in manifest.network_options.items() if key not in manifest.files}
    options = {**shared, **manifest.network_options.get(name, {})}
    try:
        if own_network(manifest) and not _fits(build, options, weights):
            raise ModelError(f"{what} does not fit the network {manifest.network}")
        network = build(**options)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # any class may come from code that is not ours
        raise ModelError(
            f"{manifest.ref}: {manifest.network} cannot be built with its network_options: {type(error).__name__}: {error}"
        ) from error
    try:
        network.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    except (RuntimeError, AttributeError) as error:
        raise ModelError(f"{what} does not fit the network {manifest.network}") from error
    network = network.to(device).eval()
    if settings.channels_last:
        channels_last(network)
    run = compiled(network, manifest.ref, device) if settings.compile else network
    return lambda inputs: _named(outputs, run(*_laid(inputs, settings)))


def _fits(build: Callable[..., torch.nn.Module], options: Mapping[str, Any], weights: Mapping[str, Any]) -> bool:
    """Whether a network would have these weights, told without its memory: options may name any size."""
    with torch.device("meta"):
        wanted = build(**options).state_dict()
    found = {key.removeprefix("module."): getattr(value, "shape", None) for key, value in weights.items()}
    return found == {key: value.shape for key, value in wanted.items()}


def _laid(inputs: Mapping[str, torch.Tensor], settings: Settings) -> list[torch.Tensor]:
    """Inputs in the order of the network's arguments, with the memory layout that it was set to."""
    return [laid(value) for value in inputs.values()] if settings.channels_last else list(inputs.values())


def _builder(lake: Lake, manifest: Manifest) -> Callable[..., torch.nn.Module]:
    """What builds the network. Code that is not diastole's runs only if it is allowed by name and digest."""
    where, _, attribute = (manifest.network or "").partition(":")
    own = _own_class(where, attribute) if own_network(manifest) else None
    allowed = os.environ.get("DIASTOLE_ALLOW_CODE", "").split(",")
    if own is None and f"{manifest.ref}:{manifest.model_digest}" not in allowed:
        raise ModelError(
            f"{manifest.ref} brings code of its own ({manifest.network}); if you trust it, allow it with: "
            f"DIASTOLE_ALLOW_CODE={manifest.ref}:{manifest.model_digest}"
        )
    if not where.endswith(".py") and sha256_bytes(network_code(manifest)) != manifest.network_sha256:
        raise ModelError(
            f"{manifest.ref}: the code of {where} changed since the model was added; add it as a new version"
        )
    found = own or _allowed_code(lake, manifest, where).get(attribute)
    if not callable(found):
        raise ModelError(
            f"{manifest.ref}: {where} has no {attribute} that builds a network; mend network: in model.yaml"
        )
    return found


def _own_class(where: str, attribute: str) -> type[torch.nn.Module] | None:
    """A network of diastole's own: a class that is defined in the module that is named, not one that it imports."""
    try:
        found = vars(importlib.import_module(where)).get(attribute)
    except ModuleNotFoundError:
        return None
    network = isinstance(found, type) and issubclass(found, torch.nn.Module) and found.__module__ == where
    return found if network else None


def _allowed_code(lake: Lake, manifest: Manifest, where: str) -> dict[str, Any]:
    """The names of a module, or of a file of the package, that the user has allowed by its digest."""
    entry = next((name for name, file in manifest.files.items() if file.path == where), None)
    if where.endswith(".py") and entry is None:
        raise ModelError(f"{manifest.ref}: {where} must be listed in files with its sha256")
    try:
        if entry is None:
            return vars(importlib.import_module(where))
        namespace: dict[str, Any] = {"__name__": where.removesuffix(".py")}
        exec(compile(read_file(lake, manifest, entry), where, "exec"), namespace)  # noqa: S102 - allowed, by digest
        return namespace
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # any class may come from code that is not ours
        raise ModelError(f"{manifest.ref}: {where} cannot be run: {type(error).__name__}: {error}") from error
