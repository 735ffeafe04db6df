"""The whole demo: `sounds` makes its audio and indexes, this module its small checkpoint beside them.

The checkpoint has the published architecture and format, so that the demo takes a real run's path; its weights are
random, so that nothing need be downloaded. The price: its neighbours show how sounds differ, not what a model knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from balance.audio.fbank import VIPANT_FRONT_END
from balance.demo import sounds
from balance.encoders.checkpoint import TowerConfig, write_random_checkpoint

NOTICE = "the demo encoder's weights are random: figures above chance show how sounds differ, not a model"

# The published shape in small; 5 s, the longest demo clip.
_TOWER = TowerConfig(width=128, num_layers=2, dim=64, patch=(32, 32), stride=(16, 24), max_frames=500, num_mel_bins=128)
_FRONT_END = dataclasses.replace(VIPANT_FRONT_END, max_frames=_TOWER.max_frames)


def ensure_demo(root: Path, *, num_processes: int, wrap: Callable[[dict[str, Any]], Any]) -> None:
    """The demo's audio, indexes and checkpoint in `root`, made where they do not exist.

    wrap: makes the pickled configuration, `config.as_omegaconf`. Raises UserError, OSError.
    """
    sounds.ensure(root, num_processes=num_processes)
    path = root / "checkpoint.pth"
    if not path.is_file():
        write_random_checkpoint(path, seed=sounds.SEED, config=_TOWER, front_end=_FRONT_END, wrap=wrap)
