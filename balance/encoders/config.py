"""The keys of `encoder`."""

from __future__ import annotations

from dataclasses import dataclass

from balance.encoders.precision import Precision
from balance.runtime.keys import key


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """Which model embeds the clips, where and in which arithmetic.

    compile does not pay on a CPU (a minute to compile, then 181 ms of a core per clip for 167 in bfloat16); it was not
    run on a GPU yet, so it is off there too.
    """

    checkpoint: str | None = key(None, "the .pth file (required with encoder=vipant)", common=True)
    device: str = key("auto", "auto, cpu, cuda, cuda:1 …", common=True)
    precision: Precision = key(
        Precision.auto, "float32, tf32, float16 or bfloat16; auto: tf32 on CUDA, float32 on a CPU", common=True
    )
    batch_size: int = key(64, "clips per forward pass; halves itself when a GPU's memory is full", common=True)
    compile: bool = key(False, "torch.compile the audio tower")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size is {self.batch_size}, it must be at least 1")
        name, _, number = self.device.partition(":")
        if self.device not in ("auto", "cpu") and not (name == "cuda" and (self.device == "cuda" or number.isdigit())):
            raise ValueError(f"encoder.device is {self.device!r}, allowed are auto, cpu, cuda, cuda:0, cuda:1 …")
