"""Settings put into effect: memory layout, frozen and compiled networks, sessions of onnxruntime.

A frozen or compiled network that fails is run as it is, with a warning: it gives the same results, later.
"""

import importlib
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ...lake.errors import ModelError
from .settings import Settings

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of axes: (batch, channel, y, x), (batch, channel, z, y, x)."""


class NotAsSet(UserWarning):
    """A network does not run as its settings say, but as it is."""


def laid(x: torch.Tensor) -> torch.Tensor:
    """Images and volumes with their channel last in memory; what has other axes stays as it is."""
    return x.contiguous(memory_format=LAYOUTS[x.ndim]) if x.ndim in LAYOUTS else x


def channels_last(network: torch.nn.Module) -> None:
    """Lay out the weights of 2D and 3D convolutions so; `Module.to` takes a network of only one of the two."""
    for weight in network.parameters():
        weight.data = laid(weight.data)


def frozen(module: Any, ref: str) -> Callable[..., Any]:
    """A TorchScript network with its weights as constants, and fused for inference."""
    try:
        fast = torch.jit.optimize_for_inference(torch.jit.freeze(module))
    except RuntimeError as error:
        _as_it_is(ref, "frozen", error)
        return module
    return _guarded(fast, module, ref, "frozen")


def compiled(network: torch.nn.Module, ref: str, device: torch.device) -> Callable[..., Any]:
    """A network through torch.compile. Raises ModelError where there is no compiler on this machine."""
    if missing := _no_compiler(device):
        raise ModelError(f"{ref} is set to be compiled, but there is no {missing} here; install it, or tune again")
    return _guarded(torch.compile(network), network, ref, "compiled")


def _guarded(fast: Callable[..., Any], plain: Callable[..., Any], ref: str, what: str) -> Callable[..., Any]:
    """What fails on a batch that the plain network takes is not used again."""
    use = fast

    def run(*inputs: torch.Tensor) -> Any:
        nonlocal use
        try:
            return use(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if use is plain:
                raise
            outputs = plain(*inputs)
            use = plain
            _as_it_is(ref, what, error)
            return outputs

    return run


def _no_compiler(device: torch.device) -> str | None:
    """What torch.compile needs and does not find: a C++ compiler on a CPU, triton on a GPU."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton"
    cpp = importlib.import_module("torch._inductor.cpp_builder")
    try:
        return None if shutil.which(cpp.get_cpp_compiler()) else "C++ compiler"
    except RuntimeError:  # torch's own, which is InvalidCxxCompiler
        return "C++ compiler"


def session_options(settings: Settings, threads: int) -> Any:
    """How onnxruntime runs a network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if settings.execution == "parallel":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        options.inter_op_num_threads = threads
    levels = {"none": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED", "all": "ENABLE_ALL"}
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{levels[settings.optimise]}")
    if not settings.spin:
        for pool in ("intra", "inter"):
            options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    return options


def _as_it_is(ref: str, what: str, error: Exception) -> None:
    said = (str(error).strip().splitlines() or [""])[0][:160]
    warnings.warn(f"{ref} cannot be {what} here ({type(error).__name__}: {said}); it runs as it is", NotAsSet, 2)
