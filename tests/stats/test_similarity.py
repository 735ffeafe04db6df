"""Random pairs beside numpy in float64, and their place in a run's files."""

import math

import numpy as np
import pyarrow as pa

from balance.records import Index, Labels, Split
from balance.search.top_k import ArrayVectors
from balance.stats.similarity import NUM_PAIRS, random_similarity
from tests.search_reference import crowded


def split(vectors: np.ndarray, embedded: np.ndarray) -> Split:
    ids = pa.array([f"c{i}" for i in range(int(embedded[-1]) + 1)])
    return Split(Index("x", ids, ids, Labels.of([()] * len(ids))), embedded, ArrayVectors(vectors), None)


def test_mean_and_deviation_are_numpy_s() -> None:
    seeds, pool = crowded(7, 24, 0.9, seed=1), crowded(60, 24, 0.9, seed=2) * 3
    pool[10] = 0
    rows = np.arange(60) * 2  # every other clip has an embedding
    eligible = rows[5:50]
    found = random_similarity(split(seeds, np.arange(7)), split(pool, rows), eligible, 5)
    rng = np.random.default_rng(5)
    a = seeds[rng.integers(7, size=NUM_PAIRS)].astype(np.float64)
    b = pool[5:50][rng.integers(45, size=NUM_PAIRS)].astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    values = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(NUM_PAIRS), where=lengths > 0)
    assert math.isclose(found.mean, values.mean(), abs_tol=1e-12)
    assert math.isclose(found.std, values.std(), abs_tol=1e-12)
    every = (seeds @ pool[5:50].T / np.linalg.norm(seeds, axis=1)[:, None]) / np.maximum(
        np.linalg.norm(pool[5:50], axis=1), 1e-9
    )
    assert abs(found.mean - every.mean()) < 6 * every.std() / math.sqrt(NUM_PAIRS)
