"""The published VIP-ANT checkpoints: read safely, checked against their own cfg; and a small random one written.

In: a `.pth` file, `torch.save` of {"cfg": DictConfig, "model": tuple of state dicts}. Out: a `Checkpoint` with the
audio tower's sizes, its weights under one set of names for both published heads, and the front end's settings; every
name, shape and setting is checked before any work begins. The price: a checkpoint of another architecture is refused,
even where its numbers could be guessed. The random one has the same format, so that the demo is the real path.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from balance.audio.fbank import FrontEnd
from balance.encoders.pickled_cfg import Cfg
from balance.encoders.safe_load import SavedFile, SavedTensor
from balance.encoders.shown import shown
from balance.errors import UserError
from balance.runtime import files
from balance.runtime.wording import listed

HEAD_WIDTH = 64  # the published code's attention heads
_BLOCK_SHAPES: dict[str, tuple[int, ...]] = {  # in multiples of the width
    "ln_1.weight": (1,),
    "ln_1.bias": (1,),
    "attn.in_proj_weight": (3, 1),
    "attn.in_proj_bias": (3,),
    "attn.out_proj.weight": (1, 1),
    "attn.out_proj.bias": (1,),
    "ln_2.weight": (1,),
    "ln_2.bias": (1,),
    "mlp.c_fc.weight": (4, 1),
    "mlp.c_fc.bias": (4,),
    "mlp.c_proj.weight": (1, 4),
    "mlp.c_proj.bias": (1,),
}
# Per published head: how our names of the weights begin -> how the file's names begin.
_PREFIXES = {
    "CLIPAudioHead": {
        "conv1.": "pre_encoder.conv1.",
        "ln_pre.": "pre_encoder.ln.",
        "positional_embedding": "misc.positional_embedding",
        "class_embedding": "misc.class_embedding",
        "blocks.": "encoder.resblocks.",
        "ln_post.": "post_encoder.ln.",
        "proj": "post_encoder.proj",
    },
    "NaiveCLIPAudioHead": {
        "conv1.": "encoder.conv1.",
        "ln_pre.": "encoder.ln_pre.",
        "positional_embedding": "encoder.positional_embedding",
        "class_embedding": "encoder.class_embedding",
        "blocks.": "encoder.transformer.resblocks.",
        "ln_post.": "encoder.ln_post.",
        "proj": "encoder.proj",
    },
}
_STRIDE_KEYS = {"CLIPAudioHead": "model.audio.pre_encoder.stride", "NaiveCLIPAudioHead": "model.audio.stride"}
_LAYERS_KEYS = {"CLIPAudioHead": "model.audio.encoder.layers", "NaiveCLIPAudioHead": "model.audio.layers"}
# Random positions as large as the patches themselves would drown what is heard.
_POSITION_SCALE = 0.1
_VISION_ROWS = (50, 197)  # positions of a 7 x 7 or 14 x 14 grid, shared with the vision tower
# Far above any model's, far below what would fill the memory.
_MAX_FRAMES, _MAX_MEL_BINS, _MAX_TOKENS, _MAX_NORM = 100_000, 4096, 32_768, 1e6
# Settings of cfg.running.audio that change the numbers, and the only value that we compute.
_SUPPORTED = {"frame_shift": 10, "use_energy": False, "window_type": "hanning", "tile_audio": False}


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """Sizes of the audio tower. `patch` and `stride` are (rows = time, columns = mel) of the spectrogram."""

    width: int
    num_layers: int
    dim: int
    patch: tuple[int, int]
    stride: tuple[int, int]
    max_frames: int
    num_mel_bins: int

    @property
    def num_heads(self) -> int:
        return self.width // HEAD_WIDTH

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (time, mel)."""
        rows = (self.max_frames - self.patch[0]) // self.stride[0] + 1
        return rows, (self.num_mel_bins - self.patch[1]) // self.stride[1] + 1

    @property
    def num_tokens(self) -> int:
        return 1 + self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A published checkpoint, complete and consistent.

    head: name of the published class; state: our names → float32 tensors as in the file (three input channels of
    `conv1.weight`, positions of another grid: `encoder` adapts them); sha256: hex digest of the file's bytes.
    """

    path: Path
    head: str
    config: TowerConfig
    front_end: FrontEnd
    state: Mapping[str, Tensor]
    sha256: str

    @property
    def dim(self) -> int:
        return self.config.dim


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint completely and check it.

    Raises UserError: missing, truncated or damaged, not a checkpoint, wants to run code, another architecture,
    shapes that contradict its cfg.
    """
    with SavedFile(path) as saved:
        content = saved.content
        if not isinstance(content, dict) or not {"cfg", "model"} <= set(content):
            held = sorted(shown(key, quoted=False) for key in content) if isinstance(content, dict) else []
            keys = ", ".join(held[:5]) if held else type(content).__name__
            raise UserError(f"{path} is not a VIP-ANT checkpoint: it should hold cfg and model, it holds {keys}")
        cfg = Cfg(path, content["cfg"])
        head = cfg.get("model.audio.name")
        if not isinstance(head, str) or head not in _PREFIXES:
            raise UserError(f"{path}: cfg.model.audio.name is {shown(head)}, known are {' and '.join(_PREFIXES)}")
        config, front_end = _settings(cfg, head)
        tensors, config = _checked_tensors(path, _audio_state(path, content["model"]), head, config)
        if sum(tensor.num_bytes for _, tensor in tensors.values()) > saved.size:
            raise UserError(f"{path} is damaged: its tensors share their bytes and would be larger than the file")
        state = {ours: _read_weights(path, saved, name, tensor) for ours, (name, tensor) in tensors.items()}
        return Checkpoint(path, head, config, front_end, state, saved.sha256())


def _settings(cfg: Cfg, head: str) -> tuple[TowerConfig, FrontEnd]:
    """Sizes and front end that the cfg tells; the patch size is only known from the weights."""
    for name, value in _SUPPORTED.items():
        given = cfg.get(f"running.audio.{name}", optional=True)
        if given is not None and given != value:
            raise cfg.wrong(f"running.audio.{name}", given, f"{value!r}: no other front end is built in")
    zero_mean = cfg.get("running.audio.zero_mean_wf")
    if not isinstance(zero_mean, bool):
        raise cfg.wrong("running.audio.zero_mean_wf", zero_mean, "true or false")
    mean, std = _norms(cfg)
    front_end = FrontEnd(
        max_frames=cfg.integer("running.audio.max_len", at_most=_MAX_FRAMES),
        num_mel_bins=cfg.integer("running.audio.num_mel_bins", at_most=_MAX_MEL_BINS),
        mean=mean,
        std=std,
        zero_mean=zero_mean,
    )
    stride = cfg.get(_STRIDE_KEYS[head])
    stride = [stride, stride] if isinstance(stride, int) else stride
    if not isinstance(stride, list) or len(stride) != 2 or not all(type(x) is int and x > 0 for x in stride):
        raise cfg.wrong(_STRIDE_KEYS[head], stride, "two positive integers, [row, column]")
    config = TowerConfig(
        width=cfg.integer("model.audio.width"),
        num_layers=cfg.integer(_LAYERS_KEYS[head]),
        dim=cfg.integer("model.audio.embed_dim"),
        patch=(0, 0),
        stride=(stride[0], stride[1]),
        max_frames=front_end.max_frames,
        num_mel_bins=front_end.num_mel_bins,
    )
    if config.width % HEAD_WIDTH:
        raise cfg.wrong("model.audio.width", config.width, f"a multiple of {HEAD_WIDTH}")
    return config, front_end


def _norms(cfg: Cfg) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the log-mel values; two None for none."""
    key = "running.audio.norms"
    norms = cfg.get(key, optional=True)
    if norms is None or norms in ([], [None, None]):
        return None, None
    if isinstance(norms, list) and len(norms) == 2 and all(type(x) in (int, float) for x in norms):
        mean, std = norms
        if abs(mean) <= _MAX_NORM and 0 < std <= _MAX_NORM:
            return float(mean), float(std)
    raise cfg.wrong(key, norms, "a mean and a standard deviation above 0, or empty")


def _audio_state(path: Path, model: Any) -> dict[str, Any]:
    if not isinstance(model, (tuple, list)) or len(model) not in (2, 4):
        what = f"{len(model)} parts" if isinstance(model, (tuple, list)) else f"a {type(model).__name__}"
        raise UserError(
            f"{path}: its model should be (audio, loss) or (image, audio, text, loss) state dicts, it is {what}"
        )
    state = model[0 if len(model) == 2 else 1]
    if not isinstance(state, dict):
        raise UserError(f"{path}: the audio part of its model is a {type(state).__name__}, not a state dict")
    return state


def _checked_tensors(
    path: Path, published: Mapping[Any, Any], head: str, config: TowerConfig
) -> tuple[dict[str, tuple[str, SavedTensor]], TowerConfig]:
    """Our names -> the file's names and its tensors, not yet read, and the config with its patch size.

    UserError for names or shapes that don't fit.
    """
    if config.num_layers > len(published):
        raise UserError(
            f"{path} is another architecture than its cfg says ({head}, {config.num_layers} blocks): "
            f"it holds {len(published)} weights"
        )
    names = {ours: _published_name(ours, head) for ours in tower_shapes(config)}
    unexpected = sorted(shown(name, quoted=False) for name in set(published) - set(names.values()))
    missing = [name for name in names.values() if name not in published]
    if unexpected or missing:
        raise UserError(
            f"{path} is another architecture than its cfg says ({head}, {config.num_layers} blocks): "
            f"unexpected keys: {listed(unexpected)}; missing keys: {listed(missing)}"
        )
    tensors = {ours: published[name] for ours, name in names.items()}
    for ours, tensor in tensors.items():
        if not isinstance(tensor, SavedTensor) or not tensor.dtype.is_floating_point:
            raise UserError(f"{path}: {names[ours]} is not a floating-point tensor")
    kernel = tensors["conv1.weight"].shape
    if len(kernel) == 4:
        config = dataclasses.replace(config, patch=(kernel[2], kernel[3]))
    wrong = [
        f"{names[ours]} is {_size(tensors[ours].shape)}, should be {_size(shape)}"
        for ours, shape in tower_shapes(config).items()
        if ours != "positional_embedding" and not _fits(tensors[ours].shape, shape)
    ]
    if wrong:
        raise UserError(f"{path}: shapes contradict its cfg: {listed(wrong)}")
    _check_positions(path, names["positional_embedding"], tensors["positional_embedding"].shape, config)
    return {ours: (names[ours], tensor) for ours, tensor in tensors.items()}, config


def _check_positions(path: Path, name: str, positions: tuple[int, ...], config: TowerConfig) -> None:
    """UserError where the patches do not fit the input, or the positions the patches."""
    size = _size((config.max_frames, config.num_mel_bins))
    if min(config.grid) < 1:
        raise UserError(f"{path}: its patch {_size(config.patch)} is larger than the input {size}")
    if config.num_tokens > _MAX_TOKENS:
        raise UserError(f"{path}: its input {size} has {config.num_tokens:,} patches, at most {_MAX_TOKENS:,} are read")
    if positions not in {(rows, config.width) for rows in (config.num_tokens, *_VISION_ROWS)}:
        raise UserError(
            f"{path}: shapes contradict its cfg: {name} is {_size(positions)}, should be "
            f"{_size((config.num_tokens, config.width))} (1 + {_size(config.grid)} patches) or have 50 or 197 rows"
        )


def _read_weights(path: Path, saved: SavedFile, name: str, tensor: SavedTensor) -> Tensor:
    """Float32. UserError for numbers that are not finite."""
    weights = saved.tensor(tensor).float()
    if not bool(torch.isfinite(weights).all()):
        raise UserError(f"{path}: {name} holds NaN or infinity")
    return weights


def tower_shapes(config: TowerConfig) -> dict[str, tuple[int, ...]]:
    """Our names → shapes of all weights; 0 stands for any size (input channels of conv1, its kernel before known)."""
    width = config.width
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, 0, *config.patch),
        "class_embedding": (width,),
        "positional_embedding": (config.num_tokens if all(config.patch) else 0, width),
        "ln_pre.weight": (width,),
        "ln_pre.bias": (width,),
    }
    for layer in range(config.num_layers):
        for name, multiples in _BLOCK_SHAPES.items():
            shapes[f"blocks.{layer}.{name}"] = tuple(m * width for m in multiples)
    return shapes | {"ln_post.weight": (width,), "ln_post.bias": (width,), "proj": (width, config.dim)}


def _fits(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(given) == len(shape) and all(g == s or (s == 0 and g > 0) for g, s in zip(given, shape, strict=True))


def _published_name(ours: str, head: str) -> str:
    prefix = next(p for p in _PREFIXES[head] if ours.startswith(p))
    return _PREFIXES[head][prefix] + ours.removeprefix(prefix)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def random_cfg(config: TowerConfig, front_end: FrontEnd) -> dict[str, Any]:
    """The part of a published cfg (CLIPAudioHead) that matters here, as a plain dict with its interpolations."""
    assert config.patch[0] == config.patch[1], "the published cfg has one patch size"
    norms = [] if front_end.mean is None else [front_end.mean, front_end.std]
    audio = {
        "name": "CLIPAudioHead",
        "width": config.width,
        "embed_dim": config.dim,
        "resolution": ["${running.max_audio_len}", "${running.num_mel_bins}"],
        "encoder": {"name": "TransformerBackbone", "layers": config.num_layers, "skip_attn_mask": True},
        "pre_encoder": {
            "name": "ViTPreEncoder",
            "patch_size": config.patch[0],
            "stride": list(config.stride),
            "in_channels": 3,
        },
        "post_encoder": {"name": "ViTPostEncoder"},
        "misc": {"name": "CLIPMisc"},
        "pre_encoder_addon": {"name": "AddonEncoder"},
        "post_encoder_addon": {"name": "AddonEncoder"},
    }
    running = {
        "max_audio_len": "${running.audio.max_len}",
        "num_mel_bins": "${running.audio.num_mel_bins}",
        "audio": {
            "max_len": front_end.max_frames,
            "num_mel_bins": front_end.num_mel_bins,
            "norms": norms,
            "zero_mean_wf": front_end.zero_mean,
            "frame_shift": 10,
            "use_energy": False,
            "window_type": "hanning",
            "tile_audio": False,
        },
    }
    return {"running": running, "model": {"audio": audio}}


def write_random_checkpoint(
    path: Path, *, seed: int, config: TowerConfig, front_end: FrontEnd, wrap: Callable[[dict[str, Any]], Any]
) -> None:
    """Write a checkpoint in the published format (CLIPAudioHead, 4-tuple) with seeded random weights.

    wrap: makes the cfg that is pickled out of a plain dict; `OmegaConf.create`, which only entry points import, gives
    what the published code reads. The same arguments give the same bytes; the file appears by rename.
    """
    generator = torch.Generator().manual_seed(seed)
    state = OrderedDict()
    for ours, shape in tower_shapes(config).items():
        shape = tuple(size or 3 for size in shape)
        if ours.startswith("ln_") or ".ln_" in ours:
            tensor = torch.full(shape, float(ours.endswith("weight")))
        elif ours.endswith("bias") or ours.endswith("_bias"):
            tensor = torch.zeros(shape)
        elif ours.endswith("_embedding"):
            tensor = torch.randn(shape, generator=generator) * _POSITION_SCALE
        else:
            fan_in = config.width if ours == "proj" else math.prod(shape[1:])
            tensor = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
        state[_published_name(ours, "CLIPAudioHead")] = tensor
    content = {"cfg": wrap(random_cfg(config, front_end)), "model": ({}, state, {}, {})}
    buffer = io.BytesIO()  # not by name: torch.save writes a file's name into it
    torch.save(content, buffer)
    with files.atomic(path) as file:
        file.write(buffer.getbuffer())
