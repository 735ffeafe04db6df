"""Broken encoders are caught by name before a store gets rows, and sound ones are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from balance.encoders import conformance
from balance.encoders.chosen import read_encoder
from balance.encoders.config import EncoderConfig, Kind
from balance.encoders.precision import Precision
from balance.errors import UserError
from tests import worlds
from tests.command import command, run_dir
from tests.encoders.plugins import numpy_spectrum
from tests.encoders.test_plugin import expected, plugin_run, store


def windows(lengths: tuple[int, ...] = (4000, 9000, 4000, 2500)) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(0, 0.2, size).astype(np.float32) for size in lengths]


def measured(name: str, sounds: list[np.ndarray], precision: Precision = Precision.float32) -> conformance.Conformance:
    encoder = read_encoder(EncoderConfig(kind=Kind.plugin, target=f"tests.encoders.plugins:{name}"))
    model = encoder.source.build(torch.device("cpu"), precision)
    return conformance.measure(model, sounds, precision=precision, pads=encoder.pads)


@pytest.mark.parametrize("lengths", [(4000, 9000, 4000, 2500), (8000,) * 8, (300,)])
def test_a_sound_encoder_conforms(lengths: tuple[int, ...]) -> None:
    found = measured("Spectrum", windows(lengths))
    assert found.wrong == []
    assert found.notes == ()
    assert set(found.differences) == set(conformance.TESTS)


@pytest.mark.parametrize("lengths", [(4000, 9000, 4000, 2500), (8000,) * 8])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("BatchNormInTraining", "batch norm in training mode (BatchNorm1d): call model.eval()"),
        ("HearsOtherClips", "alone against in a batch with longer and shorter clips: "),
        ("HearsPadding", "silence appended in the batch (padding): "),
        ("KeepsState", "the same call twice (state between calls): "),
        ("KnowsItsPlace", "another order in the batch: "),
        ("NanForSilence", "NaN for silence"),
    ],
)
def test_a_broken_encoder_is_caught_by_name(name: str, words: str, lengths: tuple[int, ...]) -> None:
    assert any(found.startswith(words) for found in measured(name, windows(lengths)).wrong)


def test_numbers_that_are_not_finite_are_named_and_not_taken_for_company() -> None:
    """The other clips' differences stay figures, so that the record of them is JSON."""
    found = measured("NanForShort", windows((4000, 9000, 4000, 2500)))
    assert found.wrong == ["NaN or infinity for 2 of 6 clips alone"]
    assert max(found.differences.values()) <= found.tolerance
    assert measured("NanAlways", windows((8000,) * 8)).wrong == ["NaN or infinity for 10 of 10 clips alone"]


def test_the_figure_is_the_relative_difference() -> None:
    """Of the padded reference by numpy: a plugin that takes zeros behind a clip for sound."""
    sounds = windows((2500, 9000))
    found = measured("HearsPadding", sounds)
    batch = [*sounds, sounds[0][: int(0.6 * 2500)], np.resize(sounds[0], 3750)]
    differences = []
    for sound in batch:
        own, heard = numpy_spectrum(sound), numpy_spectrum(np.pad(sound, (0, 9000 - len(sound))))
        differences.append(np.linalg.norm(heard - own) / np.linalg.norm(own))
    assert found.differences["alone"] == pytest.approx(max(differences), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("GradientTurnedOn", "its output carries a gradient"),
        ("WrongDevice", "its output is on the wrong device (meta"),
        ("NoTensor", "embed gave a ndarray"),
        ("OtherDim", "it must be (n, dim)"),
    ],
)
def test_an_answer_that_breaks_the_promise_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        measured(name, windows())
    assert words in str(caught.value)
    assert f"the plugin tests.encoders.plugins:{name}" in str(caught.value)


def test_a_gradient_left_on_is_said_and_does_no_harm() -> None:
    found = measured("GradientLeftOn", windows())
    assert found.wrong == []
    assert found.notes[0].startswith("gradient left on")


def test_half_precision_is_allowed_a_hundredth() -> None:
    assert measured("Spectrum", windows(), Precision.bfloat16).tolerance == 1e-2


def test_a_variant_is_refused_or_embedded_one_length_at_a_time(tmp_path: Path) -> None:
    world = worlds.make(tmp_path / "data", seeds=3, pool=9, evaluation=1)
    for number, record in enumerate(world.records("pool")):
        worlds.write_clip(world.media(record), number, seconds=0.3 + 0.2 * (number % 3))
    done = plugin_run(tmp_path, world, "HearsPadding")
    assert done.returncode == 1
    for words in ("the plugin tests.encoders.plugins:HearsPadding", "alone against", "encoder.allow_variant=true"):
        assert words in done.stderr
    assert not list(tmp_path.rglob("part-*"))
    done = plugin_run(tmp_path, world, "HearsPadding", "encoder.allow_variant=true", "num_processes=2")
    assert done.returncode == 0, done.stderr
    assert "embedding one length at a time" in done.stderr
    found, meta = store(tmp_path)
    for path, embedding in found.items():  # nothing was padded
        reference = expected(world.root / path, rate=8000, duration=None, pool="mean")
        assert np.abs(embedding - reference).max() <= 1e-5 * np.abs(reference).max()
    assert meta["conformance"]["relative_difference"]["alone"] > 1e-2
    manifest = json.loads((run_dir(tmp_path) / "manifest.json").read_text())
    assert manifest["conformance"] == meta["conformance"]


def test_clips_without_a_finite_embedding_fail_where_that_is_allowed(tmp_path: Path) -> None:
    world = worlds.make(tmp_path / "data", seeds=3, pool=9, evaluation=1)
    short = world.records("pool")[4]
    worlds.write_clip(world.media(short), 4, seconds=0.3)
    done = plugin_run(tmp_path, world, "NanForShort", "encoder.allow_variant=true", "max_failures=0.2")
    assert done.returncode == 0, done.stderr
    (failure,) = map(json.loads, (run_dir(tmp_path) / "failures.jsonl").read_text().splitlines())
    assert (failure["id"], failure["reason"]) == (short["id"], "not_finite")


def test_a_hear_module(tmp_path: Path) -> None:
    """Equal to its own call on each clip alone; one length in a batch, since the interface knows no lengths."""
    (tmp_path / "my_hear.py").write_text(
        "import torch\n\n\nclass Model(torch.nn.Module):\n    sample_rate = 8000\n    scene_embedding_size = 5\n\n"
        "    def __init__(self, path):\n        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.load(path))\n\n\n"
        'def load_model(model_file_path=""):\n    return Model(model_file_path)\n\n\n'
        "def get_scene_embeddings(audio, model):\n"
        "    return audio.unfold(1, 100, 50).abs().mean(1) @ model.weight\n"
    )
    weights = torch.randn(100, 5, generator=torch.Generator().manual_seed(1))
    torch.save(weights, tmp_path / "w.pt")
    world = worlds.make(tmp_path / "data", seeds=3, pool=9, evaluation=1)
    worlds.write_clip(world.media(world.records("pool")[2]), 2, seconds=0.45)
    given = [f"dataset.root={world.root}", "k=3", "num_workers=2", "encoder=hear", "encoder.module=my_hear"]
    done = command(tmp_path, *given, f"encoder.weights={tmp_path / 'w.pt'}")
    assert done.returncode == 0, done.stderr
    found, meta = store(tmp_path)
    assert meta["sample_rate_hz"] == 8000
    assert len(found) == 13
    import soundfile
    import soxr

    for path, embedding in found.items():
        samples, rate = soundfile.read(world.root / path, dtype="float32", always_2d=True)
        mono = soxr.resample(samples.mean(axis=1, dtype=np.float64).astype(np.float32), rate, 8000, quality="HQ")
        frames = np.lib.stride_tricks.sliding_window_view(mono, 100)[::50]
        reference = np.abs(frames).mean(0) @ weights.numpy()
        assert np.abs(embedding - reference).max() <= 1e-5 * np.abs(reference).max()
    done = command(tmp_path, *given, "encoder.weights=/nowhere.pt")
    assert (done.returncode, "there is no such file" in done.stderr) == (1, True)
    done = command(tmp_path, *given[:-1], "encoder.module=json")
    assert "encoder.module=json is no HEAR module: it has no load_model" in done.stderr
