"""`encoder=plugin`: the user's own model through the whole stage, and what is said where it cannot be used."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import soxr

from tests import worlds
from tests.command import command, run_dir
from tests.encoders import plugins
from tests.paths import REPOSITORY


def plugin_run(folder: Path, world: worlds.World, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    given = [f"dataset.root={world.root}", "num_workers=2", "k=3", f"encoder.target=tests.encoders.plugins:{name}"]
    return command(folder, *given, "encoder=plugin", *more, PYTHONPATH=str(REPOSITORY))


def store(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """path -> embedding, and meta.json."""
    (directory,) = (folder / "outputs" / "cache" / "embeddings").iterdir()
    found = {}
    for part in directory.glob("part-*.arrow"):
        table = pa.ipc.open_file(part).read_all().to_pydict()
        found |= dict(zip(table["path"], map(np.array, table["embedding"]), strict=True))
    return found, json.loads((directory / "meta.json").read_text())


def expected(path: Path, *, rate: int | None, duration: float | None, pool: str) -> np.ndarray:
    """The contract's sentence, with soxr's one-shot call and numpy."""
    samples, own = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    mono = mono if rate is None else soxr.resample(mono, own, rate, quality="HQ")
    window = len(mono) if duration is None else round(duration * (rate or own))
    count = max(1, math.ceil(len(mono) / window))
    starts = np.linspace(0, max(0, len(mono) - window), count).round().astype(int)
    rows = [plugins.numpy_spectrum(mono[start : start + window]) for start in starts]
    return np.mean(rows, axis=0) if pool == "mean" else np.max(rows, axis=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    made = worlds.make(tmp_path_factory.mktemp("world"), seeds=4, pool=12, evaluation=2)
    for number, record in enumerate(made.records("pool")):
        worlds.write_clip(made.media(record), number, seconds=0.3 + 0.4 * (number % 4))
    return made


@pytest.mark.parametrize(
    ("name", "rate", "duration", "pool"),
    [
        ("Spectrum", 8000, None, "mean"),
        ("ShortSpectrum", 8000, 0.5, "mean"),
        ("ShortSpectrum", 8000, 0.5, "max"),
        ("AnyRate", None, None, "mean"),
    ],
)
def test_a_plugin_s_embeddings(
    tmp_path: Path, world: worlds.World, name: str, rate: int | None, duration: float | None, pool: str
) -> None:
    done = plugin_run(tmp_path, world, name, f"encoder.pool={pool}")
    assert done.returncode == 0, done.stderr
    found, meta = store(tmp_path)
    assert len(found) == 18
    for path, embedding in found.items():
        reference = expected(world.root / path, rate=rate, duration=duration, pool=pool)
        assert np.abs(embedding - reference).max() <= 1e-5 * np.abs(reference).max(), path
    assert meta["dim"] == plugins.BANDS
    assert meta["sample_rate_hz"] == rate
    assert "soxr" in str(meta["resampler"])
    assert len((run_dir(tmp_path) / "neighbours_k3.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, ["encoder.target=package.module:factory"]),
        ("nowhere", ["package.module:factory"]),
        ("no_such_module_here:x", ["there is no module no_such_module_here"]),
        ("tests.encoders.plugins:Nothing", ["no such name in tests.encoders.plugins"]),
        ("tests.encoders.plugins:BANDS", ["not a function or class"]),
        ("tests.encoders.plugins:FactoryFails", ["the plugin tests.encoders.plugins:FactoryFails", "no weights here"]),
        ("tests.encoders.plugins:EmbedFails", ["its embed failed with ValueError: not today", "plugins.py, line"]),
        ("tests.encoders.plugins:WithoutFacts", ["without sample_rate_hz, max_duration_s"]),
        ("tests.encoders.plugins:OtherDim", ["shape (", "it must be (n, dim)"]),
        ("tests.encoders.plugins:OddDuration", ["max_duration_s is -1"]),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, world: worlds.World, target: str | None, words: list[str]) -> None:
    given = [] if target is None else [f"encoder.target={target}"]
    tmp_path.mkdir(exist_ok=True)
    overrides = [f"dataset.root={world.root}", "num_workers=2", "k=3", "encoder=plugin", *given]
    done = command(tmp_path, *overrides, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
