"""`encoder=transformers` against direct calls of the library, one clip at a time, and what is said of bad folders."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from balance.embed.window_batches import in_batches
from balance.encoders import conformance
from balance.encoders.base import WaveformEncoder
from balance.encoders.chosen import read_encoder
from balance.encoders.config import EncoderConfig, Kind, Pooling
from balance.encoders.precision import Precision
from balance.errors import UserError
from tests import worlds
from tests.command import command, run_dir
from tests.encoders import tiny_models

pytestmark = [  # the library's own, of models so small
    pytest.mark.filterwarnings("ignore:At least one mel filter"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),
]
KINDS = ("ast", "clap", "clap_fused", "wav2vec2", "wav2vec2_layer", "hubert", "wavlm", "whisper")
LENGTHS = (3000, 9000, 9000, 7001, 450, 10_000)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_models.make(kind, root / kind)
    return root


def config(model: Path, **more: object) -> EncoderConfig:
    return EncoderConfig(kind=Kind.transformers, model=str(model), **more)  # type: ignore[arg-type]


def read(model: Path, **more: object) -> WaveformEncoder:
    found = read_encoder(config(model, **more))
    assert isinstance(found, WaveformEncoder)
    return found


def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(0, 0.1, size).astype(np.float32) for size in LENGTHS]


def embedded(encoder: WaveformEncoder, sounds: list[np.ndarray], precision: Precision) -> np.ndarray:
    """In batches as the embedding stage makes them: sorted by length."""
    model = encoder.source.build(torch.device("cpu"), precision)
    order = sorted(range(len(sounds)), key=lambda i: len(sounds[i]))
    out = np.empty((len(sounds), encoder.dim), dtype=np.float32)
    for batch in in_batches([len(sounds[i]) for i in order], 4, encoder.equal_lengths):
        rows = [order[i] for i in batch]
        out[rows] = model.embed_windows([sounds[i] for i in rows]).numpy()
    return out


def directly(kind: str, folder: Path, clip: np.ndarray) -> np.ndarray:
    """The documented call of each model, of one clip, without anything of this program."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        asks = {"return_attention_mask": True} if kind == "whisper" else {}
        inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt", **asks)
        if kind.startswith("clap"):
            model = transformers.ClapAudioModelWithProjection.from_pretrained(folder).eval()
            return model(**inputs).audio_embeds[0].numpy()
        model = transformers.AutoModel.from_pretrained(folder).eval()
        if kind == "ast":
            return model(**inputs).pooler_output[0].numpy()
        if kind == "whisper":
            states = model.encoder(inputs["input_features"]).last_hidden_state[0]
            num_frames = -(-len(clip) // 160)  # of the clip's own sound, at 10 ms
            return states[: -(-num_frames // 2)].mean(0).numpy()
        return model(inputs["input_values"]).last_hidden_state[0].mean(0).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_auto_is_the_documented_call_of_each_clip_alone(models: Path, kind: str) -> None:
    found = embedded(read(models / kind), clips(), Precision.float32)
    for row, clip in zip(found, clips(), strict=True):
        expected = directly(kind, models / kind, clip)
        assert np.linalg.norm(row - expected) <= 2e-5 * np.linalg.norm(expected), len(clip)


def test_clap_s_embedding_is_that_of_its_model_but_for_the_length(models: Path) -> None:
    """`ClapModel.get_audio_features` gives the same direction, as a unit vector."""
    clip = clips()[1]
    (row,) = embedded(read(models / "clap"), [clip], Precision.float32)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(models / "clap")
    with torch.no_grad():
        given = (
            transformers.ClapModel.from_pretrained(models / "clap")
            .eval()
            .get_audio_features(**extractor(clip, sampling_rate=16_000, return_tensors="pt"))
        )
    np.testing.assert_allclose(row / np.linalg.norm(row), given.pooler_output[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "rate", "duration", "pads"),
    [
        ("ast", 16_000, 0.64, True),
        ("clap", 16_000, 1.0, True),
        ("whisper", 16_000, 2.0, True),
        ("wav2vec2", 16_000, 60.0, False),
        ("wav2vec2_layer", 16_000, 60.0, True),
        ("wavlm", 16_000, 60.0, True),
    ],
)
def test_what_a_model_says_of_itself(models: Path, kind: str, rate: int, duration: float, pads: bool) -> None:
    encoder = read(models / kind)
    assert (encoder.sample_rate_hz, encoder.max_duration_s, encoder.pads) == (rate, duration, pads)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        *((kind, Precision.float32) for kind in KINDS),
        ("ast", Precision.bfloat16),
        ("wav2vec2_layer", Precision.float16),
    ],
)
def test_every_model_conforms(models: Path, kind: str, precision: Precision) -> None:
    encoder = read(models / kind)
    model = encoder.source.build(torch.device("cpu"), precision)
    found = conformance.measure(model, clips(), precision=precision, pads=encoder.pads)
    assert not found.wrong
    assert not found.notes
    exact = embedded(encoder, clips(), Precision.float32)
    half = embedded(encoder, clips(), precision)
    assert (np.linalg.norm(half - exact, axis=1) <= 0.05 * np.linalg.norm(exact, axis=1)).all()


def test_layers_and_poolings(models: Path) -> None:
    """Against the library's hidden states; AST's mean leaves out patches of padding and the two special tokens."""
    clip = clips()[0]
    folder = models / "ast"
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = model(**extractor(clip, sampling_rate=16_000, return_tensors="pt"), output_hidden_states=True)
    for layer, states in ((-1, given.last_hidden_state), (0, given.hidden_states[0]), (1, given.hidden_states[1])):
        found = embedded(read(folder, pooling=Pooling.cls, layer=layer), [clip], Precision.float32)[0]
        np.testing.assert_allclose(found, states[0, 0].numpy(), atol=1e-5)
    frames = 1 + (len(clip) - 400) // 160
    own = [
        2 + band * 5 + t for band in range(2) for t in range(5) if 10 * t < frames
    ]  # (64 - 16) // 10 + 1 = 5 columns
    found = embedded(read(folder, pooling=Pooling.mean), [clip], Precision.float32)[0]
    np.testing.assert_allclose(found, given.last_hidden_state[0, own].mean(0).numpy(), atol=1e-5)
    wav2vec2 = models / "wavlm"
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(wav2vec2).eval()(
            **transformers.AutoFeatureExtractor.from_pretrained(wav2vec2)(
                clip, sampling_rate=16_000, return_tensors="pt"
            ),
            output_hidden_states=True,
        )
    found = embedded(read(wav2vec2, layer=1), [clip], Precision.float32)[0]
    np.testing.assert_allclose(found, hidden.hidden_states[1][0].mean(0).numpy(), atol=1e-5)


def test_the_fingerprint_follows_weights_pooling_and_layer(models: Path, tmp_path: Path) -> None:
    first = read(models / "wavlm").made_by()
    copied = shutil.copytree(models / "wavlm", tmp_path / "elsewhere")
    assert read(copied).made_by() == first  # wherever the folder is
    assert read(copied, layer=1).made_by() != first
    assert read(copied, pooling=Pooling.cls).made_by() != first
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert read(copied).made_by() != first


def test_a_run_with_a_clap(models: Path, tmp_path: Path) -> None:
    world = worlds.make(tmp_path / "data", seeds=3, pool=8, evaluation=1)
    worlds.write_clip(world.media(world.records("pool")[0]), 5, seconds=2.3)  # three windows
    given = [f"dataset.root={world.root}", "k=3", "num_workers=2", "encoder=transformers"]
    done = command(tmp_path, *given, f"encoder.model={models / 'clap'}", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((run_dir(tmp_path) / "manifest.json").read_text())
    assert max(manifest["conformance"]["relative_difference"].values()) <= 1e-4
    assert any(name.endswith("model.safetensors") for name in manifest["inputs"])


def _without(name: str) -> object:
    return lambda folder: (folder / name).unlink()


def _text(name: str, text: str) -> object:
    return lambda folder: (folder / name).write_text(text)


def _without_weights_of_a_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    kept = {key: value for key, value in load_file(folder / "model.safetensors").items() if "layers.1." not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("preprocessor_config.json"), "it has no feature extractor"),
        (_without("config.json"), "config.json cannot be used"),
        (_without("model.safetensors"), "its weights cannot be loaded"),
        (_text("model.safetensors", "half"), "its weights cannot be loaded"),
        (_text("config.json", '{"model_type": "no-such-model"}'), "config.json cannot be used"),
        (_without_weights_of_a_layer, "which would be random"),
    ],
)
def test_a_folder_that_cannot_be_used(models: Path, tmp_path: Path, change: object, words: str) -> None:
    folder = shutil.copytree(models / "wavlm", tmp_path / "model")
    change(folder)  # type: ignore[operator]
    with pytest.raises(UserError, match=words) as caught:
        read(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": None}, "encoder=transformers needs encoder.model"),
        ({"model": "/nowhere/at/all"}, "there is no such folder"),
        ({"pooling": Pooling.pooler}, "has no pooler"),
        ({"layer": 9}, "has 3 layers of hidden states, 0 to 2"),
        ({"pooling": Pooling.pooler, "layer": 1}, "belongs to the last layer"),
    ],
)
def test_keys_that_do_not_fit(models: Path, given: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_encoder(EncoderConfig(kind=Kind.transformers, **{"model": str(models / "wavlm"), **given}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is a CLAP"):
        read(models / "clap", pooling=Pooling.mean)


def test_without_the_library(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'audio-balance\[transformers\]'"):
        read(models / "clap")


def test_code_of_a_model_runs_only_if_it_is_asked_for(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "wavlm", tmp_path / "model")
    told = json.loads((folder / "config.json").read_text())
    told |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd", "AutoModel": "odd.OddModel"}}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match=r"encoder\.trust_remote_code=true"):
        read(folder)
    assert not (tmp_path / "ran").exists()
