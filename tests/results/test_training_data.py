"""What a run of any format gives to train from: the clips that its files list, heard as soundfile hears them."""

from __future__ import annotations

import csv
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from balance import pipeline
from balance.data.config import Format
from balance.errors import UserError
from balance.results.training_data import read_training_data
from balance.training.dataset import ClipDataset, UnreadableClip, collate
from balance.training.sampler import sample_weights
from tests import worlds
from tests.data.test_format_runs import WRITERS, K, settings
from tests.training.example import example


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    return worlds.make(tmp_path_factory.mktemp("world"), seeds=4, pool=15, evaluation=2)


def make_run(world: worlds.World, folder: Path, format: Format, **changes: object) -> Path:
    root = world.root
    if format in WRITERS:
        root = folder / "data"
        root.mkdir()
        for split, name in worlds.SPLITS.items():
            WRITERS[format](world, root, name, world.records(split))
    chosen = settings(world, root, folder / "cache", format)
    for name, value in changes.items():
        setattr(chosen.dataset, name, value)
    (folder / "run").mkdir()
    pipeline.run(chosen, folder / "run")
    return folder / "run"


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / f"augmented_k{K}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("format", [Format.vipant, *WRITERS])
def test_every_format_gives_the_clips_of_the_run(world: worlds.World, tmp_path: Path, format: Format) -> None:
    run = make_run(world, tmp_path, format)
    data, rows = read_training_data(run), rows_of(run)
    assert [id for index in data.train for id in index.ids.to_pylist()] == [row["id"] for row in rows]
    assert data.evaluation is not None
    assert data.evaluation.ids.to_pylist() == [record["id"] for record in world.records("eval")]
    files = {record["id"]: world.media(record) for split in worlds.SPLITS for record in world.records(split)}
    labels = {row["id"]: set(row["labels"].split(";")) for row in rows}
    for index in data.train:
        dataset = pickle.loads(pickle.dumps(ClipDataset(index, data.media, classes=list(worlds.LABELS))))
        for example_ in [dataset[row] for row in (*range(len(index)), 0)]:
            samples, rate = soundfile.read(files[example_.id], dtype="float32", always_2d=True)
            assert example_.sample_rate == rate
            np.testing.assert_allclose(example_.audio, samples[:, 0] - samples.mean(dtype=np.float64), atol=1e-6)
            assert {x for x, on in zip(worlds.LABELS, example_.labels, strict=True) if on} == labels[example_.id]
        pickle.dumps(dataset)  # a parquet file is open now
    weights = {path.name: path for path in run.glob("*augmented*_weight.csv")}
    (written,) = (np.loadtxt(path) for path in weights.values())
    if format is not Format.ast_json:  # whose weights follow another formula
        np.testing.assert_array_equal(sample_weights(*data.train), written)


def test_a_worker_reads_containers_for_itself(world: worlds.World, tmp_path: Path) -> None:
    data = read_training_data(make_run(world, tmp_path, Format.parquet))
    dataset = ClipDataset(data.train[1], data.media)
    alone = [dataset[row] for row in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate, multiprocessing_context="spawn")
    heard = [(id, audio) for batch in loader for id, audio in zip(batch.id, batch.audio, strict=True)]
    assert [id for id, _ in heard] == [example_.id for example_ in alone]
    for (_, audio), example_ in zip(heard, alone, strict=True):
        torch.testing.assert_close(audio[: len(example_.audio)], example_.audio)


def test_a_shard_that_is_gone_is_named(world: worlds.World, tmp_path: Path) -> None:
    data = read_training_data(make_run(world, tmp_path, Format.webdataset))
    dataset = ClipDataset(data.train[0], data.media)
    (data.media.root / f"{worlds.SPLITS['seeds']}.tar").unlink()
    with pytest.raises(UnreadableClip, match=r"seeds|balanced_train_segments\.tar: .*no such file under"):
        dataset[0]


@pytest.mark.parametrize("format", [Format.vipant, Format.parquet])
def test_a_run_without_evaluation_list(
    world: worlds.World, tmp_path: Path, format: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example holds out every tenth clip of each index, the first one on."""
    run = make_run(world, tmp_path, format, eval=None)
    (run / "train_root" / "src_eval_segments.csv").unlink(missing_ok=True)
    assert read_training_data(run).evaluation is None
    figure = example.train(run, epochs=1, uniform=False)
    assert 0 <= figure <= 1 or math.isnan(figure)  # of two clips
    sources = [row["source"] for row in rows_of(run)]
    indexes = [len(sources)] if format is Format.vipant else [sources.count(x) for x in ("seed", "neighbour")]
    held_out = sum(math.ceil(size / 10) for size in indexes)
    said = capsys.readouterr().out
    assert "no evaluation list: every tenth clip is held out" in said
    assert f"run: {len(sources) - held_out} clips, 4 classes; evaluation: {held_out} clips" in said


def test_what_cannot_be_trained_on(world: worlds.World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        read_training_data(tmp_path)
    run = make_run(world, tmp_path, Format.vipant)
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": "vipant"', '"format": "embeddings"'))
    with pytest.raises(UserError, match="holds vectors, not audio"):
        read_training_data(run)
