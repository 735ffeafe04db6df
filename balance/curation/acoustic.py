"""Acoustic copies: embeddings and fingerprints propose pairs, the sound itself decides.

In: splits with embeddings and media. Out: pairs whose log-mel correlate at least `copy_threshold`. An embedding,
centred by the pool's mean, only proposes: each clip's 64 nearest; what it hears differently, such as one recording at
two sample rates, `fingerprint` proposes. The verdict is the normalised cross-correlation of
the two clips' log-mel spectrograms, centred per band over the overlap, at the best lag within ±5 s that leaves 3 s of
overlap, or most of a shorter clip: gain and equalisers add a constant per band and vanish, mp3 and noise take a little;
half of each frame's loudness is taken out, which alone makes sparse clips alike. Less sound must agree better
(`required`). The bands end below 4 kHz, so that copies at another sample rate compare (the encoder's own log-mel runs
to each file's own Nyquist). The price is decoding every clip once (about 30 ms of one core, all in all), the features
of the clips that others are compared with (24 kB each) in a temporary file; the time is estimated and printed first.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from balance.audio.decoder_process import DecodeSettings, Job
from balance.audio.decoders import Decoded, DecoderPool, plan_slots
from balance.curation.fingerprint import Fingerprints
from balance.data.config import MediaSource
from balance.records import Float32, Float64, Index, Int64, SomeVectors, Split, Vectors
from balance.runtime.threads import Cores
from balance.runtime.wording import listed
from balance.search.config import SearchConfig
from balance.search.top_k import ArrayVectors, search

log = logging.getLogger(__name__)

NUM_PROPOSALS = 64
HOP_S = 0.02
WINDOW_S = 0.048
NUM_BANDS = 24
LOW_HZ, HIGH_HZ = 100.0, 3800.0
FLOOR = 0.005  # of a clip's mean band energy: what is quieter is not heard through noise or mp3
LOUDNESS_KEPT = 0.5  # of each frame's mean over bands: one onset in silence looks alike in unrelated clips
MAX_LAG = round(5.0 / HOP_S)
MIN_OVERLAP = round(3.0 / HOP_S)
SHORT_OVERLAP = 0.8  # of the shorter clip, where that is less: a copy may lack a little at either end
MIN_FRAMES = 12  # a quarter of a second: a shorter clip has no pattern to compare
STRICTEST = 0.3  # of the distance from threshold to 1: two takes of one spoken word reach 0.968 of 1 at 0.9
MAX_FRAMES = 1000  # of 10 ms, as much of a clip as the published encoder hears
_FFT = 1024  # >= two clips of 502 frames
_BLOCK = 4096  # vectors centred at a time
_BATCH = 64  # clips that are worked on together, at most 2 MB each
_RECORD_BYTES = (_FFT // 2) * NUM_BANDS * 2  # features of a clip in float16
_CLIP_S, _COMPARE_S = 0.03, 0.0005  # of one core of 2026, for the estimate that is printed first


def _bands(sample_rate: int, num_fft: int) -> Float32:
    """Triangles even on Kaldi's mel scale, 1127 ln(1 + f / 700): (num_fft // 2 + 1, NUM_BANDS) float32."""
    mel = 1127 * np.log1p(np.fft.rfftfreq(num_fft, 1 / sample_rate) / 700)
    edges = np.linspace(1127 * np.log1p(LOW_HZ / 700), 1127 * np.log1p(HIGH_HZ / 700), NUM_BANDS + 2)
    up = (mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
    triangles: Float32 = np.maximum(np.minimum(up, down), 0).astype(np.float32)
    return triangles


def features(samples: Float32, sample_rate: int) -> Float32:
    """Log-mel of a clip less half its loudness, (frames of 20 ms, NUM_BANDS) float32; samples: (n,) float32.

    No frame for a silent clip, nor for one of fewer than MIN_FRAMES.
    """
    window = max(int(WINDOW_S * sample_rate), 1)
    num_frames = int((len(samples) - window) / (HOP_S * sample_rate)) + 1 if len(samples) >= window else 0
    if num_frames < MIN_FRAMES:
        return np.empty((0, NUM_BANDS), dtype=np.float32)
    # Rounded frame by frame: at 11,025 Hz a hop is 220.5 samples, and two copies at different rates stay in step.
    starts = np.round(np.arange(num_frames) * (HOP_S * sample_rate)).astype(np.int64)
    starts = starts[starts + window <= len(samples)]
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[starts] * np.hanning(window).astype(np.float32)
    num_fft = 1 << (window - 1).bit_length()
    spectrum = torch.fft.rfft(torch.from_numpy(frames), n=num_fft).numpy()
    energy = (spectrum.real**2 + spectrum.imag**2) @ _bands(sample_rate, num_fft)
    level = float(energy.mean())
    if not level > 0:
        return np.empty((0, NUM_BANDS), dtype=np.float32)
    log_mel: Float32 = np.log(energy + np.float32(FLOOR * level))[: _FFT // 2]
    log_mel -= np.float32(1 - LOUDNESS_KEPT) * log_mel.mean(axis=1, keepdims=True)
    return log_mel


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A clip's features made ready for correlating: spectrum over time, running sums.

    transform: (_FFT // 2 + 1, NUM_BANDS) complex64; sums: (frames + 1, NUM_BANDS) float64 of the features up to each
    frame; energy: (frames + 1,) float64 of their squares.
    """

    transform: Any
    sums: Float64
    energy: Float64

    @property
    def num_frames(self) -> int:
        return len(self.energy) - 1

    @staticmethod
    def of(log_mel: Float32) -> Profile:
        level = log_mel - log_mel.mean(axis=0, keepdims=True) if len(log_mel) else log_mel
        padded = np.zeros((_FFT, NUM_BANDS), dtype=np.float32)
        padded[: len(level)] = level
        wide = level.astype(np.float64)
        zero = np.zeros((1, NUM_BANDS))
        return Profile(
            torch.fft.rfft(torch.from_numpy(padded), dim=0).numpy(),
            np.concatenate([zero, np.cumsum(wide, axis=0)]),
            np.concatenate([[0.0], np.cumsum((wide**2).sum(axis=1))]),
        )


def correlation(a: Profile, b: Profile) -> float:
    """Greatest normalised cross-correlation of two clips over lags within ±5 s that leave overlap enough; 0 if there is
    none.

    At lag d frame t of `a` meets frame t + d of `b`; each band is centred over the overlap.
    """
    num_a, num_b = a.num_frames, b.num_frames
    overlap = min(MIN_OVERLAP, math.ceil(SHORT_OVERLAP * min(num_a, num_b)))
    low, high = max(-MAX_LAG, overlap - num_a), min(MAX_LAG, num_b - overlap)
    if low > high or min(num_a, num_b) < MIN_FRAMES:
        return 0.0
    lags = np.arange(low, high + 1)
    start_a, stop_a = np.maximum(0, -lags), np.minimum(num_a, num_b - lags)
    start_b, stop_b = start_a + lags, stop_a + lags
    num = (stop_a - start_a).astype(np.float64)
    together = torch.fft.irfft(torch.from_numpy((a.transform.conj() * b.transform).sum(axis=1)), n=_FFT).numpy()
    sum_a, sum_b = a.sums[stop_a] - a.sums[start_a], b.sums[stop_b] - b.sums[start_b]  # (lags, bands)
    cross = together[lags % _FFT] - (sum_a * sum_b).sum(axis=1) / num
    own_a = a.energy[stop_a] - a.energy[start_a] - (sum_a**2).sum(axis=1) / num
    own_b = b.energy[stop_b] - b.energy[start_b] - (sum_b**2).sum(axis=1) / num
    # A nearly constant overlap has no pattern to compare: 0.01 neper² a band and frame is far below any sound.
    floor = 0.01 * NUM_BANDS * num
    heard = (own_a > floor) & (own_b > floor)
    if not heard.any():
        return 0.0
    return float(np.clip((cross[heard] / np.sqrt(own_a[heard] * own_b[heard])).max(), -1.0, 1.0))


def required(threshold: float, num_frames: int) -> float:
    """The correlation from which clips are copies, of which the shorter has so many frames.

    `threshold` from 3 s on. Less sound agrees by chance more often, so the distance to 1 shrinks with the length, down
    to STRICTEST of it: of 22,400 pairs of takes of one word by one speaker (0.2 to 1.2 s) 11 % reach 0.9, none 0.97
    (`benchmarks/copies.py --takes`).
    """
    return 1.0 - (1.0 - threshold) * max(STRICTEST, min(num_frames / MIN_OVERLAP, 1.0))


class AcousticCopies:
    """Finds acoustic copies among the clips of a run (`dedup.FindCopies`).

    source: where the clips' bytes lie; threshold: correlation from which a pair is a copy; num_workers: decoder
    processes, with queue_bytes of memory between them and this one; device: where proposals are searched.
    """

    def __init__(
        self,
        source: MediaSource,
        *,
        threshold: float,
        num_workers: int,
        queue_bytes: int,
        clip_timeout_s: float,
        search: SearchConfig,
        device: torch.device,
    ) -> None:
        slot_bytes, num_slots = plan_slots(queue_bytes, MAX_FRAMES, num_workers)
        self._decode = DecodeSettings(
            media_root=str(source.root),
            format=source.format.value,
            columns=asdict(source.columns),
            max_frames=MAX_FRAMES,
            zero_mean=False,
            slot_bytes=slot_bytes,
            num_slots=num_slots,
        )
        self._threshold = threshold
        self._num_workers = num_workers
        self._clip_timeout_s = clip_timeout_s
        self._search = search
        self._device = device

    def between(self, queries: Split, base: Split, base_rows: Int64) -> tuple[Int64, Int64, Float64]:
        """Copies of `queries` among some clips of `base`: (row of queries.index, row of base.index, correlation)."""
        num_queries = len(queries.embedded)
        vectors = SomeVectors(base.vectors, np.searchsorted(base.embedded, base_rows))
        proposed = self._propose(queries.vectors.read(0, num_queries), vectors, NUM_PROPOSALS)
        first = np.repeat(np.arange(num_queries), proposed.shape[1])
        parts = [(queries.index, queries.embedded), (base.index, base_rows)]
        a, b, value = self._compare(parts, first, num_queries + proposed.reshape(-1), sought=num_queries)
        return queries.embedded[a], base_rows[b - num_queries], value

    def within(self, seeds: Split, pool: Split, pool_rows: Int64) -> tuple[Int64, Int64, Float64]:
        """Copies among all seeds (nodes 0 … S − 1) and some pool clips (nodes S …): (node, node, correlation)."""
        num_seeds = len(seeds.embedded)
        at = np.searchsorted(pool.embedded, pool_rows)
        rows = np.concatenate([seeds.vectors.read(0, num_seeds), pool.vectors.take(at)])
        proposed = self._propose(rows, ArrayVectors(rows), NUM_PROPOSALS + 1)  # one of them is the clip itself
        first = np.repeat(np.arange(len(rows)), proposed.shape[1])
        low, high = np.minimum(first, proposed.reshape(-1)), np.maximum(first, proposed.reshape(-1))
        pairs = np.unique((low * len(rows) + high)[(low < high) & (high >= num_seeds)])
        parts = [(seeds.index, seeds.embedded), (pool.index, pool_rows)]
        return self._compare(parts, pairs // len(rows), pairs % len(rows), sought=len(rows))

    def _propose(self, queries: Float32, base: Vectors, k: int) -> Int64:
        """Places in `base` of each query's nearest by centred cosine, (Q, k) int64."""
        num_base = base.shape[0]
        k = min(k, num_base)
        if not len(queries) or not k:
            return np.empty((len(queries), k), dtype=np.int64)
        total = np.zeros(base.shape[1])
        for start in range(0, num_base, _BLOCK):
            total += base.read(start, min(start + _BLOCK, num_base)).sum(axis=0, dtype=np.float64)
        mean = (total / num_base).astype(np.float32)
        found, _ = search(queries - mean, _Centred(base, mean), k, self._search, device=self._device)
        return found.astype(np.int64)

    def _compare(
        self, parts: list[tuple[Index, Int64]], a: Int64, b: Int64, *, sought: int
    ) -> tuple[Int64, Int64, Float64]:
        """The copies among all nodes (places in the joined parts): (node, later node, correlation).

        Compared are the pairs a < b that the embedding proposes, and what the fingerprints propose: of the first
        `sought` nodes, for every node behind the first part. A pair is compared when its later clip is decoded; the
        earlier one's features wait in a temporary file.
        """
        num_first, num_nodes = (sum(len(rows) for _, rows in some) for some in (parts[:1], parts))
        self._say_estimate(num_nodes, len(a))
        order = np.lexsort((a, b))
        a, starts = a[order], np.searchsorted(b[order], np.arange(num_nodes + 1))
        prints = Fingerprints(sought)
        found: list[tuple[int, int, float]] = []
        unheard: list[int] = []
        with tempfile.TemporaryFile() as file, Cores() as cores:
            waiting = _Waiting(file.fileno())

            def copies_of(node: int) -> list[tuple[int, int, float]]:
                others = set(a[starts[node] : starts[node + 1]].tolist())
                if node >= num_first:
                    others.update(prints.similar(node, heard[node]))
                mine = Profile.of(heard[node])
                values = [(other, node, self._copy(waiting.get(other), mine)) for other in sorted(others)]
                return [(other, node, value) for other, node, value in values if value is not None]

            for batch in _batches(self._decoded(parts)):
                log_mels = dict(zip(batch, cores.map(_features_of, batch.values()), strict=True))
                heard = {node: log_mel for node, log_mel in log_mels.items() if len(log_mel)}
                unheard += log_mels.keys() - heard.keys()
                known = {node: log_mel for node, log_mel in heard.items() if node < sought}
                prints.add(known)
                waiting.put(known)
                found += itertools.chain.from_iterable(cores.map(copies_of, heard))
        _say_unheard(parts, np.array(sorted(unheard), dtype=np.int64))
        columns = list(zip(*found, strict=True)) or [(), (), ()]
        return np.array(columns[0], np.int64), np.array(columns[1], np.int64), np.array(columns[2], np.float64)

    def _copy(self, theirs: Profile | None, mine: Profile) -> float | None:
        """The correlation of two clips that are copies, else None; theirs: None of a clip without features."""
        if theirs is None:
            return None
        value = correlation(theirs, mine)
        return value if value >= required(self._threshold, min(theirs.num_frames, mine.num_frames)) else None

    def _say_estimate(self, num_clips: int, num_pairs: int) -> None:
        estimate_s = (num_clips * _CLIP_S + num_pairs * _COMPARE_S) / self._num_workers
        log.info(
            "acoustic copies: %s clips to decode, %s pairs to compare, about %s min",
            f"{num_clips:,}",
            f"{num_pairs:,}",
            f"{estimate_s / 60:,.1f}",
        )

    def _decoded(self, parts: list[tuple[Index, Int64]]) -> Iterator[tuple[Float32, int]]:
        """(samples, sample rate) of all nodes in their order; no samples of a clip that cannot be decoded."""

        def jobs() -> Iterator[tuple[None, Job]]:
            for index, rows in parts:
                offsets, sizes = index.places()
                ids, paths = (column.take(pa.array(rows)).to_pylist() for column in (index.ids, index.paths))
                for row, clip_id, path in zip(rows.tolist(), ids, paths, strict=True):
                    yield None, Job(clip_id, path, int(offsets[row]), int(sizes[row]))

        with DecoderPool(
            self._decode, jobs(), num_workers=self._num_workers, clip_timeout_s=self._clip_timeout_s
        ) as decoders:
            for _, _, result in decoders.results():
                if isinstance(result, Decoded):
                    yield result.samples.copy(), result.sample_rate
                else:
                    yield np.empty(0, dtype=np.float32), 1


def _features_of(clip: tuple[Float32, int]) -> Float32:
    return features(*clip)


def _batches(clips: Iterator[tuple[Float32, int]]) -> Iterator[dict[int, tuple[Float32, int]]]:
    """Number -> clip, _BATCH clips at a time."""
    numbered = enumerate(clips)
    while batch := dict(itertools.islice(numbered, _BATCH)):
        yield batch


class _Waiting:
    """Features of clips that later ones are compared with, as float16 in an open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes: dict[int, int] = {}

    def put(self, log_mels: Mapping[int, Float32]) -> None:
        """log_mels: node -> features."""
        for node, log_mel in log_mels.items():
            data = log_mel.astype(np.float16).tobytes()
            os.pwrite(self._descriptor, data, node * _RECORD_BYTES)
            self._bytes[node] = len(data)

    def get(self, node: int) -> Profile | None:
        """None of a clip without features."""
        if node not in self._bytes:
            return None
        data = os.pread(self._descriptor, self._bytes[node], node * _RECORD_BYTES)
        return Profile.of(np.frombuffer(data, dtype=np.float16).reshape(-1, NUM_BANDS).astype(np.float32))


def _say_unheard(parts: list[tuple[Index, Int64]], nodes: Int64) -> None:
    """A warning that counts the clips without features: they are nobody's copy, and nobody is theirs."""
    if not len(nodes):
        return
    starts = np.cumsum([0, *(len(rows) for _, rows in parts)])
    names: list[str] = []
    for (index, rows), start, stop in zip(parts, starts[:-1], starts[1:], strict=True):
        some = rows[nodes[(nodes >= start) & (nodes < stop)] - start]
        names += index.ids.take(pa.array(some)).to_pylist()
    log.warning(
        "acoustic copies: %s clips are silent, shorter than %.1f s or cannot be decoded: they were not compared (%s)",
        f"{len(names):,}",
        (MIN_FRAMES - 1) * HOP_S + WINDOW_S,
        listed(names, 3),
    )


class _Centred:
    """`Vectors` minus a mean."""

    def __init__(self, vectors: Vectors, mean: Float32) -> None:
        self._vectors, self._mean = vectors, mean

    @property
    def shape(self) -> tuple[int, int]:
        return self._vectors.shape

    def read(self, start: int, stop: int) -> Float32:
        return self._vectors.read(start, stop) - self._mean

    def take(self, rows: Int64) -> Float32:
        return self._vectors.take(rows) - self._mean

    def name(self, row: int) -> str:
        return self._vectors.name(row)
