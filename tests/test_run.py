"""The command, as a user types it: what a run writes, that it writes it twice alike, and what it says of mistakes."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import soundfile

from tests import worlds
from tests.command import command, contents, run, run_dir
from tests.worlds import World


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, shared: World) -> tuple[Path, Path]:
    """(working directory, run directory) of one run with k=5."""
    folder = tmp_path_factory.mktemp("done")
    return folder, run(folder, shared)


def stored(folder: Path) -> dict[str, np.ndarray]:
    """path -> embedding, read with pyarrow alone."""
    found = {}
    for part in (folder / "outputs" / "cache" / "embeddings").glob("*/part-*.arrow"):
        with pa.memory_map(str(part)) as source:
            table = pa.ipc.open_file(source).read_all()
        found.update(zip(table["path"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32), strict=True))
    return found


def test_the_tables_agree_with_numpy_on_the_stored_vectors(done: tuple[Path, Path], shared: World) -> None:
    folder, out = done
    vectors = stored(folder)
    seeds, pool = shared.records("seeds"), shared.records("pool")

    def matrix(records: list[dict[str, object]]) -> np.ndarray:
        rows = [vectors[str(shared.media(r).relative_to(shared.root))].astype(np.float64) for r in records]
        return np.stack([r / np.linalg.norm(r) for r in rows])

    similarity = (matrix(seeds) @ matrix(pool).T).astype(np.float32)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :5]
    table = pq.read_table(out / "neighbours_k5.parquet")
    assert [str(t) for t in table.schema.types] == ["string", "int32", "string", "float"]
    assert table["seed_id"].to_pylist() == [s["id"] for s in seeds for _ in range(5)]
    assert table["rank"].to_pylist() == [1, 2, 3, 4, 5] * len(seeds)
    assert table["neighbour_id"].to_pylist() == [pool[c]["id"] for row in order for c in row]
    expected = np.take_along_axis(similarity, order, axis=1).reshape(-1)
    assert np.abs(table["similarity"].to_numpy() - expected).max() < 1e-7
    # The text file holds the same clusters.
    for line, seed, row in zip((out / "neighbours_k5.jsonl").read_text().splitlines(), seeds, order, strict=True):
        assert list(json.loads(line)) == [seed["id"]]
        assert [x[0] for x in json.loads(line)[seed["id"]]] == [pool[c]["id"] for c in row]


def test_the_augmented_table_and_the_training_index(done: tuple[Path, Path], shared: World) -> None:
    _, out = done
    table = pq.read_table(out / "neighbours_k5.parquet").to_pandas()
    text = (out / "augmented_k5.csv").read_text()
    assert "\r" not in text
    rows = list(csv.DictReader(text.splitlines()))
    header = "id,source,num_seeds,best_seed_id,best_rank,best_similarity,labels,audio"
    assert text.splitlines()[0] == header
    seeds, pool = shared.records("seeds"), shared.records("pool")
    chosen = set(table["neighbour_id"])
    expected = [s["id"] for s in seeds] + [p["id"] for p in pool if p["id"] in chosen]
    assert [r["id"] for r in rows] == expected
    by_id = {str(r["id"]): r for r in seeds + pool}
    seed_order = {s["id"]: i for i, s in enumerate(seeds)}
    for row in rows:
        record = by_id[row["id"]]
        assert row["labels"] == ";".join(record["labels"])  # type: ignore[arg-type]
        assert shared.root / row["audio"] == shared.media(record)
        if row["source"] == "seed":
            assert [row[c] for c in header.split(",")[2:6]] == ["", "", "", ""]
            continue
        pairs = table[table["neighbour_id"] == row["id"]].copy()
        pairs["order"] = pairs["seed_id"].map(seed_order)
        best = pairs.sort_values(["similarity", "rank", "order"], ascending=[False, True, True]).iloc[0]
        assert int(row["num_seeds"]) == len(pairs)
        assert (row["best_seed_id"], int(row["best_rank"])) == (best["seed_id"], best["rank"])
        assert np.float32(row["best_similarity"]) == np.float32(best["similarity"])
    lines = {json.loads(x)["id"]: x for s in ("seeds", "pool") for x in shared.index(s).read_bytes().splitlines()}
    assert (out / "src_augmented_k5.csv").read_bytes() == b"".join(lines[i] + b"\n" for i in expected)
    assert (out / "ids_k5.csv").read_text() == "".join(f"{i}\n" for i in expected)
    counts: dict[str, int] = {}
    for i in expected:
        for label in by_id[i]["labels"]:  # type: ignore[attr-defined]
            counts[label] = counts.get(label, 0) + 1
    weights = [float(x) for x in (out / "src_augmented_k5_weight.csv").read_text().splitlines()]
    assert weights == pytest.approx([sum(1000 / (counts[x] + 1) for x in by_id[i]["labels"]) for i in expected])  # type: ignore[attr-defined]


def published_filter(name_and_k: str, root: Path, index: Path) -> list[str]:
    """What VIP-ANT's loader keeps of an index, by its published rules: a k-NN file, or an id list."""
    name, _, topk = name_and_k.partition(",")
    records = [json.loads(line) for line in index.read_text().splitlines()]
    keep: set[str] = set()
    if name.endswith("csv"):
        keep = {line.strip() for line in (root / name).read_text().splitlines()}
    else:
        for line in (root / name).read_text().splitlines():
            for seed, near in json.loads(line).items():
                keep |= {seed, *(x[0] for x in near[: int(topk)])}
    return [r["id"] for r in records if r["id"] in keep]


def test_the_published_loader_s_rules_accept_the_files(done: tuple[Path, Path], shared: World, tmp_path: Path) -> None:
    _, out = done
    joint = tmp_path / "src_train_segments.csv"
    joint.write_bytes(shared.index("pool").read_bytes() + shared.index("seeds").read_bytes())
    ids = (out / "ids_k5.csv").read_text().split()
    assert sorted(published_filter("neighbours_k5.jsonl,5", out, joint)) == sorted(ids)
    assert sorted(published_filter("ids_k5.csv", out, joint)) == sorted(ids)
    fewer = published_filter("neighbours_k5.jsonl,2", out, joint)
    table = pq.read_table(out / "neighbours_k5.parquet").to_pandas()
    assert set(fewer) == set(table["seed_id"]) | set(table[table["rank"] <= 2]["neighbour_id"])
    for record in (json.loads(line) for line in (out / "src_augmented_k5.csv").read_text().splitlines()):
        assert (out / "train_root" / record["dir"] / "aclip" / f"{record['id']}.{record['aclip'][0]}").is_file()


def test_the_same_run_elsewhere_is_the_same_bytes(done: tuple[Path, Path], shared: World, tmp_path: Path) -> None:
    _, out = done
    assert contents(run(tmp_path / "elsewhere", shared, f"cache_dir={tmp_path}/other-cache", "num_processes=2")) == (
        contents(out)
    )


def test_a_sweep_s_job_is_the_single_run_s_bytes(done: tuple[Path, Path], shared: World) -> None:
    folder, out = done
    swept = command(folder, "-m", *shared.overrides(), "k=3,5")
    assert swept.returncode == 0, swept.stderr
    assert "to embed" in swept.stderr
    assert "embedding " not in swept.stderr
    jobs = {p.name: p for p in (folder / "outputs" / "sweeps").glob("*/*/*-k*")}
    assert sorted(jobs) == ["0-k3", "1-k5"]
    assert contents(jobs["1-k5"]) == contents(out)


def test_summary_and_manifest(done: tuple[Path, Path], shared: World) -> None:
    _, out = done
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_seeds"] == 6
    assert summary["num_pool"] == summary["num_pool_embedded"] == 40
    table = pq.read_table(out / "neighbours_k5.parquet").to_pandas()
    assert summary["num_neighbours"] == table["neighbour_id"].nunique()
    labels = {str(r["id"]): set(r["labels"]) for s in ("seeds", "pool") for r in shared.records(s)}  # type: ignore[arg-type]
    agreement = np.mean(
        [len(labels[s] & labels[n]) / len(labels[s]) for s, n in zip(table.seed_id, table.neighbour_id, strict=True)]
    )
    assert summary["label_agreement"] == pytest.approx(agreement)
    recall = np.mean(
        [
            len(labels[s] & set().union(*(labels[n] for n in group.neighbour_id))) / len(labels[s])
            for s, group in table.groupby("seed_id")
        ]
    )
    assert summary["label_recall"] == pytest.approx(recall)
    assert summary["failures"] == {"seeds": {}, "pool": {}, "eval": {}}
    assert sum(summary["sample_rates"]["pool"].values()) == 40
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"]["k"] == 5
    for name, digest in manifest["outputs"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert set(manifest["outputs"]) == set(contents(out))
    ids = sorted((out / "ids_k5.csv").read_text().splitlines())
    assert manifest["ids_sha256"] == hashlib.sha256("\n".join(ids).encode()).hexdigest()
    assert str(shared.index("pool")) in manifest["inputs"]


def test_another_index_embeds_only_its_new_clips(shared: World, tmp_path: Path) -> None:
    """A subset, then a superset in another order with one clip more: only that clip is decoded."""
    world = World(tmp_path / "data", shared.checkpoint)
    shutil.copytree(shared.root, world.root)
    pool = world.records("pool")
    world.write("pool", pool[:30])
    base = "report.media_base=https://media.example"  # links to media follow the run's folder
    run(tmp_path, world, base)
    extra = {**pool[0], "id": "extra_00001", "aclip": ["p0.wav"]}
    worlds.write_clip(world.media(extra), 999)
    world.write("pool", [*reversed(pool[:30]), extra])
    again = command(tmp_path, *world.overrides(), "k=5", base)
    assert again.returncode == 0, again.stderr
    assert "pool: 1 to embed, 0 missing, 30 known from earlier runs" in again.stderr
    # The rows are those of a run from nothing.
    assert contents(run_dir(tmp_path)) == contents(run(tmp_path / "fresh", world, base))


def test_a_pool_clip_that_is_a_seed_or_an_eval_clip_is_nobody_s_neighbour(shared: World, tmp_path: Path) -> None:
    world = World(tmp_path / "data", shared.checkpoint)
    shutil.copytree(shared.root, world.root)
    seeds, pool, evaluation = (world.records(s) for s in ("seeds", "pool", "eval"))
    for source in (seeds[0], evaluation[0]):  # the same file under the same id, in the pool
        copy = {**source, "dir": pool[0]["dir"]}
        shutil.copy(world.media(source), world.media(copy))
        pool.insert(3, copy)
    world.write("pool", pool)
    out = run(tmp_path, world)
    found = set(pq.read_table(out / "neighbours_k5.parquet")["neighbour_id"].to_pylist())
    assert not found & {seeds[0]["id"], evaluation[0]["id"]}
    assert [x.split(",")[0] for x in (out / "augmented_k5.csv").read_text().splitlines()].count(seeds[0]["id"]) == 1
    allowed = run(tmp_path, world, "dataset.eval=null")
    assert evaluation[0]["id"] in set(pq.read_table(allowed / "neighbours_k5.parquet")["neighbour_id"].to_pylist())


def test_clips_cut_short_and_streamed_are_embedded_and_what_is_missing_is_said(shared: World, tmp_path: Path) -> None:
    world = World(tmp_path / "data", shared.checkpoint)
    shutil.copytree(shared.root, world.root)
    pool, evaluation = world.records("pool"), world.records("eval")
    expected = {}
    for split, record in (("pool", pool[5]), ("pool", pool[9]), ("eval", evaluation[1])):
        data = world.media(record).read_bytes()
        assert data.startswith(b"fLaC")
        whole, rate = soundfile.read(world.media(record))
        world.media(record).write_bytes(data[: len(data) * 4 // 5])
        expected[record["id"]] = (split, len(whole) / rate)
    streamed = bytearray(world.media(pool[11]).read_bytes())
    streamed[21] &= 0xF0  # the number of samples, which a stream does not know
    streamed[22:26] = bytes(4)
    world.media(pool[11]).write_bytes(streamed)

    out = run(tmp_path, world)
    assert (out / "failures.jsonl").read_text() == ""
    warnings = [json.loads(line) for line in (out / "warnings.jsonl").read_text().splitlines()]
    assert [(w["id"], w["split"]) for w in warnings] == [(i, split) for i, (split, _) in expected.items()]
    for warning in warnings:
        announced, _, got = warning["detail"].removesuffix(" s decoded").partition(" s announced, ")
        seconds = expected[warning["id"]][1]
        assert warning["warning"] == "partial"
        assert float(announced) == pytest.approx(seconds, abs=0.001)
        assert 0.3 * seconds < float(got) < 0.95 * seconds
    assert json.loads((out / "summary.json").read_text())["num_partial"] == 3
    said = "lips that could not be decoded to their end: 3."
    assert said in (out / "report.html").read_text()
    assert f"warning: c{said}" in (out / "run.log").read_text()
    again = run(tmp_path, world, "k=4")  # all from the store
    assert (again / "warnings.jsonl").read_bytes() == (out / "warnings.jsonl").read_bytes()


def test_broken_clips_are_listed_and_the_run_goes_on(shared: World, tmp_path: Path) -> None:
    world = World(tmp_path / "data", shared.checkpoint)
    shutil.copytree(shared.root, world.root)
    pool, seeds = world.records("pool"), world.records("seeds")
    world.media(pool[3]).write_bytes(b"no audio at all")
    world.media(pool[7]).unlink()
    soundfile.write(world.media(pool[8]), np.zeros(100, np.float32), 16000)
    spoilt = np.full((9000, 1), np.nan, np.float32)
    world.media(pool[10]).unlink()
    soundfile.write(world.media(pool[10]), spoilt, 16000, format="WAV", subtype="FLOAT")
    world.media(seeds[2]).write_bytes(b"")
    refused = command(tmp_path, *world.overrides(), "k=5")
    assert refused.returncode == 1
    assert "max_missing=0.03" in refused.stderr
    assert "labels that lost most" in refused.stderr
    refused = command(tmp_path, *world.overrides(), "k=5", "max_missing=0.03")
    assert refused.returncode == 1
    assert "max_failures=0.17" in refused.stderr
    out = run(tmp_path, world, "max_missing=0.03", "max_failures=0.2")
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [(f["split"], f["id"], f["reason"]) for f in failures] == [
        ("seeds", seeds[2]["id"], "undecodable"),
        ("pool", pool[3]["id"], "undecodable"),
        ("pool", pool[7]["id"], "missing"),
        ("pool", pool[8]["id"], "too_short"),
        ("pool", pool[10]["id"], "not_finite"),
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_seeds_without_embedding"] == 1
    assert summary["failures"]["pool"] == {"missing": 1, "not_finite": 1, "too_short": 1, "undecodable": 1}
    assert seeds[2]["id"] not in (out / "ids_k5.csv").read_text().split()
    assert len((out / "neighbours_k5.jsonl").read_text().splitlines()) == 5
    # What was missing is looked for again; what was unreadable only if asked.
    shutil.copy(shared.media(pool[7]), world.media(pool[7]))
    shutil.copy(shared.media(pool[3]), world.media(pool[3]))
    again = command(tmp_path, *world.overrides(), "k=5", "max_failures=0.2")
    assert "pool: 1 to embed" in again.stderr
    again = command(tmp_path, *world.overrides(), "k=5", "max_failures=0.2", "retry_failures=true")
    assert "pool: 3 to embed" in again.stderr
    summary = json.loads((run_dir(tmp_path) / "summary.json").read_text())
    assert summary["failures"]["pool"] == {"not_finite": 1, "too_short": 1}
