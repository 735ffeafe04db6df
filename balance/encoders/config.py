"""The keys of `encoder`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from balance.encoders.precision import Precision
from balance.runtime.keys import key


class Kind(Enum):
    """Which kind of encoder; `encoder=NAME` on the command line sets it."""

    vipant = "vipant"
    transformers = "transformers"
    hear = "hear"
    plugin = "plugin"


class Pooling(Enum):
    """What makes one vector of a model's hidden states; `auto` is a table per type of model (docs/encoders.md)."""

    auto = "auto"
    mean = "mean"
    cls = "cls"
    pooler = "pooler"


class Pool(Enum):
    """What joins the embeddings of a long clip's windows."""

    mean = "mean"
    max = "max"


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """Which model embeds the clips, where and in which arithmetic.

    compile does not pay on a CPU (a minute to compile, then 181 ms of a core per clip for 167 in bfloat16); it was not
    run on a GPU yet, so it is off there too.
    """

    kind: Kind = key(Kind.vipant, "which of them; encoder=NAME sets it")
    checkpoint: str | None = key(None, "the .pth file (required with encoder=vipant)", common=True)
    target: str | None = key(None, "package.module:factory (required with encoder=plugin)", common=True)
    args: Any = key(None, "what the factory is called with: encoder.args={name: value} (encoder=plugin)")
    model: str | None = key(None, "a folder or hub name (required with encoder=transformers)", common=True)
    pooling: Pooling = key(Pooling.auto, "auto (by the type of model), mean, cls or pooler (encoder=transformers)")
    layer: int = key(-1, "whose hidden states are pooled; -1: the model's last output (encoder=transformers)")
    trust_remote_code: bool = key(False, "run code that comes with the model (encoder=transformers)")
    module: str | None = key(None, "a module with the HEAR interface (required with encoder=hear)", common=True)
    weights: str | None = key(None, "what its load_model is called with (encoder=hear)")
    pool: Pool = key(Pool.mean, "what joins the windows of a long clip: mean or max (not VIP-ANT)")
    allow_variant: bool = key(False, "embed one length at a time with an encoder that hears padding (not VIP-ANT)")
    device: str = key("auto", "auto, cpu, cuda, cuda:1 …", common=True)
    precision: Precision = key(
        Precision.auto, "float32, tf32, float16 or bfloat16; auto: tf32 on CUDA, float32 on a CPU", common=True
    )
    batch_size: int = key(64, "clips per forward pass; halves itself when a GPU's memory is full", common=True)
    compile: bool = key(False, "torch.compile the audio tower (VIP-ANT)")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size is {self.batch_size}, it must be at least 1")
        # Not {} as default: Hydra would let an override set no key that is not in it.
        if self.args is not None and not (isinstance(self.args, dict) and all(isinstance(x, str) for x in self.args)):
            raise ValueError(f"encoder.args is {self.args!r}, it must be {{name: value}}, as encoder.args={{size: 3}}")
        name, _, number = self.device.partition(":")
        if self.device not in ("auto", "cpu") and not (name == "cuda" and (self.device == "cuda" or number.isdigit())):
            raise ValueError(f"encoder.device is {self.device!r}, allowed are auto, cpu, cuda, cuda:0, cuda:1 …")
