"""Windows of one part's clips -> its embeddings: batches for every encoder but VIP-ANT, joined by clip.

In: decoded clips, one by one, a long one in pieces. Out: (clips, dim) float32 in the same order. Windows wait until
there are enough to sort by length, so that little is padded; the batches depend on the part's clips alone, so a part
has the same bytes whoever makes it. Sums and maxima of a clip's windows are kept, never its sound: an hour needs no
more memory than a minute. On CUDA a batch is enqueued before the answer of an earlier one is asked for. The model is
called by one thread: nobody knows whether it may be called by several.
"""

from __future__ import annotations

import logging
import platform
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from balance.audio.decoders import Decoded
from balance.embed.batches import NO_ROOM, Finished
from balance.encoders.base import WaveformEncoder
from balance.encoders.checked import CheckedModel
from balance.encoders.config import Pool
from balance.errors import UserError
from balance.records import Float32, Float64

log = logging.getLogger(__name__)

_SORTED_BATCHES = 4  # windows of so many batches are sorted by length together
_STAGED_BYTES = 128 << 20  # of waiting windows: what is longer goes in smaller batches
_CPU_CLIPS = 8  # of a batch on a CPU: more is no faster and takes memory
_IN_FLIGHT = 2  # batches that CUDA may be behind


class WindowBatches:
    """Windows in, clip by clip; the part's embeddings out at `finish()`, in the clips' order."""

    def __init__(self, model: CheckedModel, described: WaveformEncoder, device: torch.device, batch_size: int) -> None:
        self._model, self._described, self._device = model, described, device
        self._at_once = batch_size if device.type == "cuda" else min(batch_size, _CPU_CLIPS)
        self._halved_from: int | None = None
        self._start()

    def _start(self) -> None:
        self._joined = _Joined(self._described.dim, self._described.pool)
        self._is_inside = False  # a clip of which more windows follow
        self._dropped: set[int] = set()
        self._num_clips = 0
        self._staged: list[tuple[int, Float32]] = []  # (clip, window)
        self._staged_bytes = 0
        self._in_flight: deque[tuple[list[int], torch.Tensor]] = deque()

    def add(self, clip: Decoded) -> None:
        """Stage a clip's windows (copied at once), or more of them."""
        for window in np.array(clip.samples).reshape(clip.num_windows, -1):
            self._staged.append((self._num_clips, window))
            self._staged_bytes += window.nbytes
            if len(self._staged) >= _SORTED_BATCHES * self._at_once or self._staged_bytes >= _STAGED_BYTES:
                self._run()
        self._is_inside = not clip.is_last
        self._num_clips += clip.is_last

    def discard(self) -> None:
        """Forget the clip whose windows have begun to come: its end could not be decoded."""
        if self._is_inside:
            self._dropped.add(self._num_clips)
            self._num_clips += 1
            self._is_inside = False

    def finish(self) -> Finished:
        """The embeddings of the clips added since the last call."""
        self._run()
        while self._in_flight:
            self._settle()
        kept = [clip for clip in range(self._num_clips) if clip not in self._dropped]
        rows = torch.from_numpy(self._joined.embeddings(kept))
        self._start()
        return Finished(rows, list(range(len(rows))), None)

    def made_by(self) -> dict[str, Any]:
        """Facts about this process for the part's metadata."""
        on_cuda = self._device.type == "cuda"
        made: dict[str, Any] = {
            "device": torch.cuda.get_device_name(self._device) if on_cuda else platform.machine(),
            "batch_size": self._at_once,
            "torch": torch.__version__,
        }
        if self._halved_from is not None:
            made["batch_size_halved_from"] = self._halved_from
        return made

    def _run(self) -> None:
        """Embed all that is staged."""
        staged = sorted(self._staged, key=lambda item: len(item[1]))
        self._staged, self._staged_bytes = [], 0
        for batch in in_batches([len(window) for _, window in staged], self._at_once, self._described.equal_lengths):
            self._embed([staged[i] for i in batch])

    def _embed(self, batch: list[tuple[int, Float32]]) -> None:
        try:
            answer = self._model.embed_windows([window for _, window in batch])
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise UserError(NO_ROOM) from error
            self._halved_from = self._halved_from or self._at_once
            self._at_once = max(1, len(batch) // 2)
            torch.cuda.empty_cache()
            log.warning("the GPU ran out of memory: going on with encoder.batch_size=%d", self._at_once)
            for half in (batch[: self._at_once], batch[self._at_once :]):
                self._embed(half)
            return
        self._in_flight.append(([clip for clip, _ in batch], answer))
        while len(self._in_flight) > _IN_FLIGHT:
            self._settle()

    def _settle(self) -> None:
        clips, answer = self._in_flight.popleft()
        for clip, embedding in zip(clips, answer.cpu().numpy(), strict=True):
            self._joined.add(clip, embedding)


def in_batches(lengths: list[int], batch_size: int, equal_lengths: bool) -> Iterator[list[int]]:
    """The places of each batch: at most `batch_size` of neighbouring ones, of one length where that is asked for."""
    batch: list[int] = []
    for place, length in enumerate(lengths):
        if batch and (len(batch) == batch_size or (equal_lengths and length != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


class _Joined:
    """The windows of each clip, joined as they come: sums in float64, or maxima."""

    def __init__(self, dim: int, pool: Pool) -> None:
        self._dim, self._pool = dim, pool
        self._values: dict[int, Float64] = {}
        self._counts: dict[int, int] = {}

    def add(self, clip: int, embedding: Float32) -> None:
        value, count = embedding.astype(np.float64), self._counts.get(clip, 0)
        if count:
            before = self._values[clip]
            value = before + value if self._pool is Pool.mean else np.maximum(before, value)
        self._values[clip], self._counts[clip] = value, count + 1

    def embeddings(self, clips: list[int]) -> Float32:
        """(clips, dim) float32."""
        out = np.empty((len(clips), self._dim), dtype=np.float32)
        for row, clip in enumerate(clips):
            out[row] = self._values[clip] / (self._counts[clip] if self._pool is Pool.mean else 1)
        return out
