"""The judges: correlation and agreement against plain loops; what they say of copies, loops, takes and short clips."""

import numpy as np
import pytest
import scipy.signal

from balance.curation import judge
from balance.curation.judge import Profile
from balance.curation.log_mel import Pace, at_pace, features
from tests.curation.sounds import sound


def by_loops(a, b):
    """The definition, in float64, lag by lag."""
    best = 0.0
    for lag in range(-len(a), len(b) + 1):
        start, stop = max(0, -lag), min(len(a), len(b) - lag)
        if stop - start < min(judge.MIN_OVERLAP, 0.8 * min(len(a), len(b))):
            continue
        x, y = a[start:stop].astype(np.float64), b[start + lag : stop + lag].astype(np.float64)
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        best = max(best, (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
    return best


@pytest.mark.parametrize(("seconds_a", "seconds_b"), [(8, 8), (4, 9), (10, 3.1), (6, 5), (8, 1.5), (0.7, 0.6)])
def test_correlation_against_loops(seconds_a, seconds_b):
    a = features(sound(1, seconds_a), 16000)
    b = features(sound(2, seconds_b), 16000)
    some = min(100, len(a), len(b))
    b[:some] = a[-some:] * 0.5 + b[:some]
    got = judge.correlation(Profile.of(a), Profile.of(b))
    assert got == pytest.approx(by_loops(a, b), abs=1e-4)
    assert got == pytest.approx(judge.correlation(Profile.of(b), Profile.of(a)), abs=1e-6)


def test_tiny_and_silent_clips_are_no_copies():
    long = Profile.of(features(sound(1), 16000))
    tiny = Profile.of(features(sound(1)[: int(0.25 * 16000)], 16000))
    silent = Profile.of(features(np.zeros(80000, np.float32), 16000))
    constant = Profile.of(features(np.ones(80000, np.float32), 16000))
    assert [judge.correlation(long, x) for x in (tiny, silent, constant)] == [0.0, 0.0, 0.0]
    assert judge.correlation(constant, constant) == 0.0


@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.9])
def test_short_clips_are_compared_over_what_there_is(seconds):
    whole = sound(1)
    short = whole[16000 : 16000 + int(seconds * 16000)]
    late = whole[16000 + 640 : 16000 + int(seconds * 16000) + 640]  # 40 ms later: a little is missing at either end
    a, b, c = (Profile.of(features(x, 16000)) for x in (whole, short, late))
    limit = judge.required(0.9, b.num_frames / judge.MIN_OVERLAP)
    assert judge.correlation(a, b) > limit
    assert judge.correlation(b, c) > limit
    others = [features(sound(seed)[: len(short)], 16000) for seed in range(2, 30)]
    assert max(judge.correlation(b, Profile.of(x)) for x in others) < limit


def test_less_sound_must_agree_better():
    assert judge.required(0.9, np.array([500, 150, 75, 20]) / 150) == pytest.approx([0.9, 0.9, 0.95, 0.97])
    assert judge.required(1.0, 0.1) == 1.0


def test_a_copy_at_another_rate():
    high = sound(3, rate=44100)
    low = np.interp(np.arange(8 * 16000) / 16000, np.arange(len(high)) / 44100, high).astype(np.float32)
    a, b = features(high, 44100), features(low, 16000)
    assert judge.correlation(Profile.of(a), Profile.of(b)) > 0.97


def changes_by_loops(log_mel):
    """(frames, bands − 1): bounded change of the step to the next band over four frames, two to either side."""
    last = len(log_mel) - 1
    wide = log_mel.astype(np.float64)
    smooth = np.array([sum(wide[min(max(t + d, 0), last)] for d in (-1, 0, 1)) / 3 for t in range(len(wide))])
    out = np.zeros((len(wide), wide.shape[1] - 1))
    for t in range(2, len(wide) - 2):
        for band in range(wide.shape[1] - 1):
            x = (smooth[t + 2, band + 1] - smooth[t + 2, band]) - (smooth[t - 2, band + 1] - smooth[t - 2, band])
            out[t, band] = x / np.sqrt(x**2 + judge.BOUND**2)
    return out


def test_agreement_against_loops():
    a, b = features(sound(1, 4), 16000), features(sound(1, 4)[8000:] + 0.1 * sound(2, 3.5), 16000)
    heard = judge.judge(Profile.of(a), Profile.of(b), 1.0)
    x, y = changes_by_loops(a), changes_by_loops(b)
    best = (-1.0, 0)
    for lag in range(-len(a) + 150, len(b) - 150 + 1):
        start, stop = judge.overlap(len(a), len(b), lag)
        one, other = x[start:stop], y[start + lag : stop + lag]
        weight = np.abs(one * other).sum()
        best = max(best, ((one * other).sum() / weight * min(1.0, np.sqrt(weight / judge.FEW)), lag))
    assert (heard.agreement, heard.lag) == (pytest.approx(best[0], abs=1e-4), best[1])


def noisy(samples, db):
    noise = np.random.default_rng(9).standard_normal(len(samples))
    return (samples + noise * np.sqrt((samples**2).mean() * 10 ** (-db / 10))).astype(np.float32)


def reverberant(samples, rate=16000):
    tail = np.random.default_rng(8).standard_normal(rate // 2) * 10 ** (-3 * np.arange(rate // 2) / (rate // 2))
    wet = scipy.signal.fftconvolve(samples, tail / np.sqrt((tail**2).sum()))[: len(samples)]
    return (0.6 * samples + 0.4 * wet).astype(np.float32)


@pytest.mark.parametrize("change", [lambda x: noisy(x, 5), reverberant, lambda x: np.clip(6 * x, -0.8, 0.8)])
def test_the_second_judge_hears_what_the_first_does_not(change):
    a, b = (Profile.of(features(x, 16000)) for x in (sound(5), change(sound(5))))
    heard = judge.judge(a, b, 0.9)
    assert heard.is_copy
    assert heard.correlation < 0.9, "or the first judge would have done"
    others = [judge.judge(a, Profile.of(features(change(sound(i)), 16000)), 0.9) for i in range(6, 30)]
    assert not any(other.is_copy for other in others)


def machine(seed, rate=16000):
    """A hit every 0.4 s for 8 s: of one machine the same hits, with another loudness each and other noise."""
    rng = np.random.default_rng(seed)
    hit = sound(77, 0.3)
    out = 0.05 * rng.standard_normal(8 * rate)
    for start in range(1000, len(out) - len(hit), int(0.4 * rate)):
        out[start : start + len(hit)] += hit * rng.uniform(0.3, 1.0)
    return out.astype(np.float32)


def test_a_machine_is_no_copy_of_itself():
    a, b = (Profile.of(features(machine(seed), 16000)) for seed in (1, 2))
    heard = judge.judge(a, b, 0.99)
    assert heard.agreement > judge.AGREEMENT, "its hits agree"
    assert a.itself > judge.AGREEMENT
    assert not heard.is_copy


def test_sparse_clips_that_correlate_may_be_overruled():
    """One short sound in silence: loudness over time is all that they have in common."""

    def clip(seed):
        out = np.zeros(8 * 16000, np.float32)
        out[32000 : 32000 + 8000] = sound(seed, 0.5)
        return Profile.of(features(out, 16000))

    found = [judge.judge(clip(50), clip(seed), 0.6) for seed in range(51, 75)]
    assert any(heard.correlation >= 0.6 for heard in found)
    assert not any(heard.is_copy for heard in found)
    assert judge.judge(clip(50), clip(50), 0.6).is_copy


@pytest.mark.parametrize("with_pitch", [True, False])
def test_a_clip_brought_back_to_its_pace_is_a_copy(with_pitch):
    pace = Pace(1.04, with_pitch)
    here, there = features(sound(5), 16000), features(at_another_speed(sound(5), pace), 16000)
    a, b = Profile.of(here), Profile.of(there)
    assert not judge.judge(a, b, 0.9).is_copy
    back = at_pace(there, Pace(1 / pace.speed, with_pitch))
    assert abs(len(back) - len(here)) <= 2
    assert judge.judge(a, Profile.of(back), 0.9).correlation > 0.9


def at_another_speed(samples, pace):
    """As a tape runs; without its pitch: pieces of 40 ms, each from where the faster clip is by then, overlapping."""
    if pace.with_pitch:
        return scipy.signal.resample(samples, int(len(samples) / pace.speed)).astype(np.float32)
    size, hop = 640, 320
    out = np.zeros(int(len(samples) / pace.speed) + size, np.float32)
    for start in range(0, len(out) - size, hop):
        piece = samples[int(start * pace.speed) :][:size]
        out[start : start + len(piece)] += piece * np.hanning(size)[: len(piece)]
    return out[:-size]
