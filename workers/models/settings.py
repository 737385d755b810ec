"""How networks run: what `diastole tune` may choose, and a plan freezes for all workers of a run."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...lake.errors import SpecError
from ...lake.models import first_problem


class Settings(BaseModel):
    """All but `precision` change no result beyond the package's tolerance. By default networks run as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of what torch knows to be safe (autocast); outputs are float32 again."""
    freeze: bool = False
    """TorchScript: weights become constants, and operators are fused for inference."""
    compile: bool = False
    """Networks in Python: torch.compile. It needs a C++ compiler, and its first batches take seconds."""
    channels_last: bool = False
    """Images and volumes lie in memory with the channel last."""
    execution: Literal["sequential", "parallel"] = "sequential"
    """onnxruntime: operators one after the other, or independent ones at once."""
    optimise: Literal["none", "basic", "extended", "all"] = "all"
    """onnxruntime: how far the graph is rewritten."""
    spin: bool = True
    """onnxruntime: idle threads wait busily; off, they leave their cores to others."""
    batch: int | None = Field(default=None, ge=1)
    """In place of the package's."""
    lanes: int | None = Field(default=None, ge=1)
    """Batches side by side in one worker, each on its share of the threads."""

    @classmethod
    def of(cls, runtime: Mapping[str, Any]) -> "Settings":
        """From a plan's `runtime`. Raises SpecError for what is not known."""
        try:
            return cls.model_validate(dict(runtime))
        except ValidationError as error:
            known = ", ".join(cls.model_fields)
            raise SpecError(f"runtime settings: {first_problem(error)}; known are: {known}; tune again") from None

    def runtime(self) -> dict[str, Any]:
        """What is not the default, as a plan holds it."""
        return self.model_dump(exclude_defaults=True)

    def __str__(self) -> str:
        """`bf16, compile, batch 32`; `as it is` where all are the defaults."""
        return ", ".join(_said(name, value) for name, value in self.runtime().items()) or "as it is"


def _said(name: str, value: Any) -> str:
    if name == "precision":
        return str(value)
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}"
