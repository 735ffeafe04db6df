"""Training on a run's files: against re-readings of the same files, and the published loader's rules for train_root."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import sklearn.metrics
import soundfile
import torch
from torch.utils.data import DataLoader

from balance.audio import fbank
from balance.data.vipant_index import read_index
from balance.errors import UserError
from balance.results.train_root import write_train_root
from balance.training.dataset import (
    VIPANT_FRONT_END,
    ClipDataset,
    DistributedWeightedSampler,
    UnreadableClip,
    class_names,
    collate,
    load_ids,
    load_index,
    load_neighbours,
    sample_weights,
    select,
)
from tests.paths import REPOSITORY

FOUR = ["p0.4_0.jpg", "p0.4_1.jpg", "p0.4_2.jpg", "p0.4_3.jpg"]
CLIPS = [  # id, dir, suffix, rate, frames, labels
    (
        "--PJHxphWEs",
        "all_0_2",
        "wav",
        16_000,
        ["p0.4_0.jpg", "p0.4_1.jpg", "p0.4_2.jpg", "p0.4_3.jpg"],
        ["/m/b", "/m/a"],
    ),
    ("a_b-c_d-e_f", "all_0_2", "flac", 8_000, "p0.1_0.jpg", ["/m/a"]),
    ("zzzzzzzzzzz", "", "wav", 16_000, [], ["/m/c"]),
    ("0123456789_", "all_2_4", "flac", 16_000, ["p0.1_0.jpg"], ["/m/b"]),
]


@pytest.fixture
def root(tmp_path) -> Path:
    rng = np.random.default_rng(1)
    root = tmp_path / "data"
    with_lines = []
    for number, (id, chunk, suffix, rate, frames, labels) in enumerate(CLIPS):
        folder = root / chunk / "aclip"
        folder.mkdir(parents=True, exist_ok=True)
        samples = rng.uniform(-0.5, 0.5, (rate + 100 * number, 2))
        soundfile.write(folder / f"{id}.p0.{suffix}", samples, rate)
        record = {"id": id, "dir": chunk, "aclip": [f"p0.{suffix}"], "frame": frames, "labels": labels}
        with_lines.append(json.dumps(record) + "\n")
    (root / "src_X.csv").write_text("".join(with_lines))
    return root


def test_examples(root):
    index = load_index(root / "src_X.csv")
    assert class_names(index, root=root) == ["/m/a", "/m/b", "/m/c"]
    waves = ClipDataset(index, root)
    spectrograms = ClipDataset(index, root, output="spectrogram")
    frames = ["all_0_2/frame/--PJHxphWEs.p0.4_1.jpg", "all_0_2/frame/a_b-c_d-e_f.p0.1_0.jpg", "", ""]
    frames[3] = "all_2_4/frame/0123456789_.p0.1_0.jpg"
    for row, (id, chunk, suffix, rate, _, labels) in enumerate(CLIPS):
        direct, _ = soundfile.read(root / chunk / "aclip" / f"{id}.p0.{suffix}", dtype="float32")
        example = waves[row]
        assert (example.id, example.sample_rate) == (id, rate)
        assert example.frame == (str(root / frames[row]) if frames[row] else "")
        np.testing.assert_allclose(example.audio, direct[:, 0] - direct.mean(dtype=np.float64), atol=1e-6)
        assert example.labels.tolist() == [float(name in labels) for name in ("/m/a", "/m/b", "/m/c")]
        torch.testing.assert_close(example.labels, waves.targets()[row])
        want = fbank.log_mel(example.audio[None], [len(example.audio)], rate, VIPANT_FRONT_END)[0]
        torch.testing.assert_close(spectrograms[row].audio, want)
    with pytest.raises(IndexError):
        waves[4]


def test_label_map_gives_the_classes_in_its_order(root):
    (root / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/c,C\n1,/m/z,Z\n2,/m/a,A\n3,/m/b,B\n")
    dataset = ClipDataset(load_index(root / "src_X.csv"), root)
    assert dataset.classes == ["/m/c", "/m/z", "/m/a", "/m/b"]
    assert dataset[0].labels.tolist() == [0, 0, 1, 1]


def test_classes_of_several_indexes_and_unknown_labels(root):
    index = load_index(root / "src_X.csv")
    first, last = index.take(np.array([0, 1])), index.take(np.array([2]))
    assert class_names(first) == ["/m/a", "/m/b"]
    assert class_names(first, last) == ["/m/a", "/m/b", "/m/c"]
    with pytest.raises(UserError, match="1 labels are none of the classes: /m/c"):
        ClipDataset(last, root, classes=class_names(first))


@pytest.mark.parametrize(("output", "num_workers"), [("waveform", 0), ("spectrogram", 1)])
def test_batches_of_a_pickled_dataset(root, output, num_workers):
    dataset = pickle.loads(pickle.dumps(ClipDataset(load_index(root / "src_X.csv"), root, output=output)))
    alone = [dataset[row] for row in range(4)]
    start = "spawn" if num_workers else None
    (batch,) = list(
        DataLoader(dataset, batch_size=4, num_workers=num_workers, collate_fn=collate, multiprocessing_context=start)
    )
    assert list(batch.id) == [clip[0] for clip in CLIPS]
    assert batch.labels.shape == (4, 3)
    assert batch.sample_rate.tolist() == [clip[3] for clip in CLIPS]
    for row, example in enumerate(alone):
        length = len(example.audio)
        torch.testing.assert_close(batch.audio[row][:length], example.audio)
        assert not batch.audio[row][length:].any()


def test_unreadable_clips(root):
    (root / "aclip" / "zzzzzzzzzzz.p0.wav").write_bytes(b"not audio")
    (root / "all_2_4" / "aclip" / "0123456789_.p0.flac").unlink()
    index = load_index(root / "src_X.csv")
    strict = ClipDataset(index, root)
    for row in (2, 3):
        with pytest.raises(UnreadableClip, match=CLIPS[row][0]):
            strict[row]
    with pytest.raises(UnreadableClip, match="no such file under"):
        strict[next(row for row in (2, 3) if not (root / index.paths[row].as_py()).exists())]
    lenient = ClipDataset(index, root, on_unreadable="skip")
    assert lenient[2] is None
    (batch,) = list(DataLoader(lenient, batch_size=4, collate_fn=collate))
    assert list(batch.id) == [CLIPS[0][0], CLIPS[1][0]]
    with pytest.raises(UnreadableClip, match="none of the 2 clips"):
        collate([lenient[2], lenient[3]])
    with pytest.raises(UserError, match="error or skip"):
        ClipDataset(index, root, on_unreadable="noise")
    with pytest.raises(UserError, match="waveform or spectrogram"):
        ClipDataset(index, root, output="mfcc")


# -- filters -----------------------------------------------------------------------------------------------------------

PAIRS = {"s1": [("a", 0.5), ("b", 0.25), ("--c", -0.125)], "s_2": [("b", 1.0), ("a", 0.0), ("d", -1.0)]}


def knn_line(seed: str, pairs) -> str:
    return json.dumps({seed: [list(pair) for pair in pairs]}) + "\n"


def test_neighbours_of_both_forms(tmp_path):
    (tmp_path / "n.jsonl").write_text("".join(knn_line(seed, pairs) for seed, pairs in PAIRS.items()))
    rows = [(s, r, i, x) for s, pairs in PAIRS.items() for r, (i, x) in enumerate(pairs, 1)]
    columns = dict(zip(("seed_id", "rank", "neighbour_id", "similarity"), zip(*rows, strict=True), strict=True))
    table = pa.table({name: list(values) for name, values in columns.items()})
    pq.write_table(table.set_column(1, "rank", table["rank"].cast(pa.int32())), tmp_path / "n.parquet")
    for name in ("n.jsonl", "n.parquet"):
        assert load_neighbours(tmp_path / name, top=3) == PAIRS
        assert load_neighbours(tmp_path / name, top=1) == {seed: pairs[:1] for seed, pairs in PAIRS.items()}
        with pytest.raises(UserError, match="'s1' has 3 neighbours, 4 are asked for"):
            load_neighbours(tmp_path / name, top=4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty k-NN file"),
        ("not json\n", "line 1: not"),
        (knn_line("s", [("a", 1.0)]) + "\n", "line 2: not"),
        ('["s"]\n', "line 1: not"),
        ('{"s": [["a"]]}\n', "line 1: not"),
        ('{"s": [[1, 0.5]]}\n', "line 1: not"),
        ('{"s": [["a", "x"]]}\n', "line 1: not"),
        ('{"s": [["a", 1]], "t": [["a", 1]]}\n', "line 1: not"),
        (knn_line("s", [("a", 1.0)]) * 2, "'s' occurs twice"),
    ],
)
def test_malformed_neighbours(tmp_path, content, words):
    (tmp_path / "n.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        load_neighbours(tmp_path / "n.jsonl", top=1)


def test_absent_filters(tmp_path):
    with pytest.raises(UserError, match="no such k-NN file"):
        load_neighbours(tmp_path / "n.jsonl", top=1)
    with pytest.raises(UserError, match="at least 1"):
        load_neighbours(tmp_path / "n.jsonl", top=0)
    with pytest.raises(UserError, match="no such file"):
        load_ids(tmp_path / "ids.csv")
    (tmp_path / "n.parquet").write_bytes(b"junk")
    with pytest.raises(UserError, match="not a neighbours"):
        load_neighbours(tmp_path / "n.parquet", top=1)
    (tmp_path / "ids.csv").touch()
    with pytest.raises(UserError, match="empty id list"):
        load_ids(tmp_path / "ids.csv")


def test_select(root, tmp_path, caplog):
    index = load_index(root / "src_X.csv")
    (tmp_path / "ids.csv").write_text("0123456789_\n--PJHxphWEs\n")
    assert select(index, load_ids(tmp_path / "ids.csv")).ids.to_pylist() == ["--PJHxphWEs", "0123456789_"]
    assert not caplog.records
    select(index, ["0123456789_", "other"])
    assert "1 of the 2 ids of the filter are not in it" in caplog.text
    with pytest.raises(UserError, match="none of the 1 ids"):
        select(index, ["other"])


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_weights_are_the_published_formula(root):
    weights = sample_weights(load_index(root / "src_X.csv"))
    counts = Counter(label for *_, labels in CLIPS for label in labels)
    assert weights.dtype == torch.float64
    assert weights.tolist() == [sum(1000 / (counts[label] + 1) for label in labels) for *_, labels in CLIPS]


def test_draws_follow_the_weights():
    """Chi-square of 200,000 draws at level 1e-4 (the seed is fixed); weights of 0 are never drawn."""
    weights = np.array([0.0, 1.0, 5.0, 0.5, 0.0, 20.0, 3.0, 0.0])
    draws = np.array(list(DistributedWeightedSampler(weights, 200_000, seed=3)))
    counts = np.bincount(draws, minlength=8)
    assert not counts[weights == 0].any()
    used = weights > 0
    expected = weights[used] / weights.sum() * len(draws)
    assert scipy.stats.chisquare(counts[used], expected).pvalue > 1e-4
    # The test can fail: the same counts against equal weights.
    assert scipy.stats.chisquare(counts[used]).pvalue < 1e-10


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_ranks_share_one_draw(num_ranks):
    weights = np.random.default_rng(0).uniform(size=50)
    whole = DistributedWeightedSampler(weights, 100, num_replicas=1, rank=0)
    ranks = [DistributedWeightedSampler(weights, 100, num_replicas=num_ranks, rank=r) for r in range(num_ranks)]
    size = math.ceil(100 / num_ranks)
    for epoch in range(3):
        for sampler in (whole, *ranks):
            sampler.set_epoch(epoch)
        slices = [list(sampler) for sampler in ranks]
        assert [len(s) for s in slices] == [len(sampler) for sampler in ranks] == [size] * num_ranks
        joined = [row for step in zip(*slices, strict=True) for row in step]
        assert joined[:100] == list(whole)
        assert list(ranks[0]) == slices[0]
    assert slices[0] != list(DistributedWeightedSampler(weights, 100, num_replicas=num_ranks, rank=0))


def test_torch_distributed_gives_the_ranks(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        sampler = DistributedWeightedSampler([1.0, 2.0], 10)
        assert (sampler.rank, sampler.num_replicas) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("weights", "more", "words"),
    [
        ([], {}, "finite numbers"),
        ([[1.0]], {}, "finite numbers"),
        ([1.0, math.nan], {}, "finite numbers"),
        ([1.0, -1.0], {}, "finite numbers"),
        ([0.0, 0.0], {}, "all 2 weights are 0"),
        ([1.0], {"num_replicas": 2, "rank": 2}, r"rank=2: must be 0 … 1 of 2 ranks"),
        ([1.0], {"num_samples": 0}, "at least 1"),
        ([1.0], {"num_replicas": 0}, "num_replicas=0: at least 1"),
    ],
)
def test_sampler_mistakes(weights, more, words):
    with pytest.raises(UserError, match=words):
        DistributedWeightedSampler(weights, **more)


# -- train_root --------------------------------------------------------------------------------------------------------


def published_loader(data_root: Path, data_name: str, filter_set: str | None = None) -> list[str]:
    """What the published data module does with these three settings; returns the audio files that it opens.

    Its silent fallback ("no filter" on any error) is left out: here an error must show.
    """
    wanted = None
    if filter_set is not None and filter_set.endswith("csv"):
        wanted = {line.strip() for line in (data_root / filter_set).read_text().splitlines()}
    elif filter_set is not None:
        name, topk = filter_set.split(",")
        wanted = set()
        for line in (data_root / name).read_text().splitlines():
            for seed, neighbours in json.loads(line).items():
                wanted.add(seed)
                wanted.update(id for id, _ in neighbours[: int(topk)])
    files, key = [], None
    for line in (data_root / f"{data_name}.csv").read_text().splitlines():
        record = json.loads(line)
        key = key or ("aclip" if "aclip" in record else "clip")
        if wanted is None or record["id"] in wanted:
            folder = f"{record['dir']}/" if record["dir"] else ""
            files.append(f"{data_root}/{folder}{key}/{record['id']}.{record[key][0]}")
    return files


def test_the_published_loader_accepts_train_root(root, tmp_path):
    (root / "ontology.json").write_text("[]")
    (root / "frame").mkdir()
    text = (root / "src_X.csv").read_text()
    (root / "src_train_segments.csv").write_text(text)
    (root / "src_augmented_k2.csv").write_text("an older run's, which must not win")
    run = tmp_path / "run"
    run.mkdir()
    (run / "src_augmented_k2.csv").write_text("".join(text.splitlines(keepends=True)[:3]))
    (run / "src_augmented_k2_weight.csv").write_text("1.0\n2.0\n3.0\n")
    (run / "ids_k2.csv").write_text("--PJHxphWEs\nzzzzzzzzzzz\n")
    (run / "neighbours_k2.jsonl").write_text(knn_line("--PJHxphWEs", [("0123456789_", 0.5), ("a_b-c_d-e_f", 0.25)]))
    (run / "summary.json").write_text("{}")
    os.chmod(root, 0o555)
    try:
        paths = [read_index(root / "src_X.csv").paths]
        for _ in range(2):
            train_root = write_train_root(run, root=root, media=root, paths=paths)
    finally:
        os.chmod(root, 0o755)
    assert sorted(p.name for p in run.iterdir() if p.is_dir()) == ["train_root"]
    assert sorted(p.name for p in train_root.iterdir()) == [
        *("aclip", "all_0_2", "all_2_4", "frame", "ids_k2.csv", "neighbours_k2.jsonl", "ontology.json", "src_X.csv"),
        *("src_augmented_k2.csv", "src_augmented_k2_weight.csv", "src_train_segments.csv"),
    ]
    for name, filter_set, ids in [
        ("src_augmented_k2", None, {0, 1, 2}),
        ("src_train_segments", None, {0, 1, 2, 3}),
        ("src_train_segments", "neighbours_k2.jsonl,1", {0, 3}),
        ("src_train_segments", "ids_k2.csv", {0, 2}),
    ]:
        files = published_loader(train_root, name, filter_set)
        assert {Path(file).name.split(".")[0] for file in files} == {CLIPS[row][0] for row in ids}
        for file in files:
            assert soundfile.info(file).frames > 0
    assert (train_root / "src_augmented_k2_weight.csv").read_text() == "1.0\n2.0\n3.0\n"
    # A run that is moved keeps its own files.
    moved = run.rename(tmp_path / "elsewhere")
    assert published_loader(moved / "train_root", "src_augmented_k2")


def test_the_example_trains_on_a_run(root, tmp_path, capsys):
    source = REPOSITORY / "examples" / "train.py"
    spec = importlib.util.spec_from_file_location("train_example", source)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    (root / "src_eval_segments.csv").write_text((root / "src_X.csv").read_text())
    (tmp_path / "src_augmented_k2.csv").write_text((root / "src_X.csv").read_text())
    write_train_root(tmp_path, root=root, media=root, paths=[read_index(root / "src_X.csv").paths])
    figures = [example.train(tmp_path, epochs=2, uniform=uniform) for uniform in (False, False, True)]
    assert figures[0] == figures[1]
    assert "4 clips, 3 classes" in capsys.readouterr().out
    scores, labels = torch.randn(30, 3), (torch.rand(30, 3) > 0.6).float()
    want = sklearn.metrics.average_precision_score(labels.numpy(), scores.numpy(), average="macro")
    assert example.mean_average_precision(scores, labels) == pytest.approx(want, abs=1e-6)
    with pytest.raises(UserError, match="0 indexes"):
        example.train(root, epochs=1, uniform=False)
