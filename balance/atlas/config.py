"""The keys of `python -m balance.atlas`."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from balance.runtime.keys import key


class Projection(enum.Enum):
    """How vectors become points of a plane."""

    auto = "auto"
    umap = "umap"
    pca = "pca"


@dataclass(kw_only=True, slots=True)
class AtlasConfig:
    """What the map shows, and how it is drawn from the vectors."""

    max_clips: int = key(50_000, "clips shown: seeds, then neighbours and dropped clips, then others", common=True)
    projection: Projection = key(
        Projection.auto, "umap (pip install 'audio-balance[atlas]') or pca; auto: umap where it is", common=True
    )
    spectrograms: int = key(
        3_000, "clips whose spectrogram the page holds, in the same order; about 1.5 KB per clip", common=True
    )
    lines: int = key(500_000, "pairs of seed and neighbour that the page holds, best ranks first", common=True)

    def __post_init__(self) -> None:
        for name, least in (("max_clips", 1), ("spectrograms", 0), ("lines", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"atlas.{name}={getattr(self, name)}: at least {least}")
