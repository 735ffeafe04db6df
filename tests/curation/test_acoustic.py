"""Acoustic copies: the correlation against plain loops, planted copies found through real files, nothing else."""

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from balance.curation import acoustic, fingerprint
from balance.data.config import ColumnsConfig, Format, MediaSource
from balance.records import Index, Labels, Split
from balance.search.config import SearchConfig
from balance.search.top_k import ArrayVectors


def sound(seed, seconds=8.0, rate=16000):
    """Noise bursts of random colour and loudness: no two alike."""
    rng = np.random.default_rng(seed)
    out = 0.003 * rng.standard_normal(int(seconds * rate))
    for _ in range(40):
        start, size = rng.integers(0, len(out) - 4000), rng.integers(1500, 4000)
        tone = np.sin(2 * np.pi * rng.uniform(150, 3500) / rate * np.arange(size))
        out[start : start + size] += tone * np.hanning(size) * rng.uniform(0.05, 0.4)
    return (out / np.abs(out).max() * 0.8).astype(np.float32)


def by_loops(a, b):
    """The definition, in float64, lag by lag."""
    best = 0.0
    for lag in range(-acoustic.MAX_LAG, acoustic.MAX_LAG + 1):
        start, stop = max(0, -lag), min(len(a), len(b) - lag)
        if stop - start < min(acoustic.MIN_OVERLAP, 0.8 * min(len(a), len(b))):
            continue
        x, y = a[start:stop].astype(np.float64), b[start + lag : stop + lag].astype(np.float64)
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        best = max(best, (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
    return best


@pytest.mark.parametrize(("seconds_a", "seconds_b"), [(8, 8), (4, 9), (10, 3.1), (6, 5), (8, 1.5), (0.7, 0.6)])
def test_correlation_against_loops(seconds_a, seconds_b):
    a = acoustic.features(sound(1, seconds_a), 16000)
    b = acoustic.features(sound(2, seconds_b), 16000)
    some = min(100, len(a), len(b))
    b[:some] = a[-some:] * 0.5 + b[:some]
    got = acoustic.correlation(acoustic.Profile.of(a), acoustic.Profile.of(b))
    assert got == pytest.approx(by_loops(a, b), abs=1e-4)
    assert got == pytest.approx(acoustic.correlation(acoustic.Profile.of(b), acoustic.Profile.of(a)), abs=1e-6)


def test_tiny_and_silent_clips_are_no_copies():
    long = acoustic.Profile.of(acoustic.features(sound(1), 16000))
    tiny = acoustic.Profile.of(acoustic.features(sound(1)[: int(0.25 * 16000)], 16000))
    silent = acoustic.Profile.of(acoustic.features(np.zeros(80000, np.float32), 16000))
    constant = acoustic.Profile.of(acoustic.features(np.ones(80000, np.float32), 16000))
    assert [acoustic.correlation(long, x) for x in (tiny, silent, constant)] == [0.0, 0.0, 0.0]
    assert acoustic.correlation(constant, constant) == 0.0


@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.9])
def test_short_clips_are_compared_over_what_there_is(seconds):
    whole = sound(1)
    short = whole[16000 : 16000 + int(seconds * 16000)]
    late = whole[16000 + 640 : 16000 + int(seconds * 16000) + 640]  # 40 ms later: a little is missing at either end
    a, b, c = (acoustic.Profile.of(acoustic.features(x, 16000)) for x in (whole, short, late))
    limit = acoustic.required(0.9, b.num_frames)
    assert acoustic.correlation(a, b) > limit
    assert acoustic.correlation(b, c) > limit
    others = [acoustic.features(sound(seed)[: len(short)], 16000) for seed in range(2, 30)]
    assert max(acoustic.correlation(b, acoustic.Profile.of(x)) for x in others) < limit


def test_less_sound_must_agree_better():
    assert [acoustic.required(0.9, frames) for frames in (500, 150, 75, 20)] == pytest.approx([0.9, 0.9, 0.95, 0.97])
    assert acoustic.required(1.0, 20) == 1.0


def test_a_copy_at_another_rate():
    high = sound(3, rate=44100)
    low = np.interp(np.arange(8 * 16000) / 16000, np.arange(len(high)) / 44100, high).astype(np.float32)
    a, b = acoustic.features(high, 44100), acoustic.features(low, 16000)
    assert acoustic.correlation(acoustic.Profile.of(a), acoustic.Profile.of(b)) > 0.97


@pytest.fixture
def media(tmp_path):
    """30 clips; of clip 0 an mp3, of 1 a quiet one, of 2 one cut 1.5 s later, of 3 one with noise; a broken file."""
    rng = np.random.default_rng(0)
    for i in range(30):
        soundfile.write(tmp_path / f"c{i}.wav", sound(i), 16000)
    soundfile.write(tmp_path / "mp3.mp3", sound(0), 16000, bitrate_mode="CONSTANT", compression_level=0.9)
    soundfile.write(tmp_path / "quiet.flac", 0.05 * sound(1), 16000)
    soundfile.write(tmp_path / "late.wav", sound(2)[24000:], 16000)
    noise = rng.standard_normal(8 * 16000) * np.sqrt((sound(3) ** 2).mean() / 100)
    soundfile.write(tmp_path / "noisy.wav", sound(3) + noise, 16000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    return tmp_path


def split(files, vectors):
    names = pa.array(files)
    index = Index(file="x", ids=names, paths=names, labels=Labels.of([[]] * len(files)))
    return Split(index, np.arange(len(files)), ArrayVectors(vectors), None)


@pytest.fixture
def finder(media):
    return acoustic.AcousticCopies(
        MediaSource(root=media, format=Format.vipant, columns=ColumnsConfig()),
        threshold=0.9,
        num_workers=2,
        queue_bytes=1 << 24,
        clip_timeout_s=60,
        search=SearchConfig(),
        device=torch.device("cpu"),
    )


PLANTED = ["mp3.mp3", "quiet.flac", "late.wav", "noisy.wav", "broken.wav"]


def test_planted_copies_are_found_and_no_others(finder):
    vectors = np.random.default_rng(1).standard_normal((35, 8)).astype(np.float32) + 5
    eval = split([f"c{i}.wav" for i in range(10)], vectors[:10])
    base = split([f"c{i}.wav" for i in range(10, 30)] + PLANTED, vectors[10:])
    rows = np.delete(np.arange(25), 21)  # the quiet copy is not asked about
    query, found, value = finder.between(eval, base, rows)
    assert sorted(zip(found.tolist(), query.tolist(), strict=True)) == [(20, 0), (22, 2), (23, 3)]
    assert (value >= 0.9).all()


def test_short_copies_are_found_and_what_cannot_be_compared_is_counted(finder, media, caplog):
    for name, samples in (("s1", sound(40, 0.5)), ("s2", 0.3 * sound(40, 0.5)), ("s3", sound(41, 0.5))):
        soundfile.write(media / f"{name}.wav", samples, 16000)
    soundfile.write(media / "tiny.wav", sound(42)[:3000], 16000)
    soundfile.write(media / "silent.wav", np.zeros(16000), 16000)
    vectors = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32) + 5
    eval, base = split(["s1.wav"], vectors[:1]), split(["s2.wav", "s3.wav", "tiny.wav", "silent.wav"], vectors[1:])
    query, found, _ = finder.between(eval, base, np.arange(4))
    assert (query.tolist(), found.tolist()) == ([0], [0])
    assert "2 clips are silent, shorter than 0.3 s or cannot be decoded" in caplog.text
    assert "tiny.wav, silent.wav" in caplog.text


def test_copies_within_a_set(finder):
    vectors = np.random.default_rng(1).standard_normal((35, 8)).astype(np.float32) + 5
    seeds = split([f"c{i}.wav" for i in range(2)], vectors[:2])
    pool = split([f"c{i}.wav" for i in range(2, 30)] + PLANTED, vectors[2:])
    a, b, _ = finder.within(seeds, pool, np.arange(33))
    assert sorted(zip(a.tolist(), b.tolist(), strict=True)) == [(0, 30), (1, 31), (2, 32), (3, 33)]


def test_what_the_embedding_does_not_propose_the_fingerprint_does(finder, monkeypatch):
    monkeypatch.setattr(acoustic, "NUM_PROPOSALS", 1)
    vectors = np.eye(35, dtype=np.float32)
    for copy in range(30, 35):
        vectors[copy] = vectors[5]  # all lie by another clip
    eval = split([f"c{i}.wav" for i in range(10)], vectors[:10])
    base = split([f"c{i}.wav" for i in range(10, 30)] + PLANTED, vectors[10:])
    query, found, _ = finder.between(eval, base, np.arange(25))
    # noise fills the bands that these sparse clips leave empty: that copy (3, 23) is the embedding's to propose
    assert sorted(zip(query.tolist(), found.tolist(), strict=True)) == [(0, 20), (1, 21), (2, 22)]


def test_what_neither_proposes_is_not_compared(finder, monkeypatch):
    monkeypatch.setattr(acoustic, "NUM_PROPOSALS", 1)
    monkeypatch.setattr(fingerprint, "MIN_VOTES", 10_000)
    vectors = np.eye(35, dtype=np.float32)
    vectors[30], vectors[32] = vectors[0], vectors[5]  # the mp3 lies by its original, the late one by another clip
    eval = split([f"c{i}.wav" for i in range(10)], vectors[:10])
    base = split([f"c{i}.wav" for i in range(10, 30)] + PLANTED, vectors[10:])
    query, found, _ = finder.between(eval, base, np.arange(25))
    assert (0, 20) in zip(query.tolist(), found.tolist(), strict=True)
    assert (2, 22) not in zip(query.tolist(), found.tolist(), strict=True)
