"""The demo's own small checkpoint: the published architecture and format with random weights.

So the demo takes a real run's path, and nothing need be downloaded. The price: its neighbours show how sounds differ,
not what a model knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from balance.audio.fbank import VIPANT_FRONT_END
from balance.demo.clips import RNG_SEED
from balance.encoders.checkpoint import TowerConfig, write_random_checkpoint

NOTICE = "the demo encoder's weights are random: figures above chance show how sounds differ, not a model"

# The published shape in small; 5 s, the longest demo clip.
_TOWER = TowerConfig(width=128, num_layers=2, dim=64, patch=(32, 32), stride=(16, 24), max_frames=500, num_mel_bins=128)
_FRONT_END = dataclasses.replace(VIPANT_FRONT_END, max_frames=_TOWER.max_frames)


def write_checkpoint(path: Path, *, wrap: Callable[[dict[str, Any]], Any]) -> None:
    """The same bytes for everybody. wrap: makes the pickled configuration, `config.as_omegaconf`."""
    write_random_checkpoint(path, seed=RNG_SEED, config=_TOWER, front_end=_FRONT_END, wrap=wrap)
