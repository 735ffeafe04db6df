"""The arithmetic of a forward pass, and what `auto` means on a device."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from balance.errors import UserError

if TYPE_CHECKING:  # the configuration knows this module, and torch takes a second to import
    import torch


class Precision(Enum):
    """Arithmetic of the forward pass. `auto` is a fixed table, never a timing: `tf32` on CUDA, `float32` on a CPU."""

    auto = "auto"
    float32 = "float32"
    tf32 = "tf32"
    float16 = "float16"
    bfloat16 = "bfloat16"

    def resolve(self, device_type: str) -> Precision:
        """What `auto` means on this type of device ("cpu", "cuda"). UserError for tf32 on a CPU."""
        if self is Precision.auto:
            return Precision.tf32 if device_type == "cuda" else Precision.float32
        if self is Precision.tf32 and device_type == "cpu":
            raise UserError("encoder.precision=tf32 needs a GPU; on a CPU type encoder.precision=float32 or bfloat16")
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights. Only of a resolved precision."""
        import torch

        assert self is not Precision.auto
        dtypes = {Precision.float16: torch.float16, Precision.bfloat16: torch.bfloat16}
        return dtypes.get(self, torch.float32)
