"""The demo data set: real audio files of 14 synthetic sound classes in the VIP-ANT layout, made once.

60 balanced seeds, 1,200 pool clips with a long tail, 120 eval clips, one to three labels per clip; mp3, flac and wav,
8 to 48 kHz, mono and stereo, 2 to 5 s; five pool files are broken and five are missing, as in real downloads.
Everything follows from a fixed seed of its own, so all users have the same demo. Files are made by subprocesses
(`python -m balance.demo.sounds ROOT SHARD SHARDS`) that import no torch.

A folder is only ever filled, or emptied, if it holds this program's marker.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile

from balance.errors import UserError
from balance.records import Float64
from balance.runtime import files, locks

SEED = 20_260_101
MARKER = "balance-demo.json"  # {"complete": bool}: written first, completed last
VERSION = 1
_RATES_HZ = (8000, 11025, 16000, 16000, 22050, 32000, 44100, 48000)
_SPLITS = (("balanced_train_segments", 60), ("unbalanced_train_segments", 1200), ("eval_segments", 120))
_NUM_BROKEN = _NUM_MISSING = 5
CLASSES = (
    "Hum",
    "Whistle",
    "Rising sweep",
    "Falling sweep",
    "Hiss",
    "Rumble",
    "Rain",
    "Clicking",
    "Tremolo",
    "Siren",
    "Plucked string",
    "Drum",
    "Engine",
    "Bell",
)


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


def ensure(root: Path, *, num_processes: int) -> None:
    """Make the demo in `root`, unless it is complete; an unfinished one is made anew.

    Raises UserError if the folder holds something else, OSError if it cannot be written.
    """
    if _complete(root):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    while (lock := locks.acquire(root.with_name("demo.lock"))) is None:
        time.sleep(0.5)  # another job is making it
    with lock:
        if _complete(root):
            return
        if root.exists():
            if not (root / MARKER).is_file() and any(root.iterdir()):
                raise UserError(
                    f"{root} holds files that are not the demo's (no {MARKER}): the demo is not written over them; "
                    "move them away or type another cache_dir=…"
                )
            shutil.rmtree(root)
        root.mkdir()
        files.write_json(root / MARKER, {"version": VERSION, "complete": False})
        _write_indexes(root)
        commands = [
            [sys.executable, "-m", "balance.demo.sounds", str(root), str(shard), str(num_processes)]
            for shard in range(num_processes)
        ]
        makers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
        try:
            for maker in makers:
                _, errors = maker.communicate()
                if maker.returncode:
                    raise OSError(f"the demo's audio files could not be written: {errors.strip().splitlines()[-1:]}")
        finally:
            for maker in makers:
                if maker.poll() is None:
                    maker.kill()
                    maker.wait()
        files.write_json(root / MARKER, {"version": VERSION, "complete": True})


def _complete(root: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        marker = json.loads((root / MARKER).read_text())
        return bool(marker == {"version": VERSION, "complete": True})
    return False


def _clips() -> list[_DemoClip]:
    rng = np.random.default_rng(SEED)
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


def _write_indexes(root: Path) -> None:
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


def write_shard(root: Path, shard: int, num_shards: int) -> None:
    """Write the audio files of every num_shards-th clip."""
    for number, clip in enumerate(_clips()):
        if number % num_shards != shard or clip.state == "missing":
            continue
        path = root / clip.path
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([SEED, number])
        if clip.state == "broken":
            path.write_bytes(rng.bytes(2000) if number % 2 else b"")
            continue
        with files.atomic(path) as file:
            samples = _sound(clip, rng).astype(np.float32)
            soundfile.write(file, samples, clip.sample_rate, format=clip.suffix.rsplit(".", 1)[1].upper())


def _sound(clip: _DemoClip, rng: np.random.Generator) -> Float64:
    """(samples, channels) in [-1, 1]: the clip's classes mixed, the first the loudest."""
    num_samples = int(clip.duration_s * clip.sample_rate)
    mix = np.zeros(num_samples)
    for position, label in enumerate(clip.labels):
        one = _class_sound(label, num_samples, clip.sample_rate, rng)
        mix += 0.7**position * one / (np.abs(one).max() + 1e-9)
    mix *= rng.uniform(0.2, 0.9) / (np.abs(mix).max() + 1e-9)
    mix += 1e-4 * rng.standard_normal(num_samples)
    if clip.channels == 1:
        return mix[:, None]
    return np.stack([mix, mix * rng.uniform(0.4, 1.0)], axis=1)


def _class_sound(label: int, num_samples: int, rate: int, rng: np.random.Generator) -> Float64:
    t = np.arange(num_samples) / rate
    top = min(rate / 2, 8000.0) * 0.9
    name = CLASSES[label]
    if name == "Hum":
        base = rng.uniform(48, 62)
        return _sum([np.sin(2 * np.pi * base * h * t) / h for h in (1, 2, 3)])
    if name == "Whistle":
        base = rng.uniform(0.55, 0.75) * min(top, 3500)
        return np.asarray(np.sin(2 * np.pi * base * t + 3 * np.sin(2 * np.pi * 5 * t)))
    if name in ("Rising sweep", "Falling sweep"):
        position = (t * rng.uniform(0.4, 0.8)) % 1.0
        position = position if name == "Rising sweep" else 1.0 - position
        return np.sin(2 * np.pi * np.cumsum(150 + position * (0.8 * top - 150)) / rate)
    if name == "Hiss":
        return _shaped(rng, num_samples, rate, lambda f: f / (f + 1500.0))
    if name == "Rumble":
        return _shaped(rng, num_samples, rate, lambda f: 1.0 / (1.0 + (f / 120.0) ** 2))
    if name == "Rain":
        drops = (rng.random(num_samples) < 60 / rate) * rng.standard_normal(num_samples)
        tail = np.exp(-np.arange(rate // 50) / (rate / 400)) * rng.standard_normal(rate // 50)
        wet = scipy.signal.fftconvolve(drops, tail)[:num_samples]
        return np.asarray(wet + 0.02 * rng.standard_normal(num_samples))
    if name == "Clicking":
        return np.where((t * rng.uniform(6, 10)) % 1.0 < 0.004, 1.0, 0.0) * rng.standard_normal(num_samples)
    if name == "Tremolo":
        tone = np.sin(2 * np.pi * rng.uniform(500, 800) * t)
        return tone * (0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(6, 9) * t))
    if name == "Siren":
        wave = 900 + 400 * np.sin(2 * np.pi * rng.uniform(0.5, 0.9) * t)
        phase = 2 * np.pi * np.cumsum(wave) / rate
        return np.sin(phase) + 0.4 * np.sin(2 * phase)
    if name == "Plucked string":
        since = (t * rng.uniform(1.5, 2.5)) % 1.0
        base = rng.uniform(180, 330)
        return _sum([np.exp(-since * (3 + h)) * np.sin(2 * np.pi * base * h * t) / h for h in range(1, 7)])
    if name == "Drum":
        since = (t * rng.uniform(2, 3)) % 1.0
        return np.exp(-since * 14) * (np.sin(2 * np.pi * 80 * t) + 0.6 * rng.standard_normal(num_samples))
    if name == "Engine":
        return 2 * ((t * rng.uniform(70, 110)) % 1.0) - 1 + 0.3 * rng.standard_normal(num_samples)
    since = (t * rng.uniform(0.6, 1.0)) % 1.0
    base = rng.uniform(350, 500)
    ratios = (1, 2.01, 2.75, 4.1)
    return _sum([np.exp(-since * 3 * r) * np.sin(2 * np.pi * base * r * t) for r in ratios])


def _sum(parts: list[Float64]) -> Float64:
    return np.asarray(np.sum(parts, axis=0))


def _shaped(rng: np.random.Generator, num_samples: int, rate: int, gain: object) -> Float64:
    assert callable(gain)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples)) * gain(np.fft.rfftfreq(num_samples, 1 / rate))
    return np.asarray(np.fft.irfft(spectrum, num_samples))


if __name__ == "__main__":
    write_shard(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
