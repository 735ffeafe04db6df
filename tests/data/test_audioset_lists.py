"""A run over AudioSet's real balanced and eval lists: real ids, labels and sizes; a stub's vectors instead of audio."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from balance import pipeline
from balance.config import Settings
from balance.data.config import DatasetConfig
from balance.embed.parts import plan_name
from balance.embed.stage import fingerprint_of
from balance.embed.store_files import PartRows, write_part
from balance.encoders.config import EncoderConfig
from balance.encoders.precision import Precision
from balance.encoders.vipant import read_vipant
from balance.records import Facts
from tests import worlds
from tests.paths import SHARED

LISTS = SHARED / "data" / "audioset"


@pytest.mark.skipif(not LISTS.is_dir(), reason="AudioSet's segment lists are not beside this checkout")
def test_the_real_lists_end_to_end(tmp_path: Path) -> None:
    """Seeds: the balanced list; pool: the eval list. The stub's vectors are noisy sums of one vector a label."""
    rng = np.random.default_rng(0)
    root, dim = tmp_path / "data", 32
    root.mkdir()
    encoder = read_vipant(worlds.write_checkpoint(root / "tiny.pth"))
    fingerprint, _ = fingerprint_of(encoder, Precision.float32)
    assert fingerprint_of(dataclasses.replace(encoder, compile=True), Precision.float32)[0] != fingerprint
    folder = tmp_path / "cache" / "embeddings" / f"audioset-{fingerprint}"
    folder.mkdir(parents=True)
    of_label: dict[str, np.ndarray] = {}
    labels: dict[str, list[str]] = {}
    for name, index in (("balanced_train_segments", "seeds"), ("eval_segments", "pool")):
        with (LISTS / f"{name}.csv").open() as file:
            rows = list(csv.reader((line for line in file if not line.startswith("#")), skipinitialspace=True))
        vectors = rng.normal(0, 0.3, (len(rows), dim))
        paths = []
        with (root / f"src_{index}.csv").open("w") as file:
            for i, (clip_id, start, end, names) in enumerate(rows):
                labels[clip_id] = names.split(",")
                for label in labels[clip_id]:
                    vectors[i] += of_label.setdefault(label, rng.normal(size=dim))
                record = {"id": clip_id, "dir": "all", "aclip": ["p0.mp3"], "bos": start, "eos": end}
                file.write(json.dumps({**record, "labels": labels[clip_id]}) + "\n")
                paths.append(f"all/aclip/{clip_id}.p0.mp3")
        n = len(rows)
        facts = Facts(
            np.full(n, 44100, np.int32),
            np.full(n, 441000),
            np.full(n, -20, np.float32),
            rng.integers(0, 256, (n, 20), dtype=np.uint8),
        )
        part = PartRows([r[0] for r in rows], paths, vectors.astype(np.float32), facts)
        write_part(folder, plan_name(paths), part, [], {})
    out = tmp_path / "out"
    out.mkdir()
    settings = Settings(
        k=10,
        dataset=DatasetConfig(root=str(root), balanced="seeds", unbalanced="pool", eval=None),
        encoder=EncoderConfig(checkpoint=str(encoder.checkpoint), device="cpu"),
        cache_dir=str(tmp_path / "cache"),
    )
    pipeline.run(settings, out)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["num_seeds"], summary["num_pool"]) == (22160, 20371)
    table = pq.read_table(out / "neighbours_k10.parquet").to_pandas()
    assert len(table) == 221_600
    ids = (out / "ids_k10.csv").read_text().splitlines()
    assert len(ids) == len(set(ids)) == 22160 + table["neighbour_id"].nunique()
    sample = table.sample(2000, random_state=1)
    shared = [
        len(set(labels[s]) & set(labels[n])) / len(labels[s])
        for s, n in zip(sample.seed_id, sample.neighbour_id, strict=True)
    ]
    assert np.mean(shared) == pytest.approx(summary["label_agreement"], abs=0.03)
    assert summary["label_agreement"] > 2 * summary["label_agreement_random"]
