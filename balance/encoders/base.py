"""What every encoder is: a description that any process builds its model from, and vectors for a batch of waveforms.

A description is picklable and small: configurations cross to other processes and machines, never models. It is made
once (`chosen.read_encoder`), which reads the model completely, so that what is wrong is said before work begins.
VIP-ANT describes itself in `vipant`: it alone hears a crop of one channel at the file's own rate. All others are a
`WaveformEncoder`: the mean of the channels at their rate, in windows, and a `Source` that knows how to build the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from balance.audio import resample
from balance.encoders.checked import CheckedModel
from balance.encoders.config import Pool
from balance.encoders.precision import Precision


class Encoder(Protocol):
    """The description of an encoder.

    dim: of its embeddings; inputs: file -> sha256, for the manifest.
    """

    @property
    def dim(self) -> int: ...

    @property
    def inputs(self) -> Mapping[str, str]: ...

    def made_by(self) -> dict[str, Any]:
        """What decides an embedding's numbers, beside the precision, as JSON: goes into the store's fingerprint."""
        ...


class Source(Protocol):
    """How to build the model; picklable."""

    def build(self, device: torch.device, precision: Precision) -> CheckedModel:
        """precision: resolved. Raises UserError."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveformEncoder:
    """The description of an encoder that hears waveforms.

    name: as a person knows it, for messages; sample_rate_hz: None for the file's own; max_duration_s: of a window,
    None for any length; pool: what joins the windows of a clip; pads: whether the model is meant to take waveforms of
    different lengths in a batch; allow_variant: `encoder.allow_variant`; weights: what decides the model's numbers, as
    JSON.
    """

    name: str
    source: Source
    dim: int
    sample_rate_hz: int | None
    max_duration_s: float | None
    pool: Pool
    pads: bool
    allow_variant: bool
    weights: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def equal_lengths(self) -> bool:
        """Whether a batch holds waveforms of one length."""
        return self.allow_variant or not self.pads

    def made_by(self) -> dict[str, Any]:
        return {
            "encoder": dict(self.weights),
            "sample_rate_hz": self.sample_rate_hz,
            "max_duration_s": self.max_duration_s,
            "pool": self.pool.value,
            "resampler": resample.version(),
            "equal_lengths": self.equal_lengths,
        }
