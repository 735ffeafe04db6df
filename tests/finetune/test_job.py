"""The command: its files, its inputs against the libraries, going on where it was stopped, and refusals."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from balance import config
from balance.audio.fbank import FrontEnd, LogMel
from balance.data.config import ColumnsConfig, Format, MediaSource
from balance.data.vipant_index import read_index
from balance.errors import UserError
from balance.finetune import inputs
from balance.finetune.config import FinetuneConfig
from balance.finetune.networks import network_of
from tests import worlds
from tests.command import command
from tests.worlds import World

TYPED = (
    "finetune.k=[2,4]", "finetune.steps=3", "finetune.repeats=2", "finetune.batch_size=4",
    "finetune.max_duration_s=0.5", "probe.rivals=[]", "probe.penalties=[0.1,0.01]", "probe.folds=2",
    "probe.network_steps=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("world"), seeds=8, pool=24, evaluation=16)


def media(world: World) -> inputs.Media:
    source = MediaSource(root=world.root, format=Format.vipant, columns=ColumnsConfig())
    return inputs.Media(source, 2, 1 << 26, 60.0)


def make(world: World, folder: Path, progress=lambda done: None) -> inputs.Inputs:
    clips = inputs.Clips.of([read_index(world.index("seeds")), read_index(world.index("eval"))])
    network = network_of(FinetuneConfig(max_duration_s=1.0))
    return inputs.make(clips, network, media(world), 1.0, folder, progress)


def test_inputs_are_the_clips_first_channel_at_16_khz(world, tmp_path):
    made = make(world, tmp_path)
    assert made.values.shape == (24, 98, 64)
    assert made.readable.all()
    for row, record in enumerate(world.records("seeds")):
        samples, rate = soundfile.read(world.media(record), dtype="float32", always_2d=True)
        common = math.gcd(rate, 16_000)
        wave = np.zeros(16_000, dtype=np.float32)
        resampled = scipy.signal.resample_poly(samples[:, 0], 16_000 // common, rate // common)
        wave[: len(resampled)] = resampled
        heard = np.asarray(made.values[row], dtype=np.float32)
        front_end = FrontEnd(max_frames=98, num_mel_bins=64, mean=None, std=None, zero_mean=True)
        expected = LogMel(front_end)(torch.from_numpy(wave - wave.mean())[None], [16_000], 16_000)[0].numpy()
        np.testing.assert_allclose(heard, expected, atol=0.02)


def test_stopped_inputs_go_on_and_damaged_ones_are_made_anew(world, tmp_path, monkeypatch):
    whole = make(world, tmp_path / "whole")
    monkeypatch.setattr(inputs, "CHUNK", 10)

    def stop(done: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(world, tmp_path / "parts", stop)
    assert not list((tmp_path / "parts").glob("*.float16")), "an unfinished file has its final name"
    done: list[int] = []
    again = make(world, tmp_path / "parts", done.append)
    assert done == [24]
    np.testing.assert_array_equal(again.values, whole.values)
    (file,) = (tmp_path / "parts").glob("*.float16")
    file.write_bytes(file.read_bytes()[:-1])
    done.clear()
    np.testing.assert_array_equal(make(world, tmp_path / "parts", done.append).values, whole.values)
    assert done == [10, 20, 24]


def test_a_clip_that_is_gone_is_left_out(world, tmp_path):
    moved = world.media(world.records("seeds")[2])
    moved.rename(tmp_path / "elsewhere")
    try:
        made = make(world, tmp_path / "cache")
    finally:
        (tmp_path / "elsewhere").rename(moved)
    assert np.flatnonzero(~made.readable).tolist() == [2]


def test_media_that_are_not_there_are_an_error(world, tmp_path):
    clips = inputs.Clips.of([read_index(world.index("seeds"))])
    source = MediaSource(root=tmp_path, format=Format.vipant, columns=ColumnsConfig())
    network, elsewhere = network_of(FinetuneConfig(max_duration_s=0.5)), inputs.Media(source, 1, 1 << 26, 60.0)
    with pytest.raises(UserError, match="none of the 8 clips can be decoded: are the media still at"):
        inputs.make(clips, network, elsewhere, 0.5, tmp_path / "none", lambda done: None)


def test_the_command_writes_its_table_and_goes_on(world, tmp_path):
    done = command(tmp_path, *world.overrides(), *TYPED, module="balance.finetune")
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "outputs" / "finetunes").glob("*/*"))
    found = json.loads((folders[0] / "finetune.json").read_text())
    titles = [arm["arm"] for arm in found["arms"]]
    assert titles[:3] == ["seeds", "neighbours k=2", "random k=2"]
    assert all(len(arm["map_by_training"]) == 2 for arm in found["arms"])
    rows = list(csv.DictReader((folders[0] / "finetune.csv").read_text().splitlines()))
    assert [row["arm"] for row in rows] == titles
    assert "Does the probe predict training?" in (folders[0] / "finetune.html").read_text()
    (first, *rest) = sorted((tmp_path / "outputs" / "cache" / "finetune").glob("*.npz"))
    first.unlink()
    times = {path: path.stat().st_mtime_ns for path in rest}
    again = command(tmp_path, *world.overrides(), *TYPED, module="balance.finetune")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in rest} == times
    last = max((tmp_path / "outputs" / "finetunes").glob("*/*"), key=lambda path: path.stat().st_mtime_ns)
    for name in ("finetune.json", "finetune.csv", "finetune.html"):
        assert (last / name).read_bytes() == (folders[0] / name).read_bytes()


def test_a_second_encoder_is_a_key_as_of_the_probe():
    typed = ["probe.encoder=plugin", "probe.encoder.target=my_encoders:beats", "finetune.k=[2]"]
    settings, _ = config.compose("finetune", typed)
    assert settings.probe.encoder.target == "my_encoders:beats"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("finetune.k=[]", "finetune.k=[]: different numbers of neighbours"),
        ("finetune.k=[2,100]", "of finetune.k=[2, 100]: k=100"),
        ("finetune.repeats=1", "finetune.repeats=1: at least 2"),
        ("finetune.from_scratch=true", "needs finetune.model"),
        ("finetune.model=/no/such/model", "cannot be read as an audio classifier"),
    ],
)
def test_mistakes_are_said_in_a_line(world, tmp_path, typed, words):
    done = command(tmp_path, *world.overrides(), typed, module="balance.finetune")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
