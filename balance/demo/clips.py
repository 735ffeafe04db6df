"""The demo data set: real audio files of 14 synthetic sound classes in the VIP-ANT layout.

60 balanced seeds, 1,200 pool clips with a long tail, 120 eval clips, one to three labels per clip; mp3, flac and wav,
8 to 48 kHz, mono and stereo, 2 to 5 s; five pool files are broken and five are missing, as in real downloads.
Everything follows from a fixed seed of its own, so all users have the same demo. As a program
(`python -m balance.demo.clips ROOT SHARD NUM_SHARDS`) it writes its share of the audio, without torch, and a byte on
stdout for each file that is done.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from balance.demo.sounds import SOUNDS, Take
from balance.records import Float64
from balance.runtime import child, files

RNG_SEED = 20_260_101
_RATES_HZ = (8000, 11025, 16000, 16000, 22050, 32000, 44100, 48000)
_SPLITS = (("balanced_train_segments", 60), ("unbalanced_train_segments", 1200), ("eval_segments", 120))
_NUM_BROKEN = _NUM_MISSING = 5
CLASSES = tuple(SOUNDS)


@dataclass(frozen=True, slots=True)
class _DemoClip:
    id: str
    split: str
    folder: str
    suffix: str
    labels: tuple[int, ...]
    sample_rate: int
    channels: int
    duration_s: float
    state: str  # "good", "broken" or "missing"

    @property
    def path(self) -> str:
        return f"{self.folder}/aclip/{self.id}.{self.suffix}"


def _clips() -> list[_DemoClip]:
    rng = np.random.default_rng(RNG_SEED)
    tail = 1.0 / np.arange(1, len(CLASSES) + 1)
    tail /= tail.sum()
    alphabet = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    clips: list[_DemoClip] = []
    for split, num_clips in _SPLITS:
        odd = set()
        if split.startswith("unbalanced"):
            odd = set(rng.choice(num_clips, _NUM_BROKEN + _NUM_MISSING, replace=False).tolist())
        bad = sorted(odd)
        for i in range(num_clips):
            long_tail = split.startswith("unbalanced")
            first = int(rng.choice(len(CLASSES), p=tail)) if long_tail else i % len(CLASSES)
            others = rng.permutation([c for c in range(len(CLASSES)) if c != first])
            num_labels = int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))
            state = "good"
            if i in odd:
                state = "broken" if bad.index(i) < _NUM_BROKEN else "missing"
            container = str(rng.choice(["mp3", "flac", "wav"], p=[0.3, 0.4, 0.3]))
            clips.append(
                _DemoClip(
                    id="".join(rng.choice(alphabet, 11)),
                    split=split,
                    folder=f"all_{i // 500 * 500}_{i // 500 * 500 + 500}_{split.split('_')[0]}",
                    suffix=f"p0.{container}",
                    labels=(first, *(int(c) for c in others[: num_labels - 1])),
                    sample_rate=int(rng.choice(_RATES_HZ)),
                    channels=int(rng.integers(1, 3)),
                    duration_s=float(rng.uniform(2.0, 5.0)),
                    state=state,
                )
            )
    return clips


def num_files() -> int:
    """Audio files of the whole demo."""
    return sum(clip.state != "missing" for clip in _clips())


def write_indexes(root: Path) -> None:
    """The three indexes and the ontology, in `root`."""
    clips = _clips()
    for split, _ in _SPLITS:
        with files.atomic_text(root / f"src_{split}.csv") as file:
            for clip in clips:
                if clip.split == split:
                    record = {
                        "id": clip.id,
                        "dir": clip.folder,
                        "aclip": [clip.suffix],
                        "frame": [],
                        "bos": "0.000",
                        "eos": f"{clip.duration_s:.3f}",
                        "labels": [_label_id(c) for c in clip.labels],
                    }
                    file.write(json.dumps(record) + "\n")
    ontology = [
        {"id": _label_id(c), "name": name, "description": "made by the demo", "child_ids": [], "restrictions": []}
        for c, name in enumerate(CLASSES)
    ]
    files.write_json(root / "ontology.json", ontology)


def _label_id(number: int) -> str:
    return f"/m/demo{number:02d}"


def write_shard(root: Path, shard: int, num_shards: int) -> Iterator[Path]:
    """Write the audio files of every num_shards-th clip; yields each that is done."""
    for number, clip in enumerate(_clips()):
        if number % num_shards == shard and clip.state != "missing":
            path = root / clip.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.atomic(path) as file:
                _write(file, number, clip)
            yield path


def _write(file: BinaryIO, number: int, clip: _DemoClip) -> None:
    rng = np.random.default_rng([RNG_SEED, number])
    if clip.state == "broken":
        file.write(rng.bytes(2000) if number % 2 else b"")
        return
    samples = _sound(clip, rng).astype(np.float32)
    soundfile.write(file, samples, clip.sample_rate, format=clip.suffix.rsplit(".", 1)[1].upper())


def _sound(clip: _DemoClip, rng: np.random.Generator) -> Float64:
    """(samples, channels) in [-1, 1]: the clip's classes mixed, the first the loudest."""
    num_samples = int(clip.duration_s * clip.sample_rate)
    mix = np.zeros(num_samples)
    for position, label in enumerate(clip.labels):
        one = SOUNDS[CLASSES[label]](Take(np.arange(num_samples) / clip.sample_rate, clip.sample_rate, rng))
        mix += 0.7**position * one / (np.abs(one).max() + 1e-9)
    mix *= rng.uniform(0.2, 0.9) / (np.abs(mix).max() + 1e-9)
    mix += 1e-4 * rng.standard_normal(num_samples)
    if clip.channels == 1:
        return mix[:, None]
    return np.stack([mix, mix * rng.uniform(0.4, 1.0)], axis=1)


if __name__ == "__main__":
    child.end_with_stdin()
    child.follow_parent()
    for _ in write_shard(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
        os.write(1, b".")  # stdout
