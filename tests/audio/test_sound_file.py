"""Samples to the end of the data: against soundfile on undamaged files, mp3 frames counted by hand, and ffmpeg."""

import io
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from balance.audio.sound_file import LibsndfileSound, Undecodable
from tests.paths import VIPANT

CLIPS = VIPANT / "clips"
RATE = 16_000


def decoded(data: bytes) -> tuple[np.ndarray, str]:
    sound = LibsndfileSound(io.BytesIO(data))
    blocks = list(sound.blocks())
    return np.concatenate(blocks) if blocks else np.empty((0, sound.channels), np.float32), sound.partial


def read(data: bytes) -> np.ndarray:
    samples, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return samples


def sweep(seconds: float = 2.0, *, channels: int = 1, rate: int = RATE) -> np.ndarray:
    """Quiet, then loud noise: a variable bit rate starts low and makes a poor estimate of the whole."""
    count = int(seconds * rate)
    generator = np.random.default_rng(count)
    loudness = np.where(np.arange(count) < count // 3, 1e-4, 0.3)[:, None]
    return (generator.standard_normal((count, channels)) * loudness).astype(np.float32)


def encoded(samples: np.ndarray, format: str, subtype: str | None = None, rate: int = RATE, **options: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype, **options)  # type: ignore[arg-type]
    return file.getvalue()


def mp3(samples: np.ndarray, rate: int = RATE) -> bytes:
    return encoded(samples, "MP3", rate=rate, bitrate_mode="VARIABLE", compression_level=0.5)


def frames_of(data: bytes) -> list[int]:
    """Where each MPEG-2 layer 3 frame (16, 22.05 and 24 kHz) begins."""
    kbps = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    rates = (22_050, 24_000, 16_000)
    at, found = 0, []
    while at + 4 <= len(data):
        assert data[at] == 0xFF
        assert data[at + 1] & 0xFE == 0xF2
        found.append(at)
        at += 72_000 * kbps[data[at + 2] >> 4] // rates[data[at + 2] >> 2 & 3] + (data[at + 2] >> 1 & 1)
    assert at == len(data)
    return found


def without_count(data: bytes) -> bytes:
    """An mp3 as a pipe gets it: the first frame, which counts the others, left out."""
    start = frames_of(data)[1]
    assert b"Xing" in data[:start] or b"Info" in data[:start]
    return data[start:]


# -- lengths that are estimates or unknown -------------------------------------------------------------------------


def test_an_mp3_without_a_count_is_decoded_to_its_end() -> None:
    data = without_count(mp3(sweep(10)))
    found, partial = decoded(data)
    assert len(found) == 576 * len(frames_of(data))
    assert partial == ""
    cut_short = read(data)  # soundfile alone believes the estimate
    assert len(cut_short) < 0.8 * len(found)
    np.testing.assert_array_equal(found[: len(cut_short)], cut_short)


def test_an_mp3_with_a_count_gives_what_libsndfile_gives() -> None:
    data = mp3(sweep(10))
    found, partial = decoded(data)
    assert (len(found), partial) == (10 * RATE, "")
    np.testing.assert_array_equal(found, read(data))


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_a_cut_off_mp3_without_a_count_gives_every_whole_frame(kept: float) -> None:
    data = without_count(mp3(sweep(10)))
    starts = frames_of(data)
    whole, _ = decoded(data)
    number = int(len(starts) * kept)
    for cut in (starts[number], starts[number] + 5, starts[number + 1] - 1):
        found, partial = decoded(data[:cut])
        assert len(found) == 576 * number
        np.testing.assert_array_equal(found, whole[: len(found)])
        assert partial == "" or partial.startswith(f"{len(found) / RATE:.3f} s decoded")


@pytest.mark.parametrize("tag", ["id3v1", "ape"])
def test_tags_behind_an_mp3_are_no_sound(tag: str) -> None:
    data = without_count(mp3(sweep(4)))
    ape = b"APETAGEX" + struct.pack("<4I", 2000, 32, 0, 1 << 31) + bytes(8)
    behind = {"id3v1": b"TAG" + bytes(125), "ape": ape * 2}[tag]
    np.testing.assert_array_equal(decoded(data + behind)[0], decoded(data)[0])
    assert decoded(data + behind)[1] == ""


def test_a_streamed_flac_is_decoded_to_its_end(tmp_path: Path) -> None:
    data = bytearray(encoded(sweep(), "FLAC"))
    whole = read(bytes(data))
    data[21] &= 0xF0  # STREAMINFO's total samples: the last 4 bits of byte 21 and the next four bytes
    data[22:26] = bytes(4)
    with pytest.raises(ValueError, match="too big"):  # what soundfile alone makes of it
        read(bytes(data))
    found, partial = decoded(bytes(data))
    np.testing.assert_array_equal(found, whole)
    assert partial == ""
    found, partial = decoded(bytes(data[: len(data) * 2 // 3]))
    assert 0.3 * len(whole) < len(found) < len(whole)
    np.testing.assert_array_equal(found, whole[: len(found)])
    assert partial == f"{len(found) / RATE:.3f} s decoded; what follows cannot be decoded"


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


WAV, AU = encoded(sweep(), "WAV", "PCM_16"), encoded(sweep(), "AU", "PCM_16")
CAF, RF64 = encoded(sweep(), "CAF", "PCM_16"), encoded(sweep(), "RF64", "PCM_16")
WAV_SIZE, CAF_SIZE, RF64_SIZE = WAV.index(b"data") + 4, CAF.index(b"data") + 4, RF64.index(b"ds64") + 16


@pytest.mark.parametrize(
    ("whole", "data"),
    [
        (WAV, put(WAV, WAV_SIZE, bytes(4))),
        (WAV, put(put(WAV, 4, bytes(4)), WAV_SIZE, bytes(4))),
        (WAV, put(put(WAV, 4, b"\xff" * 4), WAV_SIZE, b"\xff" * 4)),
        (WAV, put(put(WAV, 4, b"\x24\xf0\xff\x7f"), WAV_SIZE, b"\0\xf0\xff\x7f")),
        (AU, put(AU, 8, bytes(4))),
        (AU, put(AU, 8, b"\xff" * 4)),
        (CAF, put(CAF, CAF_SIZE, b"\xff" * 8)),
        (RF64, put(RF64, RF64_SIZE, bytes(8))),
    ],
    ids=["wav 0", "wav all 0", "wav -1", "wav 2 GiB", "au 0", "au -1", "caf -1", "rf64 0"],
)
def test_a_size_that_a_stream_could_not_know(whole: bytes, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with open(tmp_path / "a", "rb", buffering=0) as file:
        from_disk = np.concatenate(list(LibsndfileSound(file).blocks()))
    np.testing.assert_array_equal(from_disk, read(whole))
    assert decoded(data)[1] == ""
    np.testing.assert_array_equal(decoded(data)[0], read(whole))


def test_a_wav_that_really_holds_no_samples_stays_empty() -> None:
    empty = encoded(np.empty((0, 1), np.float32), "WAV", "PCM_16")
    assert len(decoded(empty)[0]) == 0
    assert len(decoded(empty + b"LIST\x04\0\0\0abcd")[0]) == 0


# -- joined files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda seconds: encoded(sweep(seconds), "OGG", "VORBIS"),
        lambda seconds: encoded(sweep(seconds), "OGG", "OPUS"),
        lambda seconds: encoded(sweep(seconds), "FLAC"),
        lambda seconds: mp3(sweep(seconds)),
    ],
    ids=["vorbis", "opus", "flac", "mp3"],
)
def test_joined_files_are_decoded_one_after_another(make: Callable[[float], bytes]) -> None:
    parts = [make(2.0), make(3.0), make(1.0)]
    expected = np.concatenate([read(part) for part in parts])
    found, partial = decoded(b"".join(parts))
    assert (len(found), partial) == (6 * RATE, "")
    np.testing.assert_array_equal(found, expected)
    assert len(read(b"".join(parts))) == 2 * RATE  # soundfile alone gives the first


@pytest.mark.parametrize("format", ["OGG", "MP3"])
def test_a_joined_file_of_another_kind_is_said(format: str) -> None:
    first, second = encoded(sweep(), format), encoded(sweep(channels=2, rate=24_000), format, rate=24_000)
    found, partial = decoded(first + second)
    np.testing.assert_array_equal(found, read(first))
    assert partial == "2.000 s decoded, then the file goes on at 24000 Hz with 2 channels"


# -- what is missing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda: mp3(sweep(10)), lambda: encoded(sweep(10), "FLAC"), lambda: encoded(sweep(10), "WAV", "PCM_16")],
    ids=["mp3", "flac", "wav"],
)
def test_what_a_cut_off_file_announced_and_gave_is_said(make: Callable[[], bytes]) -> None:
    data = make()
    found, partial = decoded(data[: len(data) * 3 // 5])
    assert 0.3 * 10 * RATE < len(found) < 0.8 * 10 * RATE
    announced, _, got = partial.removesuffix(" s decoded").partition(" s announced, ")
    assert float(announced) == pytest.approx(10, abs=0.001)
    assert float(got) == pytest.approx(len(found) / RATE, abs=0.001)


def test_a_cut_off_ogg_is_said() -> None:
    data = encoded(sweep(10), "OGG", "VORBIS")
    found, partial = decoded(data[: len(data) * 3 // 5])
    assert partial == f"{len(found) / RATE:.3f} s decoded; what follows cannot be decoded"


@pytest.mark.parametrize("path", sorted(CLIPS.iterdir()), ids=lambda path: path.name)
def test_whole_clips_are_not_partial(path: Path) -> None:
    if path.stem in ("corrupt", "empty"):
        with pytest.raises(Undecodable):
            decoded(path.read_bytes())
    elif path.stem == "truncated":
        assert decoded(path.read_bytes())[1] == "10.000 s announced, 0.697 s decoded"
    else:
        assert decoded(path.read_bytes())[1] == ""


# -- ffmpeg's own files --------------------------------------------------------------------------------------------


def ffmpeg(*arguments: str, data: bytes) -> bytes:
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-i", "pipe:0", *arguments, "pipe:1"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here: the same kinds of file are hand-made above")
@pytest.mark.parametrize(
    "arguments",
    ["mp3 -q:a 4", "mp3 -b:a 64k", "flac", "wav", "caf", "au", "ogg -c:a libvorbis"],
    ids=lambda words: words,
)
def test_what_ffmpeg_writes_into_a_pipe(arguments: str) -> None:
    data = ffmpeg("-f", *arguments.split(), data=encoded(sweep(10), "WAV", "PCM_16"))
    expected = np.frombuffer(ffmpeg("-f", "f32le", "-c:a", "pcm_f32le", data=data), np.float32)
    found, partial = decoded(data)
    assert partial == ""
    assert len(found) == len(expected)
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-4)
