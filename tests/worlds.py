"""Small real data sets for tests: audio files on disk, VIP-ANT indexes beside them, and a checkpoint to embed them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from omegaconf import OmegaConf

from balance.audio.fbank import FrontEnd
from balance.encoders.checkpoint import TowerConfig, write_random_checkpoint

RATES_HZ = (8000, 16000, 22050, 44100)
LABELS = ("/m/a", "/m/b", "/m/c", "/m/d")
SPLITS = {"seeds": "balanced_train_segments", "pool": "unbalanced_train_segments", "eval": "eval_segments"}


@dataclass(frozen=True)
class World:
    root: Path
    checkpoint: Path

    def index(self, split: str) -> Path:
        return self.root / f"src_{SPLITS[split]}.csv"

    def records(self, split: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.index(split).read_text().splitlines()]

    def write(self, split: str, records: list[dict[str, object]]) -> None:
        self.index(split).write_text("".join(json.dumps(r) + "\n" for r in records))

    def media(self, record: dict[str, object]) -> Path:
        suffix = record["aclip"][0]  # type: ignore[index]
        return self.root / str(record["dir"]) / "aclip" / f"{record['id']}.{suffix}"

    def overrides(self) -> list[str]:
        return [f"dataset.root={self.root}", f"encoder.checkpoint={self.checkpoint}", "num_workers=2"]


def write_clip(path: Path, number: int, *, seconds: float = 0.6) -> None:
    """A tone and some noise that depend on `number` alone."""
    rng = np.random.default_rng(number)
    rate = RATES_HZ[number % len(RATES_HZ)]
    t = np.arange(int(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * rng.uniform(100, 3000) * t)[:, None] * 0.4
    samples = tone + 0.05 * rng.standard_normal((len(t), 1 + number % 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.astype(np.float32), rate, subtype="FLOAT" if path.suffix == ".wav" else None)


def write_checkpoint(path: Path, *, seed: int = 0, max_frames: int = 100) -> Path:
    """The published format, very small: width 64, one block, 32-d, a spectrogram of 1 s."""
    write_random_checkpoint(
        path,
        seed=seed,
        config=TowerConfig(
            width=64, num_layers=1, dim=32, patch=(32, 32), stride=(16, 24), max_frames=max_frames, num_mel_bins=128
        ),
        front_end=FrontEnd(max_frames=max_frames, num_mel_bins=128, mean=-4.9, std=5.8, zero_mean=True),
        wrap=OmegaConf.create,
    )
    return path


def make(root: Path, *, seeds: int = 6, pool: int = 40, evaluation: int = 4) -> World:
    """A world of so many clips; a clip's sound follows from its running number."""
    root.mkdir(parents=True, exist_ok=True)
    world = World(root, write_checkpoint(root / "tiny.pth"))
    number = 0
    for split, size in zip(SPLITS, (seeds, pool, evaluation), strict=True):
        records: list[dict[str, object]] = []
        for i in range(size):
            record: dict[str, object] = {
                "id": f"{'-' if number % 5 == 0 else 'x'}{split[0]}_{number:08d}",
                "dir": f"all_{split}_{i // 20}",
                "aclip": [f"p0.{('wav', 'flac')[number % 2]}"],
                "frame": [],
                "bos": "0.000",
                "eos": "1.000",
                "labels": [LABELS[number % 4], LABELS[(number + 1 + number // 4 % 3) % 4]][: 1 + number % 2],
            }
            write_clip(world.media(record), number)
            records.append(record)
            number += 1
        world.write(split, records)
    return world


def make_linked(root: Path, *, pool: int) -> World:
    """A world whose pool has so many clips, of 20 sounds: links, so that many parts are made quickly."""
    world = make(root, pool=20)
    records = world.records("pool")
    for i in range(20, pool):
        record = {**records[i % 20], "id": f"copy_{i:06d}"}
        os.link(world.media(records[i % 20]), world.media(record))
        records.append(record)
    world.write("pool", records)
    return world
