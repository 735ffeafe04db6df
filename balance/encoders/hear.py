"""Any module with the HEAR interface: `encoder=hear encoder.module=hearbaseline encoder.weights=/models/naive.pt`.

The interface (HEAR 2021, "Common API"): `load_model(path)` gives a model with `sample_rate` and `scene_embedding_size`;
`get_scene_embeddings(audio, model)` takes (n, samples) in [-1, 1] and gives (n, size). It knows no lengths, so a batch
holds clips of one length. HEAR asks models to take clips of up to 20 minutes: that is the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from balance.encoders.base import WaveformEncoder
from balance.encoders.checked import CheckedModel, errors_of
from balance.encoders.config import EncoderConfig
from balance.encoders.plugin import digest_of, import_module
from balance.encoders.precision import Precision
from balance.errors import UserError
from balance.runtime import files

_LONGEST_S = 20 * 60.0
_NEEDED = ("load_model", "get_scene_embeddings")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hear:
    """A `Source`: the module's name and the file of its weights."""

    module: str
    weights: str | None

    @property
    def name(self) -> str:
        return f"the HEAR module {self.module}"

    def make(self) -> tuple[Any, Any]:
        """(the module, its model). Raises UserError."""
        module = import_module(self.module, "encoder.module")
        absent = [name for name in _NEEDED if not callable(getattr(module, name, None))]
        if absent:
            raise UserError(f"encoder.module={self.module} is no HEAR module: it has no {' and no '.join(absent)}")
        with errors_of(self.name, "load_model"):
            model = module.load_model() if self.weights is None else module.load_model(self.weights)
        for fact in ("sample_rate", "scene_embedding_size"):
            value = getattr(model, fact, None)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{self.name}: its model's {fact} is {value!r}, it must be a whole number from 1 on")
        return module, model

    def build(self, device: torch.device, precision: Precision) -> CheckedModel:
        module, model = self.make()
        can_move = hasattr(model, "to")
        if can_move:
            with errors_of(self.name, "to(device)"):
                moved = model.to(device)
            model = model if moved is None else moved
        return CheckedModel(
            _Scenes(module, model),
            name=self.name,
            dim=model.scene_embedding_size,
            device=device,
            hears_on=device if can_move else torch.device("cpu"),
            precision=precision,
            autocast=True,
            inside=model,
        )


class _Scenes:
    """The HEAR calls as a `Model`; its waveforms have one length."""

    def __init__(self, module: Any, model: Any) -> None:
        self._module, self._model = module, model

    def embed(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        embeddings: Tensor = self._module.get_scene_embeddings(waveforms, self._model)
        return embeddings


def read_hear(config: EncoderConfig) -> WaveformEncoder:
    """The description of the configuration's HEAR module, loaded once. Raises UserError."""
    if config.module is None:
        raise UserError("encoder=hear needs encoder.module, the name of a module with the HEAR interface")
    path = None if config.weights is None else Path(config.weights).expanduser().absolute()
    if path is not None and not path.exists():
        raise UserError(f"encoder.weights={config.weights}: there is no such file")
    source = Hear(module=config.module, weights=None if path is None else str(path))
    module, model = source.make()
    given = [] if source.weights is None else [source.weights]
    return WaveformEncoder(
        name=source.name,
        source=source,
        dim=model.scene_embedding_size,
        sample_rate_hz=model.sample_rate,
        max_duration_s=_LONGEST_S,
        pool=config.pool,
        pads=False,
        allow_variant=config.allow_variant,
        weights={"hear": digest_of(config.module, module, given, model)},
        inputs={str(path): files.sha256_file(path)} if path is not None and path.is_file() else {},
    )
