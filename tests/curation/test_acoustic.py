"""Acoustic copies of a run: planted copies found through real files, nothing else."""

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
from tests.curation.sounds import sound


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
    assert "2 of 5 clips are silent, shorter than 0.3 s or cannot be decoded" in caplog.text
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
    # noise fills the bands that these sparse tones leave empty: that copy (3, 23) is the embedding's to propose
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
