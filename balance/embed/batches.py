"""VIP-ANT's waveforms of one part -> its embeddings: batches for fbank and forward pass, on a CPU or CUDA.

In: decoded clips, one by one. Out: (clips, dim) float32 in the same order. Waveforms are batched by sample rate for the
fbank and its spectrograms, all of one shape, for the forward pass, both in an order that depends on the part's clips
alone, the last batch padded to full shape: a part has the same bytes whoever makes it. On CUDA work is only enqueued,
with a few batches in flight; whoever wants the embeddings waits for them. The price: embeddings come when the part is
complete, not clip by clip.
"""

from __future__ import annotations

import logging
import platform
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from balance.audio.decode import kept_samples
from balance.audio.decoders import Decoded, Slot
from balance.audio.fbank import LogMel
from balance.encoders.vipant import Encoder, VipAnt
from balance.errors import UserError
from balance.records import Float32

log = logging.getLogger(__name__)

NO_ROOM = "the GPU's memory does not hold a single clip: free some of it, or type encoder.device=cpu"
_IN_FLIGHT = 4  # batches that CUDA may be behind
_STAGED_CLIPS_CPU = 16  # waveforms staged on a CPU: bounds the memory, loses no speed
_CPU_CLIPS = 2  # clips per task on a CPU: 2 x 306 tokens x 3072 bfloat16 are 3.8 MB; alone they are 5 % slower

Spread = Callable[[Callable[[slice], torch.Tensor], list[slice]], Iterable[torch.Tensor]]


class Batches:
    """Waveforms in, in order; the part's embeddings out at `finish()`, in the same order. `spread`: the built-in map,
    or one that works on several items at a time."""

    def __init__(
        self, encoder: Encoder, described: VipAnt, device: torch.device, batch_size: int, *, spread: Spread
    ) -> None:
        self._encoder = encoder
        self._max_frames = described.front_end.max_frames
        self._log_mel = LogMel(described.front_end)
        self._dim = described.dim
        self._device = device
        self._spread = spread
        on_cuda = device.type == "cuda"
        self._batch_size = batch_size
        self._at_once = batch_size if on_cuda else min(batch_size, _CPU_CLIPS)  # clips of one call
        self._halved_from: int | None = None
        self._staged_clips = batch_size if on_cuda else min(batch_size, _STAGED_CLIPS_CPU)
        self._in_flight: deque[Any] = deque()
        self._copies: deque[tuple[Any, Slot]] = deque()  # to the GPU, an event after each
        self._start()

    def _start(self) -> None:
        self._num_clips = 0
        self._staged: dict[int, _Staged | _StagedOnGpu] = {}
        self._spectrograms: list[torch.Tensor] = []
        self._order: list[int] = []  # the clip of each spectrogram, in the order of the forward pass
        self._outputs: list[torch.Tensor] = []

    def add(self, clip: Decoded) -> None:
        """Stage a waveform (its samples are copied at once)."""
        rate, on_cuda = clip.sample_rate, self._device.type == "cuda"
        samples = self._copied(clip) if on_cuda else torch.from_numpy(np.array(clip.samples, copy=False))
        staged = self._staged.get(rate)
        if staged is None:
            longest = kept_samples(rate, self._max_frames)
            staged = self._staged[rate] = (_StagedOnGpu if on_cuda else _Staged)(self._staged_clips, longest)
        staged.add(self._num_clips, samples)
        self._num_clips += 1
        if len(staged.clips) >= self._staged_clips:
            self._fbank(rate)

    def _copied(self, clip: Decoded) -> torch.Tensor:
        """The samples on the GPU, or on their way: from their slot, which is given back once they are there."""
        samples = torch.from_numpy(np.array(clip.samples, copy=False))
        if clip.slot is None:
            samples = torch.empty(len(samples), pin_memory=True).copy_(samples)
        try:
            there = samples.to(self._device, non_blocking=True)
        except torch.OutOfMemoryError:
            self._make_room()
            try:
                there = samples.to(self._device, non_blocking=True)
            except torch.OutOfMemoryError as error:
                raise UserError(NO_ROOM) from error
        if clip.slot is not None:
            clip.slot.keep()
            self._copies.append((self._event(), clip.slot))
            while self._copies and (self._copies[0][0].query() or len(self._copies) >= clip.slot.most_kept):
                event, slot = self._copies.popleft()
                event.synchronize()
                slot.give_back()
        return there

    def _make_room(self) -> None:
        """Waveforms fill the GPU: embed those that wait there, and let half as many wait from now on."""
        for rate in sorted(self._staged):
            self._fbank(rate)
        self._forward(last=True)
        self._staged_clips = max(1, self._staged_clips // 2)
        torch.cuda.empty_cache()
        log.warning("the GPU has no room for another waveform: at most %d will wait there", self._staged_clips)

    def finish(self) -> Finished:
        """The embeddings of the clips added since the last call, which CUDA may still be computing."""
        for rate in sorted(self._staged):
            self._fbank(rate)
        self._forward(last=True)
        on_cuda = self._device.type == "cuda"
        rows = torch.empty((self._num_clips, self._dim), dtype=torch.float32, pin_memory=on_cuda)
        if self._outputs:
            rows.copy_(torch.cat(self._outputs), non_blocking=on_cuda)
        finished = Finished(rows, self._order, self._event() if on_cuda else None)
        self._in_flight.clear()  # whoever waits for these waits for all of them
        self._start()
        return finished

    def discard(self) -> None:
        """Nothing: a clip comes whole or not at all."""

    def made_by(self) -> dict[str, Any]:
        """Facts about this process for the part's metadata."""
        made: dict[str, Any] = {
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.machine(),
            "batch_size": self._at_once,
            "torch": torch.__version__,
        }
        if self._halved_from is not None:
            made["batch_size_halved_from"] = self._halved_from
        return made

    def _fbank(self, rate: int) -> None:
        staged = self._staged.pop(rate)

        def run(clips: slice) -> torch.Tensor:
            return self._log_mel(staged.waves(clips), staged.lengths[clips], rate)

        self._spectrograms.extend(self._in_pieces(run, len(staged.clips)).unbind())
        self._order.extend(staged.clips)
        self._forward(last=False)

    def _forward(self, *, last: bool) -> None:
        while len(self._spectrograms) >= self._batch_size or (last and self._spectrograms):
            batch, self._spectrograms = self._spectrograms[: self._batch_size], self._spectrograms[self._batch_size :]

            def run(clips: slice, batch: list[torch.Tensor] = batch) -> torch.Tensor:
                piece = torch.stack(batch[clips])
                missing = clips.stop - clips.start - len(piece)
                if missing:  # padded to full shape: the class token's products depend on the number of rows
                    piece = torch.cat([piece, piece.new_zeros((missing, *piece.shape[1:]))])
                return self._encoder(piece)[: len(piece) - missing]

            self._outputs.append(self._in_pieces(run, len(batch)))
            if self._device.type == "cuda":
                self._in_flight.append(self._event())
                if len(self._in_flight) > _IN_FLIGHT:
                    self._in_flight.popleft().synchronize()

    def _event(self) -> Any:
        """An event after all that is enqueued."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _in_pieces(self, run: Callable[[slice], torch.Tensor], num_clips: int) -> torch.Tensor:
        """`run` on all clips, `_at_once` a call."""
        while True:
            size = self._at_once
            pieces = [slice(at, at + size) for at in range(0, num_clips, size)]
            try:
                return torch.cat(list(self._spread(run, pieces)))
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise UserError(NO_ROOM) from error
            self._halved_from = self._halved_from or size
            self._at_once = size // 2
            torch.cuda.empty_cache()
            log.warning("the GPU ran out of memory: going on with encoder.batch_size=%d", self._at_once)


class Finished:
    """The embeddings of a part on their way from the device; another thread may wait for them."""

    def __init__(self, rows: torch.Tensor, order: list[int], event: Any) -> None:
        self._rows, self._order, self._event = rows, order, event

    def wait(self) -> Float32:
        """(clips, dim) float32, in the order in which the clips were added."""
        if self._event is not None:
            self._event.synchronize()
        out = np.empty(self._rows.shape, dtype=np.float32)
        out[self._order] = self._rows.numpy()
        return out


class _Staged:
    """Waveforms of one sample rate waiting for the fbank on a CPU: rows of one tensor."""

    def __init__(self, num_clips: int, num_samples: int) -> None:
        self._samples = torch.empty((num_clips, num_samples), dtype=torch.float32)
        self.clips: list[int] = []
        self.lengths: list[int] = []

    def add(self, clip: int, samples: torch.Tensor) -> None:
        row = self._samples[len(self.clips)]
        row[: len(samples)] = samples
        self.clips.append(clip)
        self.lengths.append(len(samples))

    def waves(self, clips: slice) -> torch.Tensor:
        """(clips, num_samples); what follows a clip's end is anything."""
        return self._samples[: len(self.clips)][clips]


class _StagedOnGpu:
    """The same on a GPU: a tensor per clip, as it was copied there."""

    def __init__(self, num_clips: int, num_samples: int) -> None:
        self._num_samples = num_samples
        self._samples: list[torch.Tensor] = []
        self.clips: list[int] = []
        self.lengths: list[int] = []

    def add(self, clip: int, samples: torch.Tensor) -> None:
        self._samples.append(samples)
        self.clips.append(clip)
        self.lengths.append(len(samples))

    def waves(self, clips: slice) -> torch.Tensor:
        """(clips, num_samples); what follows a clip's end is anything."""
        some = self._samples[clips]
        rows = some[0].new_empty(len(some), self._num_samples)
        for row, samples in zip(rows, some, strict=True):
            row[: len(samples)].copy_(samples)
        return rows
