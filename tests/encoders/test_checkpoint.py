"""Checkpoints: all published forms are read, everything else is refused with words that help, and nothing runs."""

import hashlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from balance.audio.fbank import VIPANT_FRONT_END, FrontEnd
from balance.encoders.checkpoint import TowerConfig, read_checkpoint, tower_shapes, write_random_checkpoint
from balance.encoders.pickled_cfg import Cfg
from balance.encoders.safe_load import SavedFile
from balance.errors import UserError
from tests.paths import VIPANT

NAMES = ["clip_head", "clip_head_omegaconf21", "clip_head_vision_pos", "naive_head"]
SMALL = TowerConfig(width=64, num_layers=1, dim=16, patch=(32, 32), stride=(16, 24), max_frames=200, num_mel_bins=64)
SMALL_FRONT_END = FrontEnd(max_frames=200, num_mel_bins=64, mean=None, std=None, zero_mean=True)


@pytest.mark.parametrize("name", NAMES)
def test_published_forms(name: str) -> None:
    checkpoint = read_checkpoint(VIPANT / f"{name}.pth")
    published = torch.load(VIPANT / f"{name}.pth", weights_only=False)  # OmegaConf itself, as the published code does
    cfg, model = published["cfg"], published["model"]
    audio = model[0] if len(model) == 2 else model[1]
    config = checkpoint.config
    assert checkpoint.front_end == VIPANT_FRONT_END
    assert checkpoint.head == cfg.model.audio.name
    assert (config.width, config.dim) == (cfg.model.audio.width, cfg.model.audio.embed_dim)
    assert (config.max_frames, config.num_mel_bins) == tuple(cfg.model.audio.resolution)
    assert config.grid == (61, 5)
    assert config.num_tokens == 306
    assert len(checkpoint.state) == len(audio)
    # Both sides hold the same tensors: pair them by content, not by the name table under test.
    digests = sorted(x.double().sum().item() for x in audio.values())
    assert digests == sorted(x.double().sum().item() for x in checkpoint.state.values())
    ln_post = "encoder.ln_post.weight" if len(model) == 2 else "post_encoder.ln.weight"
    assert torch.equal(checkpoint.state["ln_post.weight"], audio[ln_post])


def test_sha256_is_of_the_bytes() -> None:
    data = (VIPANT / "naive_head.pth").read_bytes()
    assert read_checkpoint(VIPANT / "naive_head.pth").sha256 == hashlib.sha256(data).hexdigest()


def test_the_released_sizes() -> None:
    config = TowerConfig(
        width=768, num_layers=12, dim=512, patch=(32, 32), stride=(16, 24), max_frames=1000, num_mel_bins=128
    )
    sizes = [int(np.prod([n or 3 for n in shape])) for shape in tower_shapes(config).values()]
    assert config.num_tokens == 306
    assert config.num_heads == 12
    assert 87e6 < sum(sizes) < 90e6


# --- the random checkpoint


def write_small(path: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"seed": 1, "config": SMALL, "front_end": SMALL_FRONT_END, "wrap": OmegaConf.create}
    write_random_checkpoint(path, **(arguments | changes))
    return path


def test_random_checkpoint_is_in_the_published_format(tmp_path: Path) -> None:
    path = write_small(tmp_path / "a.pth")
    checkpoint = read_checkpoint(path)
    assert (checkpoint.config, checkpoint.front_end) == (SMALL, SMALL_FRONT_END)
    published = torch.load(path, weights_only=False)
    assert isinstance(published["cfg"], DictConfig)
    assert list(published["cfg"].model.audio.resolution) == [200, 64]
    assert published["cfg"].running.audio.norms == []
    fixture = torch.load(VIPANT / "clip_head.pth", weights_only=False)["model"]
    assert len(published["model"]) == len(fixture)
    assert set(published["model"][1]) == {k for k in fixture[1] if ".resblocks.1." not in k}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_random_checkpoint_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first = write_small(tmp_path / "a.pth").read_bytes()
    assert write_small(tmp_path / "b.pth").read_bytes() == first
    assert write_small(tmp_path / "b.pth", seed=2).read_bytes() != first


# --- what is refused


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    return message


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], Any], name: str = "clip_head") -> Path:
    """A published fixture, read by torch itself, with something changed."""
    content = torch.load(VIPANT / f"{name}.pth", weights_only=False)
    content = change(content) or content
    path = tmp_path / "changed.pth"
    torch.save(content, path)
    return path


def test_missing(tmp_path: Path) -> None:
    assert "not found" in refused(tmp_path / "none.pth")
    assert "encoder.checkpoint=" in refused(tmp_path / "none.pth")
    assert "cannot read" in refused(tmp_path)


@pytest.mark.parametrize("kept", [100, 4000, 1_000_000, -1])
def test_truncated(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes((VIPANT / "naive_head.pth").read_bytes()[:kept])
    assert "truncated or damaged" in refused(path)


def test_one_wrong_byte_in_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    data = bytearray((VIPANT / "naive_head.pth").read_bytes())
    data[1_000_000] ^= 1
    path.write_bytes(data)
    assert "does not match its checksum" in refused(path)


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file", b"RIFF\0\0\0\0WAVE"])
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert "not a checkpoint" in refused(path)


def test_other_archives_and_contents(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    assert "not a checkpoint" in refused(path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    assert "it holds epoch, state_dict" in refused(path)
    torch.save([1, 2], path)
    assert "it holds list" in refused(path)


class _Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_pickle_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    content = torch.load(VIPANT / "clip_head.pth", weights_only=False)
    torch.save(content | {"extra": _Evil(f"touch {proof}")}, path, _use_new_zipfile_serialization=zipped)
    message = refused(path)
    assert "refused and not loaded" in message
    assert "posix.system" in message or "nt.system" in message
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert proof.exists()


def test_a_bare_evil_pickle(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(_Evil(f"touch {proof}"), protocol=2))
    refused(path)
    assert not proof.exists()


def test_files_of_the_old_torch_format_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    content = torch.load(VIPANT / "naive_head.pth", weights_only=False)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    old, new = read_checkpoint(path), read_checkpoint(VIPANT / "naive_head.pth")
    assert old.config == new.config
    assert all(torch.equal(old.state[name], new.state[name]) for name in new.state)


def test_another_architecture(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        state = content["model"][1]
        state["pre_encoder.conv1.bias"] = torch.zeros(128)
        del state["encoder.resblocks.1.mlp.c_fc.weight"]

    message = refused(changed(tmp_path, rename))
    assert "unexpected keys: pre_encoder.conv1.bias;" in message
    assert "missing keys: encoder.resblocks.1.mlp.c_fc.weight" in message

    def other_head(content: dict[str, Any]) -> None:
        content["cfg"].model.audio.name = "ResNetAudioHead"

    assert "'ResNetAudioHead', known are CLIPAudioHead and NaiveCLIPAudioHead" in refused(changed(tmp_path, other_head))

    def other_names(content: dict[str, Any]) -> Any:
        empty: OrderedDict[str, Any] = OrderedDict()
        return content | {
            "model": (empty, torch.load(VIPANT / "naive_head.pth", weights_only=False)["model"][0], {}, {})
        }

    message = refused(changed(tmp_path, other_names))
    assert "unexpected keys: encoder.class_embedding" in message
    assert "and" in message.split("missing keys: ")[1]  # only some of many are named


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.image.width", 192, "pre_encoder.conv1.weight is 128 x 3 x 32 x 32, should be 192"),
        ("model.image.width", 100, "a multiple of 64"),
        ("model.image.embed_dim", 512, "post_encoder.proj is 128 x 64, should be 128 x 512"),
        ("model.image.encoder.layers", 3, "missing keys: encoder.resblocks.2."),
        ("model.image.encoder.layers", 1, "unexpected keys: encoder.resblocks.1."),
        ("running.audio.max_len", 900, "misc.positional_embedding is 306 x 128, should be 276 x 128"),
        ("running.audio.max_len", 20, "patch 32 x 32 is larger than the input 20 x 128"),
        ("running.audio.max_len", "many", "a positive integer"),
        ("running.audio.num_mel_bins", 64, "misc.positional_embedding"),
        ("running.audio.norms", [1.0], "a mean and a standard deviation"),
        ("running.audio.norms", [1.0, 0.0], "a mean and a standard deviation"),
        ("running.audio.zero_mean_wf", "yes", "true or false"),
        ("running.audio.use_energy", True, "no other front end is built in"),
        ("running.audio.window_type", "povey", "no other front end is built in"),
        ("model.audio.pre_encoder.stride", [16], "two positive integers"),
    ],
)
def test_shapes_and_settings_that_contradict(tmp_path: Path, key: str, value: Any, words: str) -> None:
    path = changed(tmp_path, lambda content: OmegaConf.update(content["cfg"], key, value))
    assert words in refused(path)


def test_wrong_tuples_and_tensors(tmp_path: Path) -> None:
    for model in ((1, 2, 3), {"audio": {}}, ({}, [], {}, {})):
        assert "its model" in refused(changed(tmp_path, lambda content, model=model: content | {"model": model}))

    def poison(content: dict[str, Any]) -> None:
        content["model"][1]["post_encoder.proj"][3, 5] = float("nan")

    assert "post_encoder.proj holds NaN or infinity" in refused(changed(tmp_path, poison))

    def integers(content: dict[str, Any]) -> None:
        content["model"][1]["post_encoder.proj"] = torch.zeros(128, 64, dtype=torch.int64)

    assert "post_encoder.proj is not a floating-point tensor" in refused(changed(tmp_path, integers))


def test_half_precision_files_and_absent_norms_are_read(tmp_path: Path) -> None:
    def halve(content: dict[str, Any]) -> None:
        content["cfg"].running.audio.norms = []
        for name, tensor in content["model"][1].items():
            content["model"][1][name] = tensor.half()

    checkpoint = read_checkpoint(changed(tmp_path, halve))
    assert (checkpoint.front_end.mean, checkpoint.front_end.std) == (None, None)
    assert {x.dtype for x in checkpoint.state.values()} == {torch.float32}


def test_interpolations() -> None:
    root = {
        "a": {"b": "${c.d}", "list": ["${a.b}", 2]},
        "c": {"d": "${e}"},
        "e": 7,
        "loop": "${loop}",
        "lost": "${x.y}",
    }
    cfg = Cfg(Path("x.pth"), root)
    assert cfg.get("a.b") == 7
    assert cfg.get("a.list") == [7, 2]
    assert cfg.get("a.none", optional=True) is None
    for key, words in (("loop", "without end"), ("lost", r"refers to \$\{x.y\}"), ("a.none", "its cfg has no a.none")):
        with pytest.raises(UserError, match=words):
            cfg.get(key)


def test_cfg_values_are_what_omegaconf_says() -> None:
    """Every key of a real cfg, through the stand-ins and through OmegaConf."""
    path = VIPANT / "clip_head_omegaconf21.pth"
    with SavedFile(path) as saved:
        ours = Cfg(path, saved.content["cfg"])
    theirs = torch.load(io.BytesIO(path.read_bytes()), weights_only=False)["cfg"]
    keys = 0

    def walk(node: Any, prefix: str) -> None:
        nonlocal keys
        for name in node:
            key, value = f"{prefix}{name}", node[name]
            if isinstance(value, DictConfig):
                walk(value, f"{key}.")
            elif OmegaConf.is_list(value) and any(OmegaConf.is_config(x) for x in value):
                continue
            elif key != "dist_url":  # text with an interpolation inside, which we do not need
                assert ours.get(key) == (list(value) if OmegaConf.is_list(value) else value), key
                keys += 1

    walk(theirs, "")
    assert keys > 80
