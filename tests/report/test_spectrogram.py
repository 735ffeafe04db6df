"""The page's sound and spectrograms: where a tone lies, one scale per group, what cannot be decoded, the MP3s."""

import base64
import io

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest
import soundfile

from balance.data.config import ColumnsConfig, Format, MediaSource
from balance.records import Index, Labels
from balance.report import spectrogram
from balance.report.sound import EMBEDDED_HZ, Sound, Wave, decode, mp3
from balance.report.spectrogram import HEIGHT, LEVELS, RANGE_DB, WIDTH, draw


def tone(hz, rate, seconds=2.0, gain=0.5):
    return (gain * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def band(hz, highest_hz):
    """Row from the top of the band that holds a frequency."""
    mel = [2595 * np.log10(1 + x / 700) for x in (hz, highest_hz)]
    return HEIGHT - 1 - int(mel[0] / mel[1] * HEIGHT)


@pytest.fixture
def pictures(tmp_path):
    """Of sounds by name, drawn as one group: (HEIGHT, WIDTH) grey levels 0 … 255."""

    def made(**sounds):
        for name, (samples, rate) in sounds.items():
            soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="FLOAT")
        names = [*sounds, "missing"]
        index = Index(
            file="x",
            ids=pa.array(names),
            paths=pa.array([f"{n}.wav" for n in names]),
            labels=Labels.of([()] * len(names)),
        )
        source = MediaSource(root=tmp_path, format=Format.vipant, columns=ColumnsConfig())
        (waves,) = decode([[(index, i) for i in range(len(names))]], Sound(source, 1, 1 << 24, 60.0))
        drawn = draw(waves)
        assert drawn.pop() is None, "no file: no picture"
        images = [base64.b64decode(uri.removeprefix("data:image/png;base64,")) for uri in drawn]
        return [np.round(matplotlib.image.imread(io.BytesIO(x), format="png") * 255).astype(int) for x in images]

    return made


@pytest.mark.parametrize("hz", [300, 1000, 5000])
def test_a_tone_is_dark_in_its_band_alone(pictures, hz):
    (grey,) = pictures(tone=(tone(hz, 22050), 22050))
    assert grey.shape == (HEIGHT, WIDTH)
    rows = grey.mean(axis=1)
    assert abs(int(rows.argmin()) - band(hz, 11025)) <= 1
    assert rows.min() < 60
    far = np.abs(np.arange(HEIGHT) - band(hz, 11025)) > 12
    assert rows[far].min() > 150


def test_a_group_has_one_scale(pictures):
    loud, quiet, short, low = pictures(
        loud=(tone(1000, 32000), 32000),
        quiet=(tone(1000, 32000, gain=0.5 / 100), 32000),
        short=(tone(1000, 32000, seconds=1.0), 32000),
        low=(np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32), 8000),
    )
    middle = slice(WIDTH // 4, WIDTH // 2 - 8)
    steps = (quiet - loud)[band(1000, 16000), middle] / 255 * RANGE_DB
    assert steps == pytest.approx(40.0, abs=RANGE_DB / (LEVELS - 1)), "40 dB below"
    assert (short[:, WIDTH // 2 + 2 :] == 255).all(), "half as long: its right half is empty"
    assert (low[: band(4000, 16000) - 1] == 255).all(), "half of 8 kHz: empty above"
    assert (low[band(4000, 16000) + 2 :, middle] < 255).mean() > 0.9


def test_powers_are_those_of_the_spectrum():
    """Bands share out the power: their widths times their means are the windows' power (Parseval)."""
    rng = np.random.default_rng(0)
    rate, seconds = 16000, 1.0
    samples = rng.normal(0, 0.1, rate).astype(np.float32)
    got = spectrogram.power(samples, rate, seconds, rate / 2)
    size = 512  # the power of two from 0.03 s on
    start = int(40 * seconds * rate / WIDTH)
    window = samples[start : start + size] * np.hanning(size)
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), HEIGHT + 1)
    widths = np.diff(700 * (10 ** (mel / 2595) - 1) * size / rate)
    two_sided = (got[::-1, 40] * widths).sum() * 2
    assert two_sided == pytest.approx((window**2).sum(), rel=0.02)


def test_nothing_to_draw(pictures):
    assert pictures() == []
    (silent,) = pictures(silent=(np.zeros(8000, dtype=np.float32), 8000))
    assert (silent == 255).all()


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_embedded_sound_is_the_clips(rate):
    """Decoded again it is the same melody: correlation at the best lag (MP3 delays)."""
    melody = np.concatenate([tone(hz, rate, 0.25) for hz in (440, 880, 660, 1760, 1320)])
    uri = mp3(Wave(melody * 3, rate))  # louder than full scale: cut, not wrapped
    assert uri.startswith("data:audio/mpeg;base64,")
    data = base64.b64decode(uri.split(",", 1)[1])
    assert len(data) < 30_000
    back, back_rate = soundfile.read(io.BytesIO(data), dtype="float64")
    assert back_rate == EMBEDDED_HZ
    assert back.ndim == 1
    want = np.concatenate([tone(hz, EMBEDDED_HZ, 0.25) for hz in (440, 880, 660, 1760, 1320)])
    lags = np.correlate(back, want, "full") / np.linalg.norm(back) / np.linalg.norm(want)
    assert lags.max() > 0.9
