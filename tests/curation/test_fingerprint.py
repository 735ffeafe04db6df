"""Fingerprints: hashes by their definition, votes against plain loops, and what is left of them in copies."""

from collections import Counter

import numpy as np
import pytest

from balance.curation import fingerprint
from balance.curation.fingerprint import Fingerprints, hashes, with_weak_bits_turned
from balance.curation.log_mel import Pace, at_pace, features
from tests.curation.sounds import sound


def clip(seed, frames=200, bands=24):
    """A random walk over time and bands, as far from any other as from silence."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((frames, bands)).cumsum(axis=0).astype(np.float32)


def by_loops(log_mel):
    """(half, frame) -> (hash, the change behind each bit)."""
    last = len(log_mel) - 1
    smooth = [
        sum(log_mel[min(max(t + d, 0), last)].astype(np.float64) for d in (-1, 0, 1)) for t in range(len(log_mel))
    ]
    change = {t: np.diff(smooth[t + fingerprint.STEP]) - np.diff(smooth[t]) for t in range(last + 1 - fingerprint.STEP)}
    out = {}
    for t in range(len(change) - fingerprint.LATER):
        for half, bands in enumerate((range(10), range(log_mel.shape[1] - 11, log_mel.shape[1] - 1))):
            bits = [change[when][band] for when in (t, t + fingerprint.LATER) for band in bands]
            out[half, t] = sum(1 << i for i, x in enumerate(bits) if x > 0) + (half << 20), bits
    return out


def in_order(hash, frame):
    return sorted(zip(frame.tolist(), hash.tolist(), strict=True))


def test_hashes_by_the_definition():
    expected = sorted((t, hash) for (_, t), (hash, _) in by_loops(clip(0)).items())
    assert in_order(*hashes(clip(0))) == expected
    assert len(hashes(clip(0)[: fingerprint.STEP + fingerprint.LATER])[0]) == 0


def test_the_two_weakest_bits_are_turned():
    expected = []
    for (_, t), (hash, bits) in by_loops(clip(0)).items():
        one, two = (1 << int(i) for i in np.argsort(np.abs(bits), kind="stable")[:2])
        expected += [(t, hash), (t, hash ^ one), (t, hash ^ two), (t, hash ^ one ^ two)]
    assert in_order(*with_weak_bits_turned(clip(0))) == sorted(expected)


def votes_by_loops(a, b, speed=1.0):
    """The most hashes of b, with weak bits turned, that are hashes of a, at three lags beside each other."""
    counts = Counter(
        round(t * speed) - s
        for s, x in zip(a[1].tolist(), a[0].tolist(), strict=True)
        for t, y in zip(b[1].tolist(), b[0].tolist(), strict=True)
        if x == y
    )
    return max((counts[lag - 1] + counts[lag] + counts[lag + 1] for lag in counts), default=0)


def test_similar_clips_against_loops(monkeypatch):
    monkeypatch.setattr(fingerprint, "NUM_SIMILAR", 3)
    clips = [clip(i) for i in range(10)]
    mixed = 0.6 * clips[3]
    mixed[50:100] = clips[7][100:150]
    mixed[100:130] = clips[1][:30]
    mixed[130:145] = clips[8][:15]
    votes = {i: votes_by_loops(hashes(clips[i]), with_weak_bits_turned(mixed)) for i in range(10)}
    expected = sorted(sorted(votes, key=lambda i: (-votes[i], i))[:3])
    assert expected == [1, 3, 7]
    prints = Fingerprints(11)
    for start in (0, 1, 5, 6):  # blocks of several sizes
        prints.add({i: clips[i] for i in range(10) if start <= i < {0: 1, 1: 5, 5: 6, 6: 10}[start]})
    found = prints.similar(10, mixed)
    assert [one.clip for one in found] == expected
    for one in found:
        by_speed = {
            speed: votes_by_loops(hashes(clips[one.clip]), with_weak_bits_turned(mixed), speed)
            for speed in fingerprint.SPEEDS
        }
        assert one.votes == max(by_speed.values()) == by_speed[one.speed]
    before = sorted(sorted((i for i in range(7) if votes[i] >= 5), key=lambda i: (-votes[i], i))[:3])
    assert [one.clip for one in prints.similar(7, mixed)] == before
    assert prints.similar(10, clip(99)) == []
    assert Fingerprints(0).similar(3, mixed) == []


@pytest.mark.parametrize("pace", [Pace(1.03, True), Pace(0.97, True), Pace(1.045, False), Pace(0.955, False)])
def test_another_speed_is_seen(pace):
    prints = Fingerprints(20)
    prints.add({i: features(sound(i), 16000) for i in range(20)})
    found = {one.clip: one for one in prints.similar(20, at_pace(features(sound(11), 16000), pace))}
    assert found[11].speed == pytest.approx(pace.speed, abs=0.008)
    assert found[11].votes == max(one.votes for one in found.values())


def test_what_is_common_says_nothing(monkeypatch):
    still = np.zeros((200, 24), dtype=np.float32)
    prints = Fingerprints(2)
    prints.add({0: still})
    assert [one.clip for one in prints.similar(1, still)] == [0]
    monkeypatch.setattr(fingerprint, "COMMON", 100)
    assert prints.similar(1, still) == []


def test_many_clips_keep_fewer_frames(monkeypatch):
    monkeypatch.setattr(fingerprint, "MAX_HASHES", 2_000)
    prints = Fingerprints(10)  # 10,000 hashes are announced: every fifth is kept
    prints.add({i: clip(i) for i in range(9)})
    kept, made = sum(len(block.clip) for block in prints._blocks), 9 * len(hashes(clip(0))[0])
    assert made / 7 < kept < made / 4
    assert [one.clip for one in prints.similar(9, clip(4))] == [4]


@pytest.mark.parametrize("kind", ["gain", "noise", "late", "other rate"])
def test_copies_keep_their_fingerprint(kind):
    rng = np.random.default_rng(0)
    prints = Fingerprints(20)
    prints.add({i: features(sound(i, 4.0), 16000) for i in range(20)})
    whole = sound(11, 4.0)
    copy, rate = {
        "gain": (0.1 * whole, 16000),
        "noise": (whole + 0.01 * whole.std() * rng.standard_normal(len(whole)), 16000),
        "late": (whole[20_000:], 16000),
        "other rate": (np.interp(np.arange(4 * 44100) / 44100, np.arange(4 * 16000) / 16000, whole), 44100),
    }[kind]
    assert 11 in [one.clip for one in prints.similar(20, features(copy.astype(np.float32), rate))]
