"""The keys of `finetune`."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from balance.runtime.keys import key, key_from


class Arithmetic(enum.Enum):
    """Arithmetic of the training steps; `auto`: bfloat16 on CUDA, float32 on a CPU. Weights stay float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """Which network is trained on the probe's training sets, how long and how often."""

    k: list[int] = key_from(lambda: [10, 100], "neighbours per seed, an arm for each (instead of probe.k)", common=True)
    model: str | None = key(
        None, "a transformers model for audio classification: a folder or a hub name; null: a small CNN", common=True
    )
    from_scratch: bool = key(False, "start finetune.model from random weights, not from its own", common=True)
    repeats: int = key(3, "trainings of each arm; a random arm has another set in each", common=True)
    steps: int = key(2000, "optimiser steps, the same for every arm", common=True)
    batch_size: int = key(32, "clips per step", common=True)
    learning_rate: float = key(1e-3, "the highest rate; for a pretrained model about 5e-5")
    max_duration_s: float = key(10.0, "of longer clips this much, from the middle, is heard; shorter ones are padded")
    precision: Arithmetic = key(Arithmetic.auto, "float32 or bfloat16; auto: bfloat16 on CUDA, float32 on a CPU")

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise ValueError(f"finetune.k={self.k}: different numbers of neighbours, each at least 1, as [10,100]")
        for name, least in (("repeats", 2), ("steps", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"finetune.{name}={getattr(self, name)}: at least {least}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"finetune.learning_rate={self.learning_rate}: a number above 0, such as 1e-3")
        if not 0.1 <= self.max_duration_s <= 60:
            raise ValueError(f"finetune.max_duration_s={self.max_duration_s}: 0.1 to 60 seconds")
        if self.from_scratch and self.model is None:
            raise ValueError(
                "finetune.from_scratch=true needs finetune.model: the small CNN always starts from scratch"
            )
        self.k = sorted(self.k)
