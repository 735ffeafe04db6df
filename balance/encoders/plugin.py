"""Your own encoder: `encoder.target=package.module:factory`, called with `encoder.args`.

The factory gives an object with `sample_rate_hz`, `dim`, `max_duration_s` and `embed(waveforms, lengths)`, perhaps
`to(device)` and `fingerprint`. Without a `fingerprint` the store's covers the factory's module (its source), the
arguments with the bytes of files that they name, and all parameters and arrays that the object holds. The price: code
of other modules that changes goes unnoticed; a `fingerprint` of your own says it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from balance.encoders.base import WaveformEncoder
from balance.encoders.checked import CheckedModel, errors_of
from balance.encoders.config import EncoderConfig
from balance.encoders.precision import Precision
from balance.errors import UserError
from balance.runtime import files


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin:
    """A `Source`: the factory and its arguments."""

    target: str
    args: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"the plugin {self.target}"

    def make(self) -> Any:
        """The user's object. UserError where there is no such factory, or it fails."""
        factory = self._factory()
        with errors_of(self.name, "factory"):
            return factory(**self.args)

    def _factory(self) -> Callable[..., Any]:
        module, _, attribute = self.target.partition(":")
        if not module or not attribute:
            raise UserError(
                f"encoder.target={self.target}: it must be package.module:factory, as encoder.target=my_encoders:beats"
            )
        factory: Any = getattr(import_module(module, "encoder.target"), attribute, None)
        if not callable(factory):
            what = "no such name" if factory is None else "not a function or class"
            raise UserError(f"encoder.target={self.target}: {attribute} is {what} in {module}")
        made: Callable[..., Any] = factory
        return made

    def build(self, device: torch.device, precision: Precision) -> CheckedModel:
        """Without a `to` it computes on the CPU."""
        made = self.make()
        dim = _facts(self.name, made)["dim"]
        can_move = hasattr(made, "to")
        if can_move:
            with errors_of(self.name, "to(device)"):
                moved = made.to(device)
            made = made if moved is None else moved
        return CheckedModel(
            made,
            name=self.name,
            dim=dim,
            device=device,
            hears_on=device if can_move else torch.device("cpu"),
            precision=precision,
            autocast=True,
            inside=made,
        )


def import_module(name: str, key: str) -> Any:
    """The user's module. UserError where it is not there, or fails. key: the configuration's, for the message."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{key}={name}: there is no module {error.name}; it must lie in the working directory or be installed"
            ) from error
        raise UserError(f"{key}={name}: it needs {error.name}, which is not installed: pip install it") from error
    except Exception as error:
        with errors_of(f"{key}={name}", "import"):
            raise error


def read_plugin(config: EncoderConfig) -> WaveformEncoder:
    """The description of the configuration's plugin, made once to ask what it is. UserError says what is missing."""
    if config.target is None:
        raise UserError(
            "encoder=plugin needs encoder.target=package.module:factory, as encoder.target=my_encoders:beats"
        )
    source = Plugin(target=config.target, args=dict(config.args or {}))
    made = source.make()
    facts = _facts(source.name, made)
    return WaveformEncoder(
        name=source.name,
        source=source,
        dim=facts["dim"],
        sample_rate_hz=facts["sample_rate_hz"],
        max_duration_s=facts["max_duration_s"],
        pool=config.pool,
        pads=True,
        allow_variant=config.allow_variant,
        weights={"plugin": _fingerprint(source, made), "dim": facts["dim"]},
    )


def _facts(name: str, made: Any) -> dict[str, Any]:
    """Its dim, sample_rate_hz and max_duration_s, checked."""
    absent = [fact for fact in ("sample_rate_hz", "dim", "max_duration_s", "embed") if not hasattr(made, fact)]
    if absent:
        raise UserError(
            f"{name} gave a {type(made).__name__} without {', '.join(absent)}: an encoder has sample_rate_hz, dim, "
            "max_duration_s (null: any length) and embed(waveforms, lengths)"
        )
    dim, rate, duration = made.dim, made.sample_rate_hz, made.max_duration_s
    if not isinstance(dim, (int, np.integer)) or isinstance(dim, bool) or dim < 1:
        raise UserError(f"{name}: dim is {dim!r}, it must be the size of an embedding, a whole number from 1 on")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or rate < 1):
        raise UserError(f"{name}: sample_rate_hz is {rate!r}, it must be a number of Hz, or None for the file's own")
    if rate is not None and rate != int(rate):
        raise UserError(f"{name}: sample_rate_hz is {rate!r}, it must be a whole number of Hz")
    is_number = isinstance(duration, (int, float, np.number)) and not isinstance(duration, bool)
    if duration is not None and not (is_number and 0 < duration < float("inf")):
        raise UserError(f"{name}: max_duration_s is {duration!r}, it must be seconds above 0, or None for any length")
    if not callable(made.embed):
        raise UserError(f"{name}: embed is a {type(made.embed).__name__}, it must be a method")
    return {
        "dim": int(dim),
        "sample_rate_hz": None if rate is None else int(rate),
        "max_duration_s": None if duration is None else float(duration),
    }


def _fingerprint(source: Plugin, made: Any) -> str:
    """What stands for the plugin: its own word, else a digest of all that this program can see of it."""
    own = getattr(made, "fingerprint", None)
    if own is not None:
        with errors_of(source.name, "fingerprint"):
            own = own() if callable(own) else own
            return own.hex() if isinstance(own, bytes) else str(own)
    module = inspect.getmodule(source._factory())
    return digest_of(source.target, module, source.args, made)


def digest_of(name: str, module: Any, args: Any, made: Any) -> str:
    """Hex digest of a name, arguments, the bytes of files that they name, a module's source, an object's arrays."""
    digest = hashlib.sha256(json.dumps([name, args], sort_keys=True, default=str).encode())
    file = None if module is None else inspect.getsourcefile(module)
    for path in [file, *(args.values() if isinstance(args, Mapping) else args)]:
        if isinstance(path, str) and Path(path).is_file():
            digest.update(files.sha256_file(Path(path)).encode())
    for key, values in sorted(_arrays(made), key=lambda item: item[0]):
        digest.update(f"{key} {values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _arrays(value: Any, name: str = "", *, is_top: bool = True) -> Iterator[tuple[str, Any]]:
    """(name, numpy array) of the parameters, buffers, tensors and arrays in an object's attributes, lists and dicts."""
    if isinstance(value, torch.nn.Module):
        for key, tensor in (*value.named_parameters(name), *value.named_buffers(name)):
            yield from _arrays(tensor, key, is_top=False)
    if isinstance(value, torch.Tensor):
        yield name, value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _arrays(item, f"{name}.{i}", is_top=False)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _arrays(item, f"{name}.{key}", is_top=False)
    elif is_top and hasattr(value, "__dict__"):
        for key, item in vars(value).items():
            if not (isinstance(value, torch.nn.Module) and key.startswith("_")):  # named above
                yield from _arrays(item, f"{name}.{key}", is_top=False)
