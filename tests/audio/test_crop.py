"""The crop against a reading of the published rule in numpy, and its sums against the whole clip's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balance.audio import crop


def in_blocks(samples: np.ndarray, size: int) -> list[np.ndarray]:
    return [samples[at : at + size] for at in range(0, len(samples), size)]


def published_crop(samples: np.ndarray, num_kept: int) -> np.ndarray:
    """The rule as the published loader words it, with lists of candidates instead of branches."""
    total = len(samples)
    if total <= num_kept:
        return samples
    start = round((total - num_kept) / 2.0)
    kept = samples[start : start + num_kept]
    centre_std = samples[start : start + num_kept].std(ddof=1, dtype=np.float64)
    if centre_std < 0.5 * samples.std(ddof=1, dtype=np.float64):
        kept = samples[:num_kept]
        if kept.std(ddof=1, dtype=np.float64) < centre_std:
            kept = samples[-num_kept:]
    return kept


def cropped(samples: np.ndarray, num_kept: int, *, block: int) -> tuple[np.ndarray, float]:
    whole = crop.Moments(spread=True)
    whole.add(samples)
    return crop.crop(lambda: in_blocks(samples, block), whole.std, len(samples), num_kept, num_kept)


@settings(deadline=None)  # a busy machine is no fault
@given(st.integers(3, 60), st.integers(2, 40), st.integers(1, 2), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_crop_takes_centre_head_or_tail(total: int, num_kept: int, channels: int, block: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_kept = min(num_kept, total - 1)
    loudness = np.repeat(generator.choice([0.0, 0.01, 1.0], 6), 10)[:total, None]
    samples = (generator.standard_normal((total, channels)) * loudness).astype(np.float32)
    kept, mean = cropped(samples, num_kept, block=block)
    expected = published_crop(samples, num_kept)
    np.testing.assert_array_equal(kept, expected[:, 0])
    assert mean == pytest.approx(expected.mean(dtype=np.float64), abs=1e-12)


def test_each_place_of_the_crop_is_reached() -> None:
    quiet, loud = np.full((40, 1), 1e-4, np.float32), np.ones((40, 1), np.float32)
    quiet[::2] *= -1
    loud[::2] *= -1
    dead = np.zeros((40, 1), np.float32)
    numbered = np.arange(120, dtype=np.float32)[:, None] * 1e-7  # so that equal stretches can be told apart
    for parts, start in (((loud, loud, loud), 40), ((loud, dead, dead), 0), ((dead, quiet, loud), 80)):
        samples = np.concatenate(parts) + numbered
        kept, _ = cropped(samples, 40, block=7)
        np.testing.assert_array_equal(kept, samples[start : start + 40, 0])


@pytest.mark.parametrize("offset", [0.0, 0.9])
def test_the_decision_is_numpy_s_next_to_the_tie(offset: float) -> None:
    """The centre is scaled to about half of the whole's deviation; a large mean hides both."""
    generator = np.random.default_rng(5)
    samples = (generator.standard_normal((30_000, 2)) * 0.01).astype(np.float32)
    centres = 0
    for factor in np.linspace(0.42, 0.45, 41):  # the tie is at 0.4264: f² = (2 + f²) / 12
        varied = samples.copy()
        varied[10_000:20_000] *= np.float32(factor)
        varied += np.float32(offset)
        kept, _ = cropped(varied, 10_000, block=4096)
        np.testing.assert_array_equal(kept, published_crop(varied, 10_000)[:, 0])
        centres += bool((kept == varied[10_000:20_000, 0]).all())
    assert 0 < centres < 41


@settings(deadline=None)  # a busy machine is no fault
@given(st.integers(1, 20_000), st.integers(1, 3), st.integers(300, 30_000), st.integers(0, 2**32 - 1))
def test_moments_do_not_depend_on_the_blocks(total: int, channels: int, block: int, seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal((total, channels)).astype(np.float32) + np.float32(0.3)
    for spread in (False, True):
        whole, pieces = crop.Moments(spread=spread), crop.Moments(spread=spread)
        whole.add(samples)
        for piece in in_blocks(samples, block):
            pieces.add(piece)
        assert (pieces.count, pieces.mean) == (whole.count, whole.mean)
        assert whole.mean == pytest.approx(math.fsum(samples.reshape(-1).tolist()) / samples.size, rel=1e-12)
        if spread:
            assert pieces.std == whole.std or samples.size == 1
            expected = samples.std(ddof=1, dtype=np.float64) if samples.size > 1 else math.nan
            assert whole.std == pytest.approx(expected, rel=1e-12, nan_ok=True)
        else:
            assert pieces.energy == whole.energy
            assert whole.energy == pytest.approx(math.fsum((samples.astype(np.float64) ** 2).reshape(-1)), rel=1e-12)


def test_blocks_that_end_too_early_are_an_error() -> None:
    with pytest.raises(ValueError, match="30 samples, at least 35 are needed"):
        crop.crop(lambda: [np.zeros((30, 1), np.float32)], 1.0, 60, 10, 10)
