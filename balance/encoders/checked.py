"""Calls a model of somebody else's: in its precision, without gradients, its answer checked, its errors in a sentence.

In: a `Model` and what it said of itself. Out: (n, dim) float32 on the device that was asked for, or the UserError
that names the encoder and what it did wrong. Running out of memory passes: whoever calls takes smaller batches.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from balance.encoders.precision import Precision
from balance.errors import UserError
from balance.records import Float32


class Model(Protocol):
    """A built encoder on its device. No gradients are kept around it."""

    def embed(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(n, samples) float32, zeros after a waveform's end, and (n,) int64 lengths, on its device -> (n, dim)."""
        ...


class CheckedModel:
    """A model that answers as it promised, or says why not.

    name: of the encoder; device: where its embeddings go to; hears_on: where it wants waveforms, and may answer from;
    precision: resolved; autocast: whether half precision is up to torch's autocast, since its weights are float32;
    inside: the object of the user that may hold layers.
    """

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        dim: int,
        device: torch.device,
        hears_on: torch.device,
        precision: Precision,
        autocast: bool = False,
        inside: Any = None,
    ) -> None:
        self._model, self._name, self._dim, self._device = model, name, dim, device
        self.hears_on, self.inside = hears_on, inside
        self._precision = precision
        self._autocast = autocast and precision.dtype != torch.float32

    def embed(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(n, samples) float32 and (n,) int64 on `hears_on` -> (n, dim) float32 on the device. Raises UserError."""
        with self._arithmetic(), errors_of(self._name, "embed"):
            given: object = self._model.embed(waveforms, lengths)
        if not isinstance(given, Tensor):
            raise UserError(f"{self._name}: embed gave a {type(given).__name__}, it must give a torch.Tensor")
        if given.shape != (len(waveforms), self._dim):
            raise UserError(
                f"{self._name}: embed gave a tensor of shape {tuple(given.shape)} for {len(waveforms)} waveforms, it "
                f"must be (n, dim) = {(len(waveforms), self._dim)}"
            )
        if given.device.type not in (self._device.type, self.hears_on.type):
            raise UserError(
                f"{self._name}: its output is on the wrong device ({given.device}, the waveforms were on "
                f"{waveforms.device}); move the model in to(device), and the output to waveforms.device"
            )
        if given.requires_grad:
            raise UserError(
                f"{self._name}: its output carries a gradient, which fills the memory: leave out what turns gradients "
                "on, or return output.detach()"
            )
        if not given.dtype.is_floating_point:
            raise UserError(f"{self._name}: embed gave {given.dtype}, it must give floating-point numbers")
        return given.to(self._device).float()

    def embed_windows(self, windows: Sequence[Float32], *, pad_to: int = 0) -> Tensor:
        """(n, dim) float32 on the device: the windows, padded with zeros to the longest, or to so many samples."""
        return self.embed(*self._padded(windows, pad_to))

    def keeps_gradient(self, window: Float32) -> bool:
        """Whether the model's own answer requires a gradient. Raises UserError."""
        with torch.enable_grad(), errors_of(self._name, "embed"):
            return bool(self._model.embed(*self._padded([window], 0)).requires_grad)

    def _padded(self, windows: Sequence[Float32], pad_to: int) -> tuple[Tensor, Tensor]:
        on_cuda = self.hears_on.type == "cuda"
        lengths = torch.tensor([len(window) for window in windows], pin_memory=on_cuda)
        size = max(pad_to, int(lengths.max()))
        waveforms = torch.zeros((len(windows), size), dtype=torch.float32, pin_memory=on_cuda)
        for row, window in zip(waveforms, windows, strict=True):
            row[: len(window)] = torch.from_numpy(window)
        return waveforms.to(self.hears_on, non_blocking=on_cuda), lengths.to(self.hears_on, non_blocking=on_cuda)

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
