"""Fingerprints: hashes by their definition, votes against plain loops, and what is left of them in copies."""

from collections import Counter

import numpy as np
import pytest

from balance.curation import fingerprint
from balance.curation.acoustic import features
from balance.curation.fingerprint import Fingerprints, hashes


def clip(seed, frames=200, bands=24):
    """A random walk over time and bands, as far from any other as from silence."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((frames, bands)).cumsum(axis=0).astype(np.float32)


def by_loops(log_mel):
    """Frame -> hash."""
    last = len(log_mel) - 1
    smooth = [
        sum(log_mel[min(max(t + d, 0), last)].astype(np.float64) for d in (-1, 0, 1)) for t in range(len(log_mel))
    ]
    bands = [round(x) for x in np.linspace(0, log_mel.shape[1] - 2, fingerprint.NUM_BITS)]
    out = {}
    for t in range(fingerprint.STEP, len(log_mel)):
        change = np.diff(smooth[t]) - np.diff(smooth[t - fingerprint.STEP])
        out[t] = sum(1 << bit for bit, band in enumerate(bands) if change[band] > 0)
    return out


def test_hashes_by_the_definition():
    hash, frame = hashes(clip(0))
    assert dict(zip(frame.tolist(), hash.tolist(), strict=True)) == by_loops(clip(0))
    assert len(hashes(clip(0)[: fingerprint.STEP])[0]) == 0


def votes_by_loops(a, b):
    """The most equal hashes at three lags beside each other, of two clips' frames and hashes."""
    counts = Counter(t - s for s, x in a.items() for t, y in b.items() if x == y)
    return max((counts[lag - 1] + counts[lag] + counts[lag + 1] for lag in counts), default=0)


def test_similar_clips_against_loops(monkeypatch):
    monkeypatch.setattr(fingerprint, "NUM_SIMILAR", 3)
    clips = [clip(i) for i in range(10)]
    mixed = 0.6 * clips[3]
    mixed[50:100] = clips[7][100:150]
    mixed[100:130] = clips[1][:30]
    mixed[130:145] = clips[8][:15]
    of_mixed = by_loops(mixed)
    votes = {i: votes_by_loops(by_loops(clips[i]), of_mixed) for i in range(10)}
    expected = sorted(sorted(votes, key=lambda i: (-votes[i], i))[:3])
    assert expected == [1, 3, 7]
    prints = Fingerprints(11)
    for start in (0, 1, 5, 6):  # blocks of several sizes
        prints.add({i: clips[i] for i in range(10) if start <= i < {0: 1, 1: 5, 5: 6, 6: 10}[start]})
    assert prints.similar(10, mixed) == expected
    assert prints.similar(7, mixed) == [1, 3], "only what comes before"
    assert prints.similar(10, clip(99)) == []
    assert Fingerprints(0).similar(3, mixed) == []


def test_what_is_common_says_nothing(monkeypatch):
    still = np.zeros((200, 24), dtype=np.float32)
    prints = Fingerprints(2)
    prints.add({0: still})
    assert prints.similar(1, still) == [0]
    monkeypatch.setattr(fingerprint, "COMMON", 100)
    assert prints.similar(1, still) == []


def test_many_clips_keep_fewer_frames(monkeypatch):
    monkeypatch.setattr(fingerprint, "MAX_HASHES", 2_000)
    prints = Fingerprints(10)  # 5,000 frames are announced: every third hash is kept
    prints.add({i: clip(i) for i in range(9)})
    kept = sum(len(block.hash) for block in prints._blocks)
    assert 9 * 196 / 4 < kept < 9 * 196 / 2.4
    assert prints.similar(9, clip(4)) == [4]


@pytest.mark.parametrize("kind", ["gain", "noise", "late", "other rate"])
def test_copies_keep_their_fingerprint(kind):
    def sound(seed):
        rng = np.random.default_rng(seed)
        out = 0.003 * rng.standard_normal(4 * 16000)
        for _ in range(30):
            start, size = rng.integers(0, len(out) - 4000), rng.integers(1500, 4000)
            tone = np.sin(2 * np.pi * rng.uniform(150, 3500) / 16000 * np.arange(size))
            out[start : start + size] += tone * np.hanning(size) * rng.uniform(0.05, 0.4)
        return out.astype(np.float32)

    rng = np.random.default_rng(0)
    prints = Fingerprints(20)
    prints.add({i: features(sound(i), 16000) for i in range(20)})
    whole = sound(11)
    copy, rate = {
        "gain": (0.1 * whole, 16000),
        "noise": (whole + 0.01 * whole.std() * rng.standard_normal(len(whole)), 16000),
        "late": (whole[20_000:], 16000),
        "other rate": (np.interp(np.arange(4 * 44100) / 44100, np.arange(4 * 16000) / 16000, whole), 44100),
    }[kind]
    assert 11 in prints.similar(20, features(copy.astype(np.float32), rate))
