"""Stretches of files: the samples of the whole decoded file, cut; and that nothing else is decoded."""

import io

import numpy as np
import pytest
import soundfile

from balance.audio.open_sound import open_sound
from balance.audio.sound_file import Undecodable
from balance.audio.stretch import Stretch
from tests.audio.test_ffmpeg import encoded

RATE = 48_000
SECONDS = 24
SAMPLES = (0.2 * np.random.default_rng(0).standard_normal((SECONDS * RATE, 2))).astype(np.float32)
SAMPLES += (0.3 * np.sin(np.arange(len(SAMPLES)) ** 1.4 / 500))[:, None].astype(np.float32)


def by_soundfile(format: str, subtype: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, RATE, format=format, subtype=subtype, **options)  # type: ignore[arg-type]
    return file.getvalue()


FILES = {
    "wav": lambda: by_soundfile("WAV", "PCM_16"),
    "flac": lambda: by_soundfile("FLAC"),
    "mp3": lambda: by_soundfile("MP3", bitrate_mode="VARIABLE"),
    "mp3 without a count": lambda: without_count(by_soundfile("MP3", bitrate_mode="VARIABLE")),
    "vorbis": lambda: by_soundfile("OGG", "VORBIS"),
    "opus": lambda: by_soundfile("OGG", "OPUS"),
    "m4a": lambda: encoded(SAMPLES, "mp4", "aac", rate=RATE),
    "webm": lambda: encoded(SAMPLES, "webm", "libopus", rate=RATE),
    "mka": lambda: encoded(SAMPLES, "matroska", "flac", rate=RATE, sample_format="s16"),
    "aac": lambda: encoded(SAMPLES, "adts", "aac", rate=RATE),
    "ac3": lambda: encoded(SAMPLES, "ac3", "ac3", rate=RATE),
}


def without_count(data: bytes) -> bytes:
    """The second mp3 frame and what follows: the first counts the others."""
    assert b"Xing" in data[:200]
    return data[data.index(data[:2], 200) :]


@pytest.mark.parametrize("name", FILES)
def test_it_has_the_samples_of_the_whole_file_cut(name: str) -> None:
    file = io.BytesIO(FILES[name]())
    whole = open_sound(file)
    expected = np.concatenate(list(whole.blocks()))
    assert len(expected) >= len(SAMPLES) - RATE // 10
    end_s = len(expected) / RATE
    for bos_s, eos_s in ((0, 1), (0.25, 1.5), (7.777, 9.25), (12.3456, 22), (end_s - 1.25, end_s)):
        stretch = Stretch(open_sound(file), bos_s, eos_s)
        for _ in range(2):  # a long clip is decoded twice
            found = np.concatenate(list(stretch.blocks()))
            np.testing.assert_array_equal(found, expected[round(bos_s * RATE) : round(eos_s * RATE)])
        assert stretch.partial == ""


@pytest.mark.parametrize("name", ["flac", "mp3", "m4a", "webm", "aac"])
def test_what_lies_beyond_the_end_is_said(name: str) -> None:
    file = io.BytesIO(FILES[name]())
    end_s = sum(len(block) for block in open_sound(file).blocks()) / RATE
    stretch = Stretch(open_sound(file), 23, 33)
    num_samples = sum(len(block) for block in stretch.blocks())
    assert num_samples == round((end_s - 23) * RATE)
    assert stretch.partial == f"10.000 s announced, {end_s - 23:.3f} s decoded: the file ends at {end_s:.3f} s"
    with pytest.raises(Undecodable) as caught:
        list(Stretch(open_sound(file), 40, 50).blocks())
    assert caught.value.reason == "too_short"
    assert caught.value.detail == "the file ends before 40.000 s, where the stretch begins"


class _Counting(io.BytesIO):
    num_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.num_read += len(data)
        return data

    def readinto(self, buffer: object) -> int:
        got = super().readinto(buffer)  # type: ignore[arg-type]
        self.num_read += got
        return got


@pytest.mark.parametrize("name", ["wav", "flac", "vorbis", "m4a", "webm"])
def test_only_the_stretch_is_read(name: str) -> None:
    file = _Counting(FILES[name]())
    list(Stretch(open_sound(file), 20, 21).blocks())
    assert file.num_read < 0.6 * len(file.getvalue())
