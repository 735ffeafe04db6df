"""Does an encoder give a clip the same embedding in any company? Measured before a store first gets rows of it.

In: a built model, a few windows. Out: the greatest relative difference ‖a − b‖ / ‖b‖ of each test, by its name, and
what else is wrong. A model that hears padding, other clips or earlier calls would fill a store with numbers that depend
on the order of the work, and nobody would notice. The price: one model more in memory for a few forward passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from balance.encoders.checked import CheckedModel
from balance.encoders.precision import Precision
from balance.records import Float32, Float64

NUM_CLIPS = 8
_TOLERANCE, _LOW_TOLERANCE = 1e-4, 1e-2  # float32, lower precisions
_LONGER, _SHORTER = 1.5, 0.6  # of a clip, for its longer and shorter neighbours in the batch
_SILENCE_S = 0.25  # of the longest clip, appended to the batch
TESTS = {  # the words of messages
    "twice": "the same call twice (state between calls)",
    "order": "another order in the batch",
    "alone": "alone against in a batch with longer and shorter clips",
    "silence": "silence appended in the batch (padding)",
}


@dataclass(frozen=True, slots=True)
class Conformance:
    """differences: test -> greatest relative difference; tolerance: what is allowed; faults: what else is wrong, in
    words; notes: what is harmless here but worth knowing."""

    differences: dict[str, float]
    tolerance: float
    num_clips: int
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def wrong(self) -> list[str]:
        """What is not as it should be, in words, with figures."""
        too_large = [
            f"{words}: {self.differences[test]:.3g}"
            for test, words in TESTS.items()
            if not self.differences.get(test, 0.0) <= self.tolerance  # NaN is wrong too
        ]
        return [*self.faults, *too_large]


def measure(model: CheckedModel, windows: Sequence[Float32], *, precision: Precision, pads: bool) -> Conformance:
    """The tests on these windows. pads: whether batches may hold windows of different lengths. Raises UserError."""
    tolerance = _TOLERANCE if precision is Precision.float32 else _LOW_TOLERANCE
    faults = list(_training(model.inside))
    if faults:  # batch norm refuses a single clip: what follows would only say so
        return Conformance({}, tolerance, len(windows), tuple(faults))
    shortest = min(map(len, windows))
    batch = [*windows, *_neighbours(windows)] if pads else [window[:shortest] for window in windows]
    first, again = _embed(model, batch[:1]), _embed(model, batch[:1])
    alone = np.concatenate([_embed(model, [window]) for window in batch])
    finite = np.isfinite(alone).all(axis=1)
    if not finite.all():
        faults.append(f"NaN or infinity for {int((~finite).sum())} of {len(batch)} clips alone")
        if not finite.any():
            return Conformance({}, tolerance, len(windows), tuple(faults))
    together = _embed(model, batch)
    differences = {
        "twice": max(_difference(again, first), _difference(_embed(model, batch), together)),
        "order": _difference(_embed(model, batch[::-1])[::-1], together),
        "alone": _difference(together, alone),
    }
    silence = np.zeros(len(batch[0]), dtype=np.float32)
    longest = max(map(len, batch))
    padded = _embed(model, [*batch, silence], pad_to=longest + (int(_SILENCE_S * longest) if pads else 0))
    differences["silence"] = _difference(padded[:-1], together)
    if not np.isfinite(_embed(model, [silence])).all():
        faults.append("NaN for silence: it divides by the loudness of a clip, which may be zero")
    notes = []
    if model.keeps_gradient(batch[0]):
        notes.append("gradient left on: its output requires a gradient; here it is called without (torch.no_grad)")
    return Conformance(differences, tolerance, len(windows), tuple(faults), tuple(notes))


def _embed(model: CheckedModel, windows: Sequence[Float32], pad_to: int = 0) -> Float64:
    return np.asarray(model.embed_windows(windows, pad_to=pad_to).cpu().numpy(), dtype=np.float64)


def _neighbours(windows: Sequence[Float32]) -> list[Float32]:
    """A longer and a shorter window than the first, but none above the longest allowed: the longest that is there."""
    first, longest = windows[0], max(map(len, windows))
    short = first[: max(1, int(_SHORTER * len(first)))]
    if all(len(window) == longest for window in windows):  # the longest may be all that the model takes
        return [short, first[: max(1, int(_SHORTER * len(short)))]]
    return [short, np.resize(first, min(longest, int(_LONGER * len(first))))]


def _difference(given: Float64, reference: Float64) -> float:
    """max over rows of ‖given − reference‖ / ‖reference‖; where the reference is zero, ‖given‖. Rows that are
    not finite in both are alike; 0 where no row is left."""
    finite = np.isfinite(reference).all(axis=1) | np.isfinite(given).all(axis=1)
    given, reference = given[finite], reference[finite]
    if not len(given):
        return 0.0
    norms = np.linalg.norm(reference, axis=1)
    return float((np.linalg.norm(given - reference, axis=1) / np.where(norms > 0, norms, 1.0)).max())


def _training(value: Any) -> Iterator[str]:
    """The layers that act otherwise in training and were left in that mode, in words."""
    names = sorted({type(module).__name__ for root in _modules(value) for module in root.modules() if _acts(module)})
    if names:
        what = "batch norm" if any("BatchNorm" in name for name in names) else "layers"
        yield f"{what} in training mode ({', '.join(names)}): call model.eval() when it is made"


def _modules(value: Any) -> list[torch.nn.Module]:
    if isinstance(value, torch.nn.Module):
        return [value]
    return [item for item in getattr(value, "__dict__", {}).values() if isinstance(item, torch.nn.Module)]


def _acts(module: torch.nn.Module) -> bool:
    is_norm = isinstance(module, torch.nn.modules.batchnorm._NormBase) and module.track_running_stats
    is_dropout = isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0
    return module.training and (is_norm or is_dropout)
