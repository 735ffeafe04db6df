"""Decoding against soundfile and numpy float64; the crop against a reading of the published rule; every reason."""

import hashlib
import io
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from balance.audio import decode
from balance.audio.sound_file import Undecodable
from tests.paths import VIPANT

CLIPS = VIPANT / "clips"
ENCODABLE = sorted(p for p in CLIPS.iterdir() if p.stem not in ("corrupt", "empty", "too_short_16k"))


def reason(file: object) -> tuple[str, str]:
    with pytest.raises(Undecodable) as caught:
        decode.load(file, max_frames=1000, zero_mean=True)  # type: ignore[arg-type]
    return caught.value.reason, caught.value.detail


def wav(samples: np.ndarray, sample_rate: int = 16000, subtype: str = "FLOAT") -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="WAV", subtype=subtype)
    file.seek(0)
    return file


@pytest.mark.parametrize("path", ENCODABLE, ids=lambda p: p.name)
def test_facts_of_the_whole_clip(path: Path) -> None:
    decoded, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = decode.load(path, max_frames=1000, zero_mean=True)
    assert waveform.sample_rate == sample_rate
    assert waveform.num_samples == len(decoded)
    assert waveform.pcm_sha1 == hashlib.sha1(decoded.astype("<f4").tobytes()).digest()
    mean_square = np.mean(decoded.astype(np.float64) ** 2)
    expected_db = 20 * math.log10(math.sqrt(mean_square)) if mean_square else -math.inf
    assert waveform.rms_db == pytest.approx(expected_db, abs=1e-9)


def test_mean_over_all_channels_of_the_cropped_clip_then_channel_0() -> None:
    generator = np.random.default_rng(7)
    sample_rate, num_kept = 1000, 1050  # max_frames=100: 1.05 s
    samples = generator.standard_normal((3000, 2)) * 0.1 + [0.5, -0.1]
    decoded = samples.astype(np.float32)
    centre = decoded[975 : 975 + num_kept]
    file = wav(decoded, sample_rate)
    with_mean = decode.load(file, max_frames=100, zero_mean=False).samples
    file.seek(0)
    without = decode.load(file, max_frames=100, zero_mean=True).samples
    frames_need = 25 + 99 * 10
    np.testing.assert_array_equal(with_mean, centre[:frames_need, 0])
    np.testing.assert_allclose(without, centre[:frames_need, 0] - centre.mean(dtype=np.float64), atol=1e-7)


def test_a_file_object_gives_what_its_path_gives() -> None:
    for path in ENCODABLE:
        by_path = decode.load(path, max_frames=300, zero_mean=True)
        by_bytes = decode.load(io.BytesIO(path.read_bytes()), max_frames=300, zero_mean=True)
        assert by_path.pcm_sha1 == by_bytes.pcm_sha1
        np.testing.assert_array_equal(by_path.samples, by_bytes.samples)


def test_the_three_unencodable_clips() -> None:
    assert reason(CLIPS / "corrupt.mp3")[0] == "undecodable"
    assert reason(CLIPS / "empty.mp3")[0] == "undecodable"
    assert reason(CLIPS / "too_short_16k.wav") == ("too_short", "320 samples at 16000 Hz, a window has 400")


def test_other_reasons() -> None:
    samples = np.zeros((1000, 2), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        samples[-1, 1] = bad  # also what no frame would reach, also in another channel
        assert reason(wav(samples))[0] == "not_finite"
    assert reason(wav(np.zeros((0, 1), np.float32))) == ("undecodable", "no sample could be decoded")
    assert reason(wav(np.zeros((1000, 1), np.float32), sample_rate=50))[1] == "a sample rate of 50 Hz"


def test_details_hold_no_folder(tmp_path: Path) -> None:
    raw, missing, unknown = tmp_path / "a.raw", tmp_path / "b.mp3", tmp_path / "c.m4a"
    raw.write_bytes(bytes(1000))
    unknown.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(1000))
    for path in (raw, missing, unknown):
        given_reason, detail = reason(path)
        assert given_reason == "undecodable"
        assert detail
        assert str(tmp_path) not in detail


def test_a_window_is_enough_and_one_sample_less_is_not() -> None:
    assert len(decode.load(wav(np.ones((1102, 1), np.float32), 44100), max_frames=10, zero_mean=False).samples) == 1102
    assert reason(wav(np.ones((1101, 1), np.float32), 44100))[0] == "too_short"


def test_what_a_truncated_file_still_gives_is_used() -> None:
    path = CLIPS / "long_stereo_44k.flac"
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    with pytest.raises(soundfile.LibsndfileError):  # soundfile alone gives nothing
        soundfile.read(io.BytesIO(path.read_bytes()[:950_000]))
    cut = decode.load(io.BytesIO(path.read_bytes()[:950_000]), max_frames=1000, zero_mean=False)
    assert 200_000 < cut.num_samples < len(whole)
    assert cut.pcm_sha1 == hashlib.sha1(whole[: cut.num_samples].tobytes()).digest()
    assert reason(io.BytesIO(path.read_bytes()[:500]))[0] == "undecodable"


@pytest.mark.parametrize("name", ["long_stereo_44k.flac", "long_loud_ends_16k.flac", "long_loud_tail_22k.flac"])
def test_a_clip_that_is_not_kept_is_decoded_again_with_the_same_result(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = decode.load(CLIPS / name, max_frames=500, zero_mean=True)
    monkeypatch.setattr(decode, "_KEPT_BYTES", 100_000)
    again = decode.load(CLIPS / name, max_frames=500, zero_mean=True)
    assert (kept.num_samples, kept.pcm_sha1, kept.rms_db) == (again.num_samples, again.pcm_sha1, again.rms_db)
    np.testing.assert_array_equal(kept.samples, again.samples)


def test_memory_is_bounded_whatever_the_length(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """90 s of 8 channels, 138 MB of samples, with the bound set to 4 MiB; a crop of 1 s."""
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 48_000, 8) as file:
        for second in range(90):
            file.write(np.full((48_000, 8), 0.001 * second, np.float32))
    monkeypatch.setattr(decode, "_KEPT_BYTES", 4 << 20)
    tracemalloc.start()
    waveform = decode.load(tmp_path / "a.flac", max_frames=100, zero_mean=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert waveform.num_samples == 90 * 48_000
    assert peak < 24 << 20


def test_details_say_what_a_file_is(tmp_path: Path) -> None:
    page = b"\n<!DOCTYPE html><html><head><title>404</title></head></html>"
    for content, words in (
        (page, "an HTML page, not audio: the download failed"),
        (b"", "an empty file"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(100), "an MP4/M4A file: FFmpeg cannot read it ("),
    ):
        for name in ("a.mp3", "a.wav"):
            (tmp_path / name).write_bytes(content)
            for source in (tmp_path / name, io.BytesIO(content)):
                assert reason(source)[0] == "undecodable"
                assert reason(source)[1].startswith(words)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")  # a plain open would wait for a writer
    (tmp_path / "b.wav").symlink_to("/dev/zero")  # it would be read without end
    (tmp_path / "c.wav").mkdir()
    assert reason(tmp_path / "a.wav") == ("undecodable", "a named pipe, not a file")
    assert reason(tmp_path / "b.wav") == ("undecodable", "a device, not a file")
    assert reason(tmp_path / "c.wav") == ("undecodable", "a folder, not a file")
    assert reason(tmp_path / "d.wav") == ("undecodable", "No such file or directory")
    assert reason(str(tmp_path / "e\0.wav")) == ("undecodable", "Invalid argument")


def test_decoder_processes_need_neither_torch_nor_arrow() -> None:
    code = "import sys, balance.audio.decode; print([m for m in ('torch', 'pyarrow', 'scipy') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
