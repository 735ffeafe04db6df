"""Models of the transformers library: `encoder=transformers`, a folder or a hub name with its own feature extractor.

In: `encoder.model`, `encoder.pooling`, `encoder.layer`. Out: a `base.WaveformEncoder`. What is pooled, and how, is
known per type of model (`docs/encoders.md` has the table; `auto` is its first choice): always an embedding that the
library's own documentation gives, never the output of a classifier; frames of padding never count in a mean. The
feature extractor is called clip by clip: CLAP's, for one, chooses at random among the clips of a batch. Batches are
padded only where the model masks padding out, and hold clips of one length where it does not.
The price: extractors are numpy loops on one core, 13 to 28 ms per clip of 10 s.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from balance.encoders.base import WaveformEncoder
from balance.encoders.checked import CheckedModel, errors_of
from balance.encoders.config import EncoderConfig, Pooling
from balance.encoders.precision import Precision
from balance.errors import UserError
from balance.records import Float32
from balance.runtime import files

_AST, _CLAP, _WHISPER = "audio-spectrogram-transformer", "clap", "whisper"
_WEIGHTS = (".safetensors", ".bin")
_HARMLESS = ("masked_spec_embed",)  # used in training alone
# Attention over more is dear: 3,000 frames of wav2vec 2.0. Models with a window of their own have that.
_LONGEST_S = 60.0
_KALDI_WINDOW, _KALDI_SHIFT = 400, 160  # samples of AST's frames at 16 kHz


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """A `Source`: the folder of a model and what is taken of it."""

    name: str
    folder: str
    kind: str  # the configuration's model_type
    pooling: Pooling
    layer: int
    dim: int
    trust_remote_code: bool

    def build(self, device: torch.device, precision: Precision) -> CheckedModel:
        loaded = _load(self.folder, self.name, self.trust_remote_code)
        model = _Pooled(loaded, self.pooling, self.layer, self.name)
        loaded.model.to(device=device, dtype=precision.dtype)
        return CheckedModel(
            model, name=self.name, dim=self.dim, device=device, hears_on=torch.device("cpu"), precision=precision
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A model in float32 on the CPU, and its feature extractor."""

    model: Any
    extractor: Any
    kind: str

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def max_duration_s(self) -> float:
        rate = self.extractor.sampling_rate
        if self.kind == _AST:
            return float(self.extractor.max_length * _KALDI_SHIFT / rate)
        if self.kind == _CLAP:
            return float(self.extractor.nb_max_samples / rate)
        if self.kind == _WHISPER:
            return float(self.extractor.n_samples / rate)
        return _LONGEST_S

    @property
    def pads(self) -> bool:
        """Whether a batch may hold clips of different lengths. AST, CLAP and Whisper bring every clip to one; wav2vec
        2.0 and its kin mask padding out where their convolutions are normalised frame by frame."""
        return self.kind in (_AST, _CLAP, _WHISPER) or self.masks_padding

    @property
    def masks_padding(self) -> bool:
        knows_frames = hasattr(self.model, "_get_feature_vector_attention_mask")
        is_framewise = getattr(self.config, "feat_extract_norm", None) == "layer"
        return knows_frames and is_framewise and bool(getattr(self.extractor, "return_attention_mask", False))

    @property
    def least_samples(self) -> int:
        """What gives the first frame: shorter clips are filled up with zeros."""
        least = 1
        for kernel, stride in reversed(
            list(zip(getattr(self.config, "conv_kernel", ()), getattr(self.config, "conv_stride", ()), strict=False))
        ):
            least = (least - 1) * int(stride) + int(kernel)
        return max(least, _KALDI_WINDOW)


class _Pooled:
    """Waveforms -> features -> hidden states -> one vector each."""

    def __init__(self, loaded: _Loaded, pooling: Pooling, layer: int, name: str) -> None:
        self._loaded, self._layer, self._name = loaded, layer, name
        self._pooling = _resolve(pooling, layer, loaded.kind, name)

    def embed(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(n, samples) float32 on the CPU -> (n, dim) on the model's device."""
        clips = [self._filled(row[:length]) for row, length in zip(waveforms.numpy(), lengths.tolist(), strict=True)]
        inputs, frames = self._features(clips)
        model = self._loaded.model
        parameter = next(model.parameters())
        moved = {
            key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        with _quiet():
            output = model(**moved, **({} if self._layer == -1 else {"output_hidden_states": True}))
        return self._pool(output, moved, frames)

    def _filled(self, clip: Float32) -> Float32:
        return np.pad(clip, (0, max(0, self._loaded.least_samples - len(clip))))

    def _features(self, clips: list[Float32]) -> tuple[dict[str, Tensor], list[Any]]:
        """(the model's inputs, each clip's own length in the extractor's frames or samples; of models that are not
        known, its share of them)."""
        extractor = self._loaded.extractor
        asks = {"return_attention_mask": True} if self._loaded.kind not in (_AST, _CLAP) else {}
        with _quiet():
            each = [
                extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="pt", **asks) for clip in clips
            ]
        masks = [one.pop("attention_mask")[0] for one in each] if "attention_mask" in each[0] else None
        main = next(iter(each[0]))
        own: list[Any] = [Fraction(int(mask.sum()), len(mask)) for mask in masks] if masks else [1] * len(clips)
        if masks and (self._loaded.kind == _WHISPER or self._loaded.masks_padding):
            own = [int(mask.sum()) for mask in masks]
        elif self._loaded.kind == _AST:
            own = [1 + (len(clip) - _KALDI_WINDOW) // _KALDI_SHIFT for clip in clips]
        longest = max(one[main].shape[-1] for one in each)
        inputs = {key: torch.cat([_padded(one[key], longest, key == main) for one in each]) for key in each[0]}
        if self._loaded.masks_padding:
            inputs["attention_mask"] = (torch.arange(longest) < torch.tensor(own)[:, None]).long()
        return inputs, own

    def _pool(self, output: Any, inputs: Mapping[str, Tensor], own: list[Any]) -> Tensor:
        if self._loaded.kind == _CLAP and self._pooling is Pooling.auto:
            embeds: Tensor = output.audio_embeds
            return embeds
        if self._pooling is Pooling.pooler:
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise UserError(f"{self._name} has no pooler: type encoder.pooling=mean or cls")
            found: Tensor = pooled
            return found
        states = self._states(output)
        if self._pooling is Pooling.cls:
            return states[:, 0]
        counts = self._counted(states, inputs, own).to(states.device)
        weights = counts.float() / counts.sum(dim=1, keepdim=True)
        return torch.einsum("nf,nfd->nd", weights, states.float())

    def _states(self, output: Any) -> Tensor:
        """(n, frames, width) of the layer that was asked for."""
        hidden = getattr(output, "hidden_states", None)
        states = getattr(output, "last_hidden_state", None)
        if self._layer != -1:
            if not isinstance(hidden, (tuple, list)) or not -len(hidden) <= self._layer < len(hidden):
                count = len(hidden) if isinstance(hidden, (tuple, list)) else 0
                raise UserError(
                    f"encoder.layer={self._layer}: {self._name} has {count} layers of hidden states, 0 to {count - 1} "
                    "(or -1, the model's own last output)"
                )
            states = hidden[self._layer]
        if states is None:
            states = hidden[-1] if isinstance(hidden, (tuple, list)) else hidden
        if not isinstance(states, Tensor) or states.ndim != 3:
            raise UserError(f"{self._name} gives no hidden states per frame: type encoder.pooling=pooler")
        return states

    def _counted(self, states: Tensor, inputs: Mapping[str, Tensor], own: list[Any]) -> Tensor:
        """(n, frames) bool: the frames of each clip's own sound."""
        num_frames = states.shape[1]
        model, kind = self._loaded.model, self._loaded.kind
        if kind == _AST:
            return _ast_patches(self._loaded.config, num_frames, own)
        if kind == _WHISPER:  # two mel frames a state; the library's own count
            counts = model._get_feat_extract_output_lengths(torch.tensor(own))
        elif "attention_mask" in inputs:
            mask = model._get_feature_vector_attention_mask(num_frames, inputs["attention_mask"])
            return torch.as_tensor(mask, dtype=torch.bool)
        else:  # one length in the batch; an extractor that pads to a fixed length says so by its mask
            counts = torch.tensor([math.ceil(num_frames * share) for share in own])
        is_own: Tensor = torch.arange(num_frames) < counts.clamp(min=1, max=num_frames)[:, None]
        return is_own


def _ast_patches(config: Any, num_tokens: int, own: list[int]) -> Tensor:
    """(n, tokens) bool: AST's patches (bands x time, behind two special tokens) that begin inside the clip."""
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    columns = (config.max_length - config.patch_size) // config.time_stride + 1
    inside = torch.arange(columns) * config.time_stride < torch.tensor(own)[:, None]
    special = torch.zeros((len(own), num_tokens - rows * columns), dtype=torch.bool)
    return torch.cat([special, inside.repeat(1, rows)], dim=1)


def _padded(value: Tensor, longest: int, is_main: bool) -> Tensor:
    return torch.nn.functional.pad(value, (0, longest - value.shape[-1])) if is_main else value


def _resolve(pooling: Pooling, layer: int, kind: str, name: str) -> Pooling:
    """What `auto` means for this type of model (CLAP's stays: its projection). UserError for what it does not have."""
    if layer != -1 and pooling is Pooling.pooler:
        raise UserError(f"encoder.layer={layer}: a pooler belongs to the last layer; type encoder.pooling=mean or cls")
    if kind == _CLAP:
        if layer != -1 or pooling in (Pooling.mean, Pooling.cls):
            raise UserError(
                f"{name} is a CLAP: its frames are merged as it goes, so there is none to choose; leave out "
                "encoder.layer, and type encoder.pooling=auto (the projection) or pooler (before it)"
            )
        return pooling
    if pooling is not Pooling.auto:
        return pooling
    if kind == _AST:
        if layer != -1:
            raise UserError(f"encoder.layer={layer}: {name} is an AST; type encoder.pooling=cls or mean with it")
        return Pooling.pooler
    return Pooling.mean


def read_pretrained(config: EncoderConfig) -> WaveformEncoder:
    """The description of the configuration's model, loaded once and asked for one embedding. Raises UserError."""
    if config.model is None:
        raise UserError(
            "encoder=transformers needs encoder.model: a folder with a model and its feature extractor, or a hub name "
            "as encoder.model=laion/clap-htsat-unfused"
        )
    name = f"encoder.model={config.model}"
    folder = _folder(config.model, config.trust_remote_code)
    loaded = _load(folder, name, config.trust_remote_code)
    rate = int(loaded.extractor.sampling_rate)
    model = _Pooled(loaded, config.pooling, config.layer, name)
    noise = np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32)
    with torch.no_grad(), errors_of(name, "first embedding"):
        dim = model.embed(torch.from_numpy(noise)[None], torch.tensor([len(noise)])).shape[-1]
    hashes = {path.name: files.sha256_file(path) for path in sorted(Path(folder).iterdir()) if _counts(path)}
    weights = {
        "transformers": hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest(),
        "pooling": model._pooling.value,
        "layer": config.layer,
    }
    return WaveformEncoder(
        name=name,
        source=Pretrained(
            name=name,
            folder=folder,
            kind=loaded.kind,
            pooling=config.pooling,
            layer=config.layer,
            dim=dim,
            trust_remote_code=config.trust_remote_code,
        ),
        dim=dim,
        sample_rate_hz=rate,
        max_duration_s=loaded.max_duration_s,
        pool=config.pool,
        pads=loaded.pads,
        allow_variant=config.allow_variant,
        weights=weights,
        inputs={str(Path(folder) / file): sha256 for file, sha256 in hashes.items()},
    )


def _counts(path: Path) -> bool:
    """Whether a file of the folder decides numbers: weights, the two configurations, code."""
    return path.suffix in (*_WEIGHTS, ".py") or path.name in ("config.json", "preprocessor_config.json")


def _folder(model: str, trust_remote_code: bool) -> str:
    """The model's folder: as given, or a hub's snapshot, downloaded once. Other processes need no network."""
    given = Path(model).expanduser()
    if given.is_dir():
        return str(given.absolute())
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"encoder.model={model}: there is no such folder")
    _library()
    from huggingface_hub import snapshot_download

    code = ["*.py"] if trust_remote_code else []
    try:
        folder = snapshot_download(model, allow_patterns=["*.json", "*.safetensors", *code])
        if not any(Path(folder).glob("*.safetensors")):
            folder = snapshot_download(model, allow_patterns=["*.json", "*.bin", *code])
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(
            f"encoder.model={model}: there is no such folder, and the hub does not give it ({type(error).__name__}: "
            f"{words}); download it elsewhere and type its folder"
        ) from error
    return str(folder)


def _load(folder: str, name: str, trust_remote_code: bool) -> _Loaded:
    """Model and extractor of a folder, without network. UserError says what is missing."""
    library = _library()
    given = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    with _quiet():
        kind = _kind(library, folder, name, given)
        try:
            extractor = library.AutoFeatureExtractor.from_pretrained(folder, **given)
        except Exception as error:
            raise UserError(
                f"{name}: it has no feature extractor that transformers can read ({_short(error)}): save it beside the "
                "model (preprocessor_config.json)"
            ) from error
        if not getattr(extractor, "sampling_rate", None):
            raise UserError(f"{name}: its feature extractor is not for audio: it has no sampling_rate")
        source = library.ClapAudioModelWithProjection if kind == _CLAP else library.AutoModel
        try:
            model, info = source.from_pretrained(folder, **given, output_loading_info=True, dtype=torch.float32)
        except Exception as error:
            raise UserError(f"{name}: its weights cannot be loaded: {_short(error)}") from error
    if kind == _WHISPER or getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    absent = [key for key in sorted(info["missing_keys"]) if not key.endswith(_HARMLESS)]
    if kind == _WHISPER:
        absent = [key for key in absent if key.startswith(("encoder.", "model.encoder."))]
    if absent:
        raise UserError(
            f"{name}: its files lack {len(absent)} of the model's weights (as {absent[0]}), which would be random"
        )
    return _Loaded(model.eval().requires_grad_(False), extractor, kind)


def _kind(library: Any, folder: str, name: str, given: Mapping[str, Any]) -> str:
    try:
        kind = str(library.AutoConfig.from_pretrained(folder, **given).model_type)
    except Exception as error:
        words = _short(error)
        if "trust_remote_code" in str(error):
            words = "it brings code of its own; if you trust it, type encoder.trust_remote_code=true"
        raise UserError(f"{name}: its config.json cannot be used: {words}") from error
    return _CLAP if kind == "clap_audio_model" else kind


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("encoder=transformers needs transformers: pip install 'audio-balance[transformers]'") from error
    return transformers


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library's warnings and bars are for people who write models."""
    logging = _library().utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
