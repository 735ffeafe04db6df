"""Waveforms of one sample rate → normalised Kaldi log-mel spectrograms, batched, on the waveforms' own device.

The formulas are Kaldi's (feature-window.cc, mel-computations.cc) with the settings of the published evaluation path:
25 ms symmetric Hann windows every 10 ms, snapped edges, per-frame mean removed, pre-emphasis 0.97, power spectrum,
triangles linear in mel from 20 Hz to Nyquist, natural log with floor 2^-23, no dither, no energy. One code for CPU
and CUDA: a block of frames goes through one padded buffer; only the block's size differs (what the second cache
holds, or what fills a GPU). Windows and triangles are made once per sample rate and kept by the `LogMel` that needs
them. The price: Kaldi's order of operations is not kept, so results differ in the last bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from balance.audio.frames import shift_samples, window_samples

LOW_HZ = 20.0
PRE_EMPHASIS = 0.97
ENERGY_FLOOR = 2.0**-23  # float32's epsilon, 1.1920929e-07
_NUM_BLOCKS = 8  # the mel product runs over each block's own frequency bins only: a fifth of the arithmetic
_KEPT_TABLES = 64  # sample rates: a data set has a few; each costs 0.3 MB at 44.1 kHz
_CPU_FRAMES = 128  # frames per block: 128 x 2048 float32 are 1 MiB
_CUDA_CLIPS = 16  # clips per block: 16 x 1000 x 2048 float32 are 125 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """What a checkpoint's cfg says about its input; picklable, part of the store's fingerprint.

    max_frames: rows of the spectrogram (10 ms each); mean, std: normalisation of log-mel values, both None for none;
    zero_mean: subtract each clip's mean before (done by `decode.load`).
    """

    max_frames: int
    num_mel_bins: int
    mean: float | None
    std: float | None
    zero_mean: bool


# The released checkpoints' input; mean and std are those of AudioSet's log-mel values.
VIPANT_FRONT_END = FrontEnd(max_frames=1000, num_mel_bins=128, mean=-4.93839311, std=5.75751113, zero_mean=True)


def num_frames(num_samples: int, sample_rate: int) -> int:
    """Frames whose window lies wholly inside the clip (Kaldi's snip_edges)."""
    window = window_samples(sample_rate)
    return 0 if num_samples < window else 1 + (num_samples - window) // shift_samples(sample_rate)


class LogMel:
    """One front end's spectrograms; keeps the tables of the sample rates that it has met."""

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end
        self._tables: dict[tuple[int, torch.device], _Tables] = {}

    def __call__(self, waveforms: Tensor, lengths: Sequence[int], sample_rate: int) -> Tensor:
        """Spectrograms (batch, max_frames, num_mel_bins) float32, normalised, on the waveforms' device.

        waveforms: (batch, num_samples) float32, mean already removed where the front end wants it; clip i is its first
        `lengths[i]` samples, what follows is ignored; sample_rate: Hz, of all of them. Rows after a clip's last frame
        are raw zeros, normalised like the rest. A clip's rows do not depend on what else is in the batch: on a CPU
        clips are computed one by one, on CUDA every batch has the shape of `max_frames` frames. Any thread may call
        it. Raises ValueError for a clip shorter than one window.
        """
        front_end, device = self._front_end, waveforms.device
        assert waveforms.dtype == torch.float32
        assert len(waveforms) == len(lengths)
        counts = [min(front_end.max_frames, num_frames(length, sample_rate)) for length in lengths]
        if min(counts, default=1) < 1:
            raise ValueError(f"a clip of {min(lengths)} samples at {sample_rate} Hz is shorter than one window")
        tables = self._tables_of(sample_rate, device)
        out = waveforms.new_zeros(len(waveforms), front_end.max_frames, front_end.num_mel_bins)
        blocks = _clip_blocks if _clip_by_clip(device) else _batch_blocks
        for frames, rows in blocks(waveforms, counts, sample_rate, out):
            _energies(frames, tables, rows)
            rows.clamp_(min=ENERGY_FLOOR).log_()
        if not _clip_by_clip(device):  # blocks of whole batches: clear what lies after each clip's end
            ends = torch.tensor(counts, pin_memory=device.type == "cuda").to(device, non_blocking=True)  # no waiting
            out.masked_fill_((torch.arange(front_end.max_frames, device=device) >= ends[:, None])[:, :, None], 0.0)
        if front_end.mean is not None and front_end.std is not None:
            out.sub_(front_end.mean).div_(front_end.std)
        return out

    def _tables_of(self, sample_rate: int, device: torch.device) -> _Tables:
        tables = self._tables.get((sample_rate, device))
        if tables is None:  # two threads may both make them: the same numbers
            if len(self._tables) >= _KEPT_TABLES:
                self._tables.clear()
            tables = self._tables[sample_rate, device] = _Tables.of(sample_rate, self._front_end.num_mel_bins, device)
        return tables


def _clip_by_clip(device: torch.device) -> bool:
    """A CPU's caches want small blocks of one clip; a GPU wants few large ones."""
    return device.type == "cpu"


def _clip_blocks(
    waveforms: Tensor, counts: list[int], sample_rate: int, out: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """(frames (n, window), where their rows go (n, mel)), views: `_CPU_FRAMES` frames of one clip at a time."""
    for waveform, count, rows in zip(waveforms, counts, out, strict=True):
        frames = waveform.unfold(0, window_samples(sample_rate), shift_samples(sample_rate))
        for start in range(0, count, _CPU_FRAMES):
            stop = min(start + _CPU_FRAMES, count)
            yield frames[start:stop], rows[start:stop]


def _batch_blocks(
    waveforms: Tensor, counts: list[int], sample_rate: int, out: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """(frames (n, max_frames, window), where their rows go (n, max_frames, mel)): `_CUDA_CLIPS` clips at a time.

    All of `max_frames` frames whatever `counts` says, so that a clip's arithmetic never depends on its neighbours.
    """
    window, shift, max_frames = window_samples(sample_rate), shift_samples(sample_rate), out.shape[1]
    missing = window + (max_frames - 1) * shift - waveforms.shape[1]
    frames = torch.nn.functional.pad(waveforms, (0, max(0, missing))).unfold(1, window, shift)[:, :max_frames]
    for start in range(0, len(frames), _CUDA_CLIPS):
        yield frames[start : start + _CUDA_CLIPS], out[start : start + _CUDA_CLIPS]


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """window: (window,) float32; fft_size; blocks: (first, last + 1 of the squares, first, last + 1 mel, weights)."""

    window: Tensor
    fft_size: int
    blocks: tuple[tuple[int, int, int, int, Tensor], ...]

    @staticmethod
    def of(sample_rate: int, num_mel_bins: int, device: torch.device) -> _Tables:
        window = window_samples(sample_rate)
        fft_size = 1 << (window - 1).bit_length()
        weights = mel_weights(sample_rate, num_mel_bins, fft_size)
        blocks = []
        edges = [round(i * num_mel_bins / _NUM_BLOCKS) for i in range(_NUM_BLOCKS + 1)]
        for first_mel, last_mel in itertools.pairwise(edges):
            bins = weights[:, first_mel:last_mel].any(1).nonzero()
            first_bin, last_bin = (int(bins[0]), int(bins[-1]) + 1) if len(bins) else (0, 1)
            block = weights[first_bin:last_bin, first_mel:last_mel].repeat_interleave(2, dim=0).to(device)
            blocks.append((2 * first_bin, 2 * last_bin, first_mel, last_mel, block))
        hann = torch.hann_window(window, periodic=False, dtype=torch.float64).float().to(device)
        return _Tables(hann, fft_size, tuple(blocks))


def _energies(frames: Tensor, tables: _Tables, out: Tensor) -> None:
    """Mel energies (..., n, mel) of frames (..., n, window), written to `out`."""
    window = tables.window.shape[0]
    padded = frames.new_zeros(*frames.shape[:-1], tables.fft_size)
    inside = padded[..., :window]
    # With x' = x - mean and y[i] = x'[i] - 0.97 x'[i-1], y[0] = 0.03 x'[0]; the window is 0 at 0, which drops y[0].
    torch.sub(frames[..., 1:], frames[..., :-1], alpha=PRE_EMPHASIS, out=inside[..., 1:])
    inside[..., 1:].sub_(frames.mean(-1, keepdim=True), alpha=1 - PRE_EMPHASIS)
    inside.mul_(tables.window)
    # re², im² by turns: each weight stands twice, so the product adds them up, without a pass that picks them apart.
    squares = torch.view_as_real(torch.fft.rfft(padded)).flatten(-2).square_()
    for first, last, first_mel, last_mel, weights in tables.blocks:
        out[..., first_mel:last_mel] = squares[..., first:last] @ weights


def mel_weights(sample_rate: int, num_mel_bins: int, fft_size: int) -> Tensor:
    """Kaldi's triangles, (fft_size / 2, num_mel_bins) float32: the weight of each bin (Nyquist left out) in each mel.

    Linear in mel = 1127 ln(1 + Hz / 700) between `LOW_HZ` and Nyquist, not normalised; a triangle that no bin falls
    into stays empty.
    """
    low, high = _mel(LOW_HZ), _mel(sample_rate / 2)
    step = (high - low) / (num_mel_bins + 1)
    left = low + step * torch.arange(num_mel_bins, dtype=torch.float64)
    hz = torch.arange(fft_size // 2, dtype=torch.float64) * (sample_rate / fft_size)
    mel = 1127.0 * torch.log1p(hz / 700.0)[:, None]
    rising, falling = (mel - left) / step, (left + 2 * step - mel) / step
    return torch.minimum(rising, falling).clamp(min=0).float()


def _mel(hz: float) -> float:
    return 1127.0 * math.log1p(hz / 700.0)
