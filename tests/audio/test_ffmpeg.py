"""What FFmpeg reads: against the `ffmpeg` program's own output, and files made and damaged by hand."""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from balance.audio import decode
from balance.audio.decoder_process import DecodeSettings, Job
from balance.audio.decoders import Decoded, DecoderPool
from balance.audio.ffmpeg import FFmpegSound
from balance.audio.sound_file import LibsndfileSound, Undecodable, Unopened

RATE = 44_100
STEP = 1 / 32_768
with_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg program here to compare with")


def decoded(data: bytes) -> tuple[np.ndarray, int, str]:
    sound = FFmpegSound(io.BytesIO(data))
    return np.concatenate(list(sound.blocks())), sound.sample_rate, sound.partial


def music(seconds: float, channels: int = 2, rate: int = RATE) -> np.ndarray:
    """Chords that change: (n, channels) float32."""
    t = np.arange(int(seconds * rate)) / rate
    left = 0.3 * np.sin(2 * np.pi * (200 + 50 * np.floor(4 * t)) * t)
    noise = 0.02 * np.random.default_rng(1).standard_normal(len(t))
    return np.stack([left + noise, 0.5 * left][:channels], axis=1).astype(np.float32)


def encoded(
    samples: np.ndarray, format: str, codec: str, rate: int = RATE, sample_format: str = "fltp", **options: str
) -> bytes:
    """A file as PyAV writes it."""
    layout = "stereo" if samples.shape[1] == 2 else "mono"
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        size = stream.codec_context.frame_size or 1024
        for at in range(0, len(samples), size):
            planes = np.ascontiguousarray(samples[at : at + size].T)
            if sample_format.startswith("s16"):
                planes = np.round(planes * 32_768).astype(np.int16)
            if not sample_format.endswith("p"):
                planes = np.ascontiguousarray(planes.T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(planes, format=sample_format, layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.close()
        return file.read()


def ffmpeg(*arguments: str) -> bytes:
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-y", *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ffmpeg") / "source.wav"
    soundfile.write(path, music(2.3), RATE, subtype="FLOAT")
    return path


@with_ffmpeg
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("a.m4a", "-c:a aac"),
        ("a.mp4", "-c:a aac -ac 1"),
        ("fragments.mp4", "-c:a aac -movflags frag_keyframe+empty_moov"),
        ("lossless.m4a", "-c:a alac"),
        ("a.mov", "-c:a pcm_s24le"),
        ("mp3.mp4", "-c:a mp3"),
        ("opus.webm", "-c:a libopus"),
        ("vorbis.webm", "-c:a libvorbis"),
        ("opus.mka", "-c:a libopus"),
        ("flac.mka", "-c:a flac"),
        ("a.aac", "-c:a aac"),
        ("a.wma", "-c:a wmav2"),
        ("a.ac3", "-c:a ac3"),
        ("a.eac3", "-c:a eac3"),
        ("streamed.oga", "-c:a flac"),
        ("speex.ogg", "-c:a libspeex -ar 16000 -ac 1"),
        ("a.flv", "-c:a aac"),
        ("a.avi", "-c:a mp3"),
        ("a.3gp", "-c:a aac"),
        ("a.tta", "-c:a tta"),
        ("a.wv", "-c:a wavpack"),
        ("surround.m4a", "-c:a aac -ac 6"),
    ],
)
def test_samples_are_those_of_the_ffmpeg_program(name: str, arguments: str, source: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    ffmpeg("-i", str(source), *arguments.split(), str(path))
    with pytest.raises(Unopened), path.open("rb") as file:  # else libsndfile's path is tested
        LibsndfileSound(file)
    found, _, partial = decoded(path.read_bytes())
    expected = np.frombuffer(ffmpeg("-i", str(path), "-f", "f32le", "-c:a", "pcm_f32le", "-"), "<f4")
    expected = expected.reshape(-1, found.shape[1])
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= STEP
    assert partial == ""


@with_ffmpeg
def test_the_first_audio_stream_of_a_video(source: Path, tmp_path: Path) -> None:
    path, video = tmp_path / "a.mkv", ("-f", "lavfi", "-i", "testsrc=d=2.3:s=64x64:r=10")
    second = ("-f", "lavfi", "-i", "sine=f=900:d=2.3")
    maps = ("-map", "0:v", "-map", "2:a", "-map", "1:a", "-c:a", "flac")
    ffmpeg(*video, "-i", str(source), *second, *maps, str(path))
    found, _, partial = decoded(path.read_bytes())
    expected = np.frombuffer(ffmpeg("-i", str(path), "-map", "0:a:0", "-f", "f32le", "-"), "<f4")
    assert found.shape == (len(expected), 1)  # the sine; ffmpeg by itself takes the stream of most channels
    assert np.abs(found[:, 0] - expected).max() <= STEP
    assert partial == ""


def test_the_encoders_delay_is_trimmed() -> None:
    samples = music(1.0)
    lossless, rate, _ = decoded(encoded(samples, "mp4", "alac", sample_format="s16p"))
    assert (lossless.shape, rate) == (samples.shape, RATE)
    assert np.abs(lossless - samples).max() <= STEP
    aac, _, _ = decoded(encoded(samples, "mp4", "aac"))
    assert 0 <= len(aac) - len(samples) < 1024
    click = np.zeros_like(samples)
    click[20_000:20_040] = 0.8
    aac, _, _ = decoded(encoded(click, "mp4", "aac"))
    lag = np.argmax(np.correlate(aac[18_000:22_040, 0], click[20_000:20_040, 0]))
    assert abs(lag - 2000) <= 1


def test_facts_are_of_these_samples_wherever_the_bytes_lie(tmp_path: Path) -> None:
    data = encoded(music(3.0), "webm", "libopus", rate=48_000)
    (tmp_path / "named.mp3").write_bytes(data)
    by_path = decode.load(tmp_path / "named.mp3", max_frames=100, zero_mean=True)
    by_bytes = decode.load(io.BytesIO(data), max_frames=100, zero_mean=True)
    samples, rate, _ = decoded(data)
    assert (by_path.sample_rate, by_path.num_samples) == (rate, len(samples))
    assert by_path.rms_db == pytest.approx(10 * np.log10(np.mean(samples.astype(np.float64) ** 2)), abs=1e-6)
    assert by_path.pcm_sha1 == by_bytes.pcm_sha1
    np.testing.assert_array_equal(by_path.samples, by_bytes.samples)


def test_decoders_find_it_in_files_tars_and_parquet(tmp_path: Path) -> None:
    clips = {"sound.m4a": encoded(music(1.0), "mp4", "aac"), "page.mp3": b"<!DOCTYPE html><html>", "none.mp3": b""}
    clips["data.mp3"] = b'{"error": "gone"}'
    for name, data in clips.items():
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        places = {}
        for name, data in clips.items():
            (info := tarfile.TarInfo(name)).size = len(data)
            places[name] = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(info, io.BytesIO(data))
    pq.write_table(pa.table({"audio": list(clips.values())}), tmp_path / "a.parquet")
    jobs = {
        "folder": [Job(name, name) for name in clips],
        "webdataset": [Job(name, f"a.tar: {name}", places[name], len(data)) for name, data in clips.items()],
        "parquet": [Job(name, f"a.parquet row {row}") for row, name in enumerate(clips)],
    }
    found = {format: list(decode_all(tmp_path, format, some)) for format, some in jobs.items()}
    sha1 = decode.load(tmp_path / "sound.m4a", max_frames=100, zero_mean=False).pcm_sha1
    assert found["folder"] == [
        sha1,
        "an HTML page, not audio: the download failed",
        "an empty file: the download failed",
        "a JSON text, not audio: the download failed",
    ]
    assert found["webdataset"] == found["parquet"] == found["folder"]


def decode_all(folder: Path, format: str, jobs: list[Job]) -> Iterator[bytes | str]:
    columns = {"audio": "audio"}
    settings = DecodeSettings(
        media_root=str(folder),
        format=format,
        columns=columns,
        max_frames=100,
        zero_mean=False,
        slot_bytes=1 << 20,
        num_slots=4,
    )
    with DecoderPool(settings, ((None, job) for job in jobs), num_workers=1, clip_timeout_s=60) as decoders:
        for _, _, result in decoders.results():
            yield result.pcm_sha1 if isinstance(result, Decoded) else result.detail


def test_a_file_cut_off_is_used_and_said() -> None:
    whole = encoded(music(4.0), "mp4", "aac", movflags="faststart")
    samples, _, partial = decoded(whole)
    assert partial == ""
    found, _, partial = decoded(whole[: len(whole) * 2 // 3])
    assert 0.3 * len(samples) < len(found) < 0.9 * len(samples)
    np.testing.assert_array_equal(found, samples[: len(found)])
    assert partial == f"4.000 s announced, {len(found) / RATE:.3f} s decoded"
    webm = encoded(music(4.0, rate=48_000), "webm", "libopus", rate=48_000)
    found, rate, partial = decoded(webm[: len(webm) // 2])
    announced, _, got = partial.removesuffix(" s decoded").partition(" s announced, ")
    assert float(announced) == pytest.approx(4.0, abs=0.03)
    assert float(got) == pytest.approx(len(found) / rate, abs=0.001)


def test_damaged_packets_are_left_out_and_said() -> None:
    data = bytearray(encoded(music(4.0), "adts", "aac"))
    data[len(data) // 2 : len(data) // 2 + 400] = b"\x55" * 400
    found, _, partial = decoded(bytes(data))
    assert 3.5 * RATE < len(found) < 4.1 * RATE
    assert "packets cannot be decoded" in partial
    assert partial.startswith(f"{len(found) / RATE:.3f} s decoded")


def test_a_change_within_the_stream_is_an_error_in_words() -> None:
    joined = encoded(music(1.0), "adts", "aac") + encoded(music(1.0, 1, 22_050), "adts", "aac", rate=22_050)
    with pytest.raises(Undecodable) as caught:
        decode.load(io.BytesIO(joined), max_frames=100, zero_mean=True)
    assert caught.value.reason == "undecodable"
    assert "the sound changes from 44100 Hz with 2 channels to 22050 Hz with 1" in caught.value.detail


def silent_video() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (silent_video(), "an MP4/M4A file: there is no sound in it"),
        (encoded(music(1.0), "mp4", "aac")[:4000], "an MP4/M4A file: FFmpeg cannot read it ("),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "a WebM/Matroska file: FFmpeg cannot read it ("),
        (bytes(range(1, 256)) * 20, "not a known audio format"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\nsecret.aac\n", "a playlist, not audio"),
    ],
    ids=["video", "no index", "webm", "noise", "playlist"],
)
def test_what_holds_no_sound_says_so(data: bytes, words: str) -> None:
    with pytest.raises(Undecodable) as caught:
        decode.load(io.BytesIO(data), max_frames=100, zero_mean=True)
    assert caught.value.detail.startswith(words)


@pytest.mark.parametrize(
    "playlist",
    ["ffconcat version 1.0\nfile {0}\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\n{0}\n#EXT-X-ENDLIST\n"],
)
def test_no_file_opens_another(playlist: str, tmp_path: Path) -> None:
    (tmp_path / "other.aac").write_bytes(encoded(music(1.0), "adts", "aac"))
    with pytest.raises(Undecodable):
        FFmpegSound(io.BytesIO(playlist.format(tmp_path / "other.aac").encode()))


def test_memory_is_bounded_whatever_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of stereo, 21 MB of samples, with the bound set to 2 MiB; the crop decodes again."""
    data = encoded(music(60.0), "mp4", "alac", sample_format="s16p")
    monkeypatch.setattr(decode, "_KEPT_BYTES", 2 << 20)
    tracemalloc.start()
    waveform = decode.load(io.BytesIO(data), max_frames=100, zero_mean=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert waveform.num_samples == 60 * RATE
    assert peak < 8 << 20
    whole, _, _ = decoded(data)
    at = round((len(whole) - decode.kept_samples(RATE, 100)) / 2)
    np.testing.assert_array_equal(waveform.samples, whole[at : at + len(waveform.samples), 0])


def test_nothing_is_written_and_nothing_is_loaded_without_need(tmp_path: Path) -> None:
    data = bytearray(encoded(music(2.0), "mp4", "aac", movflags="faststart"))
    data[len(data) * 2 // 3 :: 7] = bytes(len(range(len(data) * 2 // 3, len(data), 7)))
    (tmp_path / "damaged.m4a").write_bytes(data)
    soundfile.write(tmp_path / "a.wav", music(1.0), RATE)
    code = (
        "import sys; from balance.audio import decode\n"
        "decode.load(sys.argv[1], max_frames=100, zero_mean=True); assert 'av' not in sys.modules\n"
        "decode.load(sys.argv[2], max_frames=100, zero_mean=True); assert 'av' in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.wav"), str(tmp_path / "damaged.m4a")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_libsndfile_reads_stays_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Iterator[None]:
        raise AssertionError("FFmpeg was asked")

    monkeypatch.setattr("balance.audio.ffmpeg.FFmpegSound.__init__", refuse)
    for format, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)):
        file = io.BytesIO()
        soundfile.write(file, music(1.0, rate=48_000), 48_000, format=format, subtype=subtype)
        assert decode.load(file, max_frames=100, zero_mean=True).sample_rate == 48_000
