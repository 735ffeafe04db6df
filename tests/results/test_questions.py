"""why, verify and compare agree with the files of real runs; ids that begin with a dash work as they are."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from balance import pipeline
from balance.config import Settings
from balance.curation.config import AugmentConfig, Copies, Leaks
from balance.data.config import DatasetConfig
from balance.encoders.config import EncoderConfig
from balance.errors import UserError
from balance.results.comparison import compare
from balance.results.explain import why
from balance.results.verification import similarity, verify
from balance.runtime import files
from tests import worlds


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one world: K = 5 with controls, K = 3 without. Pool clip 7 is a copy of eval clip 0, 8 of pool clip
    6; clip 9 cannot be decoded."""
    base = tmp_path_factory.mktemp("questions")
    world = worlds.make(base / "world")
    pool = world.records("pool")
    shutil.copy(world.media(world.records("eval")[0]), world.media(pool[7]))
    shutil.copy(world.media(pool[6]), world.media(pool[8]))
    world.media(pool[9]).write_bytes(b"no sound")
    folders = []
    augments = (AugmentConfig(leaks=Leaks.exact, copies=Copies.exact, budget=20), AugmentConfig())
    for k, augment in zip((5, 3), augments, strict=True):
        settings = Settings(
            k=k,
            dataset=DatasetConfig(name="tiny", root=str(world.root)),
            encoder=EncoderConfig(checkpoint=str(world.checkpoint), device="cpu"),
            augment=augment,
            cache_dir=str(base / "cache"),
            num_workers=2,
            max_failures=0.1,
        )
        folders.append(base / f"run{k}")
        folders[-1].mkdir()
        pipeline.run(settings, folders[-1])
    return world, *folders


def rows_of(folder: Path, k: int) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in csv.DictReader((folder / f"augmented_k{k}.csv").read_text().splitlines())}


def test_why_agrees_with_the_files(runs):
    world, folder, _ = runs
    rows = rows_of(folder, 5)
    table = pq.read_table(folder / "neighbours_k5.parquet").to_pylist()
    removed = {row["id"]: row for row in pq.read_table(folder / "decisions.parquet").to_pylist()}
    assert {"leak_exact", "budget"} <= {row["rule"] for row in removed.values()}
    for record in world.records("pool"):
        clip = record["id"]
        lines = why(str(folder), clip)
        seeds = [row for row in table if row["neighbour_id"] == clip]
        said = [line.split() for line in lines if line.startswith("  rank")]
        assert [(x[1], x[3].rstrip(",")) for x in said] == [
            (str(row["rank"]), row["seed_id"]) for row in sorted(seeds, key=lambda r: (-r["similarity"], r["rank"]))
        ]
        if clip in rows:
            assert lines[0].startswith(f"in: {clip} is a neighbour of {rows[clip]['num_seeds']} seed")
            assert rows[clip]["best_similarity"] in lines[0]
        elif clip in removed:
            assert lines[0].startswith(f"out: {clip} ")
            assert removed[clip]["rule"] in lines[0]
            assert (removed[clip]["by"] or "") in lines[0]
        elif clip == world.records("pool")[9]["id"]:
            assert lines[0].startswith(f"without embedding: {clip} of the pool (undecodable")
        else:
            assert lines == [f"out: {clip} is in the pool, but in no seed's top 5"]


def test_why_for_seeds_eval_and_strangers(runs):
    world, folder, _ = runs
    seed = world.records("seeds")[0]["id"]
    first = pq.read_table(folder / "neighbours_k5.parquet").to_pylist()[0]
    lines = why(str(folder), seed)
    assert lines[0] == f"in: {seed} is a seed"
    assert first["neighbour_id"] in lines[1]
    assert "for evaluation" in why(str(folder), world.records("eval")[1]["id"])[0]
    with pytest.raises(UserError, match="no clip of this run has this id"):
        why(str(folder), "nobody")


def ask(*arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_ids_that_begin_with_a_dash(runs):
    world, folder, _ = runs
    seed = next(x["id"] for x in world.records("seeds") if x["id"].startswith("-"))
    done = ask("balance.why", folder, seed)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"in: {seed} is a seed\n")


def test_mistakes_are_one_line(runs, tmp_path):
    _, folder, _ = runs
    for done, words in (
        (ask("balance.why", folder), "type: python -m balance.why RUN_DIR ID"),
        (ask("balance.why", tmp_path, "x"), "no complete run"),
        (ask("balance.compare", folder, tmp_path / "none"), "no such folder"),
    ):
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) <= 2


def test_verify_finds_what_was_changed(runs, tmp_path):
    _, folder, _ = runs
    assert "neighbour rows follow from the embeddings" in verify(str(folder))[0]
    for name in ("ids_k5.csv", "neighbours_k5.jsonl"):
        copy = tmp_path / name
        shutil.copytree(folder, copy, symlinks=True)
        (copy / name).write_bytes((copy / name).read_bytes().replace(b"0", b"1", 1))
        with pytest.raises(UserError, match=f"1 files are not what the run wrote .*{name}"):
            verify(str(copy))
        (copy / name).unlink()
        with pytest.raises(UserError, match="are gone"):
            verify(str(copy))


def test_verify_recomputes_similarities(runs, tmp_path):
    _, folder, _ = runs
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    path = copy / "neighbours_k5.parquet"
    table = pq.read_table(path)
    values = table["similarity"].to_numpy().copy()
    values[3] = np.nextafter(values[3], np.float32(2))  # the last bit of one row
    at = table.schema.get_field_index("similarity")
    pq.write_table(table.set_column(at, "similarity", [values]), path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["outputs"][path.name] = files.sha256_file(path)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="1 of 30 neighbour rows do not follow"):
        verify(str(copy))


def test_similarity_against_integers():
    a, b = np.array([3, 4, 0], dtype=np.float32), np.array([4, 3, 0], dtype=np.float32)
    assert similarity(a, b) == np.float32(24 / 25)
    assert similarity(a, 0 * b) == 0
    assert math.copysign(1, similarity(a, -0.0 * b)) == 1


def test_compare_agrees_with_the_files(runs):
    _, a, b = runs
    rows = rows_of(a, 5), rows_of(b, 3)
    lines = compare(str(a), str(b))
    mine, theirs = ({x for x, row in part.items() if row["source"] == "neighbour"} for part in rows)
    assert lines[1].startswith(f"neighbours: {len(mine)} in A, {len(theirs)} in B, {len(mine & theirs)} in both")
    tables = [pq.read_table(f / f"neighbours_k{k}.parquet").to_pylist() for f, k in ((a, 5), (b, 3))]
    pairs = [{(r["seed_id"], r["neighbour_id"]) for r in t if r["rank"] <= 3} for t in tables]
    seeds = {x for x, _ in pairs[0]} & {x for x, _ in pairs[1]}
    overlap = len(pairs[0] & pairs[1]) / (3 * len(seeds))
    assert f"overlap@3 {overlap:.3f}" in lines[2]
    counts = [Counter(x for row in part.values() for x in row["labels"].split(";") if x) for part in rows]
    lost = {x: (counts[0][x], counts[1][x]) for x in counts[0] if 0 < counts[1][x] < counts[0][x]}
    line = next(line for line in lines if line.startswith("labels that lose"))
    assert line.startswith(f"labels that lose from A to B: {len(lost)}")
    assert all(f"{x} {m} → {n}" in line for x, (m, n) in lost.items())
