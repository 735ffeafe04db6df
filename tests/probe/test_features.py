"""The probe's feature space against float64 arithmetic."""

import numpy as np

from balance.probe.features import BLOCK_ROWS, Space
from balance.search.top_k import ArrayVectors


def test_the_space_is_the_pools_mean_and_deviation_after_normalising():
    rng = np.random.default_rng(0)
    pool = (rng.standard_normal((BLOCK_ROWS + 77, 6)) * 0.01 + 3.0).astype(np.float32)
    pool[:, 5] = 0.0  # never varies
    space = Space.of(ArrayVectors(pool))
    unit = pool.astype(np.float64) / np.linalg.norm(pool.astype(np.float64), axis=1, keepdims=True)
    want = (unit - unit.mean(axis=0)) / np.where(unit.std(axis=0) > 0, unit.std(axis=0), 1.0)
    assert np.abs(space.standardise(pool) - want).max() < 5e-4  # crowded: a deviation of 0.003 at float32
    assert np.allclose(space.scale[:5], unit.std(axis=0)[:5], rtol=1e-4)
    assert (space.standardise(pool)[:, 5] == 0).all()


def test_a_zero_vector_is_the_origin():
    pool = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32)
    space = Space.of(ArrayVectors(pool))
    got = space.standardise(pool)
    assert np.isfinite(got).all()
    assert np.allclose(got[2], -space.mean / space.scale)
