"""Calls a model of somebody else's: in its precision, without gradients, its answer checked, its errors in a sentence.

In: a `base.Model` and what it said of itself. Out: (n, dim) float32 on the device that was asked for, or the UserError
that names the encoder and what it did wrong. Running out of memory passes: whoever calls takes smaller batches.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import torch
from torch import Tensor

from balance.encoders.base import Model
from balance.encoders.precision import Precision
from balance.errors import UserError


class CheckedModel:
    """A model that answers as it promised, or says why not.

    name: of the encoder; device: where its waveforms come from and its embeddings go to; precision: resolved; autocast:
    whether half precision is up to torch's autocast, since the model's own weights are float32.
    """

    def __init__(
        self, model: Model, *, name: str, dim: int, device: torch.device, precision: Precision, autocast: bool
    ) -> None:
        self._model, self._name, self._dim, self._device = model, name, dim, device
        self._precision = precision
        self._autocast = autocast and precision.dtype != torch.float32

    def embed(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(n, samples) float32 and (n,) int64 on the device -> (n, dim) float32 there. Raises UserError."""
        with self._arithmetic(), errors_of(self._name, "embed"):
            given: object = self._model.embed(waveforms, lengths)
        if not isinstance(given, Tensor):
            raise UserError(f"{self._name}: embed gave a {type(given).__name__}, it must give a torch.Tensor")
        if given.shape != (len(waveforms), self._dim):
            raise UserError(
                f"{self._name}: embed gave a tensor of shape {tuple(given.shape)} for {len(waveforms)} waveforms, it "
                f"must be (n, dim) = {(len(waveforms), self._dim)}"
            )
        if given.device.type != self._device.type:
            raise UserError(
                f"{self._name}: its output is on the wrong device ({given.device}, the waveforms were on "
                f"{self._device}); move the model in to(device), and the output to waveforms.device"
            )
        if given.requires_grad:
            raise UserError(
                f"{self._name}: its output carries a gradient, which fills the memory: leave out what turns gradients "
                "on, or return output.detach()"
            )
        if not given.dtype.is_floating_point:
            raise UserError(f"{self._name}: embed gave {given.dtype}, it must give floating-point numbers")
        return given.float()

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """tf32 is a switch of the whole process: set for this call only."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = self._precision is Precision.tf32
        half = torch.autocast(self._device.type, self._precision.dtype, enabled=self._autocast)
        try:
            with torch.no_grad(), half:
                yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def errors_of(name: str, what: str) -> Iterator[None]:
    """Whatever is raised inside, as a sentence that names the encoder. Out of memory passes."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1]
        words = " ".join(str(error).split()) or "without a word"
        raise UserError(
            f"{name}: its {what} failed with {type(error).__name__}: {words} ({last.filename}, line {last.lineno})"
        ) from error
