"""Acoustic copies among a run's clips: embeddings and fingerprints propose pairs, the sound itself decides.

In: splits with embeddings and media. Out: pairs that are copies by `judge`. An embedding, centred by the pool's mean,
only proposes: each clip's 64 nearest; what it hears differently, such as one recording at two sample rates or speeds,
`fingerprint` proposes. The price is decoding every clip once (about 40 ms of one core, all in all), the features of the
clips that others are compared with (24 kB each) in a temporary file; the time is estimated and printed first.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from balance.audio.decoder_process import Job
from balance.audio.decoders import Decoded, DecoderPool, channel_settings
from balance.curation.judge import MOST_FRAMES
from balance.curation.listener import Listener, Match
from balance.curation.log_mel import SHORTEST_S, features
from balance.data.config import MediaSource
from balance.records import Float32, Float64, Index, Int64, SomeVectors, Split, Vectors
from balance.runtime.terminal import Stage
from balance.runtime.threads import Cores
from balance.runtime.wording import listed
from balance.search.config import SearchConfig
from balance.search.top_k import ArrayVectors, search

log = logging.getLogger(__name__)

NUM_PROPOSALS = 64
MAX_FRAMES = 1000  # of 10 ms, as much of a clip as the published encoder hears
_BLOCK = 4096  # vectors centred at a time
_BATCH = 64  # clips that are worked on together, at most 2 MB each
_CLIP_S, _COMPARE_S = 0.04, 0.001  # of one core of 2026, for the estimate that is printed first


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
        self._decode = channel_settings(source, MAX_FRAMES, queue_bytes, num_workers)
        self._threshold = threshold
        self._num_workers = num_workers
        self._clip_timeout_s = clip_timeout_s
        self._search = search
        self._device = device
        self.warnings: list[str] = []  # of what was not compared, for console and page

    def between(self, queries: Split, base: Split, base_rows: Int64) -> tuple[Int64, Int64, Float64]:
        """Copies of `queries` among some clips of `base`: (row of queries.index, row of base.index, correlation).

        Where `queries` has no vectors, fingerprints alone propose.
        """
        num_queries = len(queries.embedded)
        vectors = SomeVectors(base.vectors, np.searchsorted(base.embedded, base_rows))
        proposed = self._propose(queries.vectors.read(0, num_queries), vectors, NUM_PROPOSALS)
        first = np.repeat(np.arange(len(proposed)), proposed.shape[1])
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
        `sought` nodes, for every node behind the first part. A pair is compared when its later clip is decoded.
        """
        num_first, num_nodes = (sum(len(rows) for _, rows in some) for some in (parts[:1], parts))
        self._say_estimate(num_nodes, len(a))
        order = np.lexsort((a, b))
        a, starts = a[order], np.searchsorted(b[order], np.arange(num_nodes + 1))
        found: list[Match] = []
        unheard: list[int] = []
        with tempfile.TemporaryFile() as file, Cores() as cores, Stage("acoustic copies", num_nodes) as stage:
            listener = Listener(file, sought, self._threshold)

            def copies_of(node: int) -> list[Match]:
                proposed = a[starts[node] : starts[node + 1]].tolist()
                return listener.copies_of(node, heard[node], proposed, by_fingerprint=node >= num_first)

            num_undecoded = 0
            for batch in _batches(self._decoded(parts)):
                log_mels = dict(zip(batch, cores.map(_features_of, batch.values()), strict=True))
                heard = {node: log_mel for node, log_mel in log_mels.items() if len(log_mel)}
                unheard += log_mels.keys() - heard.keys()
                listener.remember({node: log_mel for node, log_mel in heard.items() if node < sought})
                found += itertools.chain.from_iterable(cores.map(copies_of, heard))
                num_undecoded += sum(not len(samples) for samples, _ in batch.values())
                stage.failed(num_undecoded)
                stage.advance(len(batch))
        if unheard:
            self.warnings.append(_unheard_words(parts, np.array(sorted(unheard), dtype=np.int64)))
            log.warning("%s", self.warnings[-1])
        return (
            np.array([match.other for match in found], np.int64),
            np.array([match.node for match in found], np.int64),
            np.array([match.heard.correlation for match in found], np.float64),
        )

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
    return features(*clip)[:MOST_FRAMES]


def _batches(clips: Iterator[tuple[Float32, int]]) -> Iterator[dict[int, tuple[Float32, int]]]:
    """Number -> clip, _BATCH clips at a time."""
    numbered = enumerate(clips)
    while batch := dict(itertools.islice(numbered, _BATCH)):
        yield batch


def _unheard_words(parts: list[tuple[Index, Int64]], nodes: Int64) -> str:
    """Counts the clips without features: they are nobody's copy, and nobody is theirs."""
    starts = np.cumsum([0, *(len(rows) for _, rows in parts)])
    names: list[str] = []
    for (index, rows), start, stop in zip(parts, starts[:-1], starts[1:], strict=True):
        some = rows[nodes[(nodes >= start) & (nodes < stop)] - start]
        names += index.ids.take(pa.array(some)).to_pylist()
    num_clips = sum(len(rows) for _, rows in parts)
    return (
        f"acoustic copies: {len(names):,} of {num_clips:,} clips are silent, shorter than {SHORTEST_S:.1f} s or cannot "
        f"be decoded: they were not compared ({listed(names, 3)})"
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
