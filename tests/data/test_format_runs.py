"""A whole run from every `dataset.format`: the same embeddings and neighbours as from the VIP-ANT layout."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from balance import pipeline
from balance.config import Settings
from balance.curation.config import AugmentConfig, Copies, Leaks
from balance.data.config import DatasetConfig, Format
from balance.encoders.config import EncoderConfig
from balance.errors import UserError
from balance.prepared import Prepared
from balance.results.explain import why
from balance.results.verification import verify
from tests import worlds

K = 4
OWN_INDEX = {
    Format.vipant: "src_augmented_k4.csv",
    Format.ast_json: "augmented_k4.json",
    Format.parquet: "augmented_k4.parquet",
    Format.webdataset: "augmented_k4.tar.csv",
    Format.segments: "augmented_k4.segments.csv",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> worlds.World:
    return worlds.make(tmp_path_factory.mktemp("world"), seeds=4, pool=15, evaluation=2)


def as_ast_json(world: worlds.World, root: Path, name: str, records: list[dict]) -> None:
    data = [{"wav": str(world.media(r)), "labels": ",".join(r["labels"])} for r in records]
    (root / f"{name}.json").write_text(json.dumps({"data": data}))
    rows = [f"{i},{label},Name {i}\n" for i, label in enumerate(worlds.LABELS)]
    (root / "class_labels_indices.csv").write_text("index,mid,display_name\n" + "".join(rows))


def as_parquet(world: worlds.World, root: Path, name: str, records: list[dict]) -> None:
    audio = [{"bytes": world.media(r).read_bytes(), "path": None} for r in records]
    columns = {
        "video_id": [r["id"] for r in records],
        "audio": pa.array(audio, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "labels": pa.array([r["labels"] for r in records], type=pa.list_(pa.string())),
    }
    (root / name).mkdir()
    for part, rows in enumerate((slice(0, 1), slice(1, None))):
        table = pa.table({key: column[rows] for key, column in columns.items()})
        pq.write_table(table, root / name / f"part-{part}.parquet", row_group_size=3)


def as_webdataset(world: worlds.World, root: Path, name: str, records: list[dict]) -> None:
    with tarfile.open(root / f"{name}.tar", "w") as tar:
        for r in records:
            for suffix, data in (
                ("json", json.dumps({"labels": r["labels"]}).encode()),
                (world.media(r).suffix[1:], world.media(r).read_bytes()),
            ):
                info = tarfile.TarInfo(f"{r['id']}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def as_segments(world: worlds.World, root: Path, name: str, records: list[dict]) -> None:
    lines = [f'{r["id"]}, 0.000, 10.000, "{",".join(r["labels"])}"\n' for r in records]
    (root / f"{name}.csv").write_text("# a\n# b\n# YTID\n" + "".join(lines))


WRITERS = {
    Format.ast_json: as_ast_json,
    Format.parquet: as_parquet,
    Format.webdataset: as_webdataset,
    Format.segments: as_segments,
}


def settings(world: worlds.World, root: Path, cache: Path, format: Format) -> Settings:
    media = root if format.in_containers else world.root
    return Settings(
        k=K,
        dataset=DatasetConfig(name=format.value, format=format, root=str(root), media=str(media)),
        encoder=EncoderConfig(checkpoint=str(world.checkpoint)),
        num_workers=1,
        cache_dir=str(cache),
    )


def run(world: worlds.World, root: Path, folder: Path, format: Format) -> tuple[Prepared, list[dict]]:
    chosen = settings(world, root, folder / "cache", format)
    (folder / "run").mkdir()
    pipeline.run(chosen, folder / "run")
    with (folder / "run" / f"augmented_k{K}.csv").open(newline="") as file:
        return pipeline.prepare(chosen, pipeline.Kept()), list(csv.DictReader(file))


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory) -> tuple[Prepared, list[dict]]:
    return run(world, world.root, tmp_path_factory.mktemp("vipant"), Format.vipant)


@pytest.mark.parametrize("format", list(WRITERS))
def test_same_embeddings_and_neighbours(world, reference, tmp_path, format):
    root = tmp_path / "data"
    root.mkdir()
    for split, name in worlds.SPLITS.items():
        WRITERS[format](world, root, name, world.records(split))
    prepared, rows = run(world, root, tmp_path, format)
    want, want_rows = reference
    for split in worlds.SPLITS:
        ours, theirs = prepared.embedded.splits[split], want.embedded.splits[split]
        assert ours.index.ids.to_pylist() == theirs.index.ids.to_pylist()
        size = len(theirs.embedded)
        np.testing.assert_array_equal(ours.vectors.read(0, size), theirs.vectors.read(0, size))
        assert ours.facts.pcm_sha1.tolist() == theirs.facts.pcm_sha1.tolist()
    np.testing.assert_array_equal(prepared.neighbours.pool_rows, want.neighbours.pool_rows)
    np.testing.assert_array_equal(prepared.neighbours.similarities, want.neighbours.similarities)
    columns = [column for column in rows[0] if column != "audio"]
    assert [[row[c] for c in columns] for row in rows] == [[row[c] for c in columns] for row in want_rows]
    if format is Format.ast_json:
        assert prepared.embedded.ontology == {label: f"Name {i}" for i, label in enumerate(worlds.LABELS)}
        assert "Name 0" in (tmp_path / "run" / "report.html").read_text()
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert OWN_INDEX[format] in written
    assert f"augmented_k{K}_weight.csv" in written
    assert not any(name.startswith("src_") for name in written)
    assert ours.index.lines is None
    ids = {split: set(part.index.ids.to_pylist()) for split, part in prepared.embedded.splits.items()}
    left = sorted(ids["pool"] - {row["id"] for row in rows})[0]
    assert why(str(tmp_path / "run"), left) == [f"out: {left} is in the pool, but in no seed's top {K}"]
    kept_out = sorted(ids["eval"])[0]
    assert why(str(tmp_path / "run"), kept_out) == [f"out: {kept_out} is listed for evaluation only"]


@pytest.mark.parametrize("spelling", ["./{}", "{}/", "x/../{}", "{root}/{}"])
def test_folders_of_an_index_in_other_spellings(world, reference, tmp_path, spelling):
    """The same run, and a train_root in which every line's file is found."""
    root = tmp_path / "data"
    root.mkdir()
    for split, name in worlds.SPLITS.items():
        records = [{**r, "dir": spelling.format(r["dir"], root=world.root)} for r in world.records(split)]
        (root / f"src_{name}.csv").write_text("".join(json.dumps(r) + "\n" for r in records))
    chosen = settings(world, root, tmp_path / "cache", Format.vipant)
    (tmp_path / "run").mkdir()
    pipeline.run(chosen, tmp_path / "run")
    with (tmp_path / "run" / f"augmented_k{K}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == reference[1]
    for row in rows:
        assert (tmp_path / "run" / "train_root" / row["audio"]).is_file()


def test_the_media_alone_will_do_where_they_are_the_index(world, tmp_path):
    for split, name in worlds.SPLITS.items():
        as_webdataset(world, tmp_path, name, world.records(split))
    chosen = settings(world, tmp_path, tmp_path / "cache", Format.webdataset)
    chosen.dataset.root = None
    assert len(pipeline.prepare(chosen, pipeline.Kept()).seeds.index) == 4
    chosen.dataset.format = Format.vipant
    with pytest.raises(UserError, match=r"dataset\.root is not given"):
        pipeline.prepare(chosen, pipeline.Kept())


@pytest.mark.parametrize("null", ["root", "labels"])
def test_a_run_without_root_or_labels_can_be_questioned(world, tmp_path, null):
    """The manifest then holds null, which is no damage."""
    for split, name in worlds.SPLITS.items():
        as_parquet(world, tmp_path, name, world.records(split))
    chosen = settings(world, tmp_path, tmp_path / "cache", Format.parquet)
    if null == "root":
        chosen.dataset.root = None
    else:
        chosen.dataset.columns.labels = None
    (tmp_path / "run").mkdir()
    pipeline.run(chosen, tmp_path / "run")
    (line,) = verify(str(tmp_path / "run"))
    assert "follow from the embeddings" in line
    seed = world.records("seeds")[0]["id"]
    assert why(str(tmp_path / "run"), seed)[0] == f"in: {seed} is a seed"


def write_vectors(root: Path, name: str, ids: list[str], suffix: str | None = None) -> None:
    """Seeded vectors as .npy with ids, or as a folder of {id}{suffix}."""
    vectors = np.random.default_rng(len(ids)).normal(size=(len(ids), 8)).astype(np.float32)
    if suffix is None:
        np.save(root / f"{name}.npy", vectors)
        (root / f"{name}.ids.txt").write_text("".join(f"{id}\n" for id in ids))
        return
    (root / name).mkdir()
    for id, vector in zip(ids, vectors, strict=True):
        np.savez(root / name / f"{id}{suffix}", v=vector)


SPOKEN = [f"fsdd_{digit}_{who}_{take}" for digit in range(4) for who in ("theo", "jackson") for take in range(3)]
VIDEOS = [f"pool_aaaa-{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("pool", "suffix", "evaluation", "taken"),
    [
        ([f"{VIDEOS[0]}.wav", f"Y{VIDEOS[1]}.wav", *VIDEOS[2:]], None, VIDEOS[:2], 2),
        (VIDEOS, ".p0.npz", VIDEOS[:2], 2),
        (VIDEOS, None, [f"unbal/{VIDEOS[0]}_30.000", f"id_{VIDEOS[1]}", f"{VIDEOS[2]}.p0.mp3"], 3),
        (SPOKEN[1:], None, SPOKEN[:1], 0),  # fsdd_0_theo_1 is another clip
        (SPOKEN, None, [SPOKEN[5], f"{SPOKEN[6]}.wav"], 2),
    ],
)
def test_what_the_decontamination_by_id_takes(tmp_path, caplog, pool, suffix, evaluation, taken):
    caplog.set_level("INFO")
    root = tmp_path / "data"
    root.mkdir()
    write_vectors(root, "seeds", ["seed_aaaa-0", "seed_aaaa-1"])
    write_vectors(root, "pool", pool, suffix)
    (root / "eval.ids.txt").write_text("".join(f"{id}\n" for id in evaluation))
    chosen = Settings(
        k=2,
        dataset=DatasetConfig(
            format=Format.embeddings, root=str(root), balanced="seeds", unbalanced="pool", eval="eval"
        ),
        cache_dir=str(tmp_path / "cache"),
    )
    (tmp_path / "run").mkdir()
    pipeline.run(chosen, tmp_path / "run")
    decisions = pq.read_table(tmp_path / "run" / "decisions.parquet").to_pylist()
    assert [row["rule"] for row in decisions] == ["leak_id"] * taken
    assert {row["by"] for row in decisions} == (set(evaluation) if taken else set())
    said = [record.getMessage() for record in caplog.records if "cannot be chosen" in record.getMessage()]
    assert len(said) == (taken > 0)
    for row in decisions:
        assert f"{taken} pool clips cannot be chosen" in said[0]
        assert f"{row['id']} = {row['by']}" in said[0]


def test_folders_without_labels_give_the_same_neighbours(world, reference, tmp_path, caplog):
    root = tmp_path / "data"
    for split in worlds.SPLITS:
        (root / split).mkdir(parents=True)
        for number, record in enumerate(world.records(split)):
            path = world.media(record)
            shutil.copy(path, root / split / f"{number:03d}{path.suffix}")
    chosen = Settings(
        k=K,
        dataset=DatasetConfig(
            name="folder", format=Format.folder, root=str(root), balanced="seeds", unbalanced="pool", eval="eval"
        ),
        encoder=EncoderConfig(checkpoint=str(world.checkpoint)),
        num_workers=1,
        cache_dir=str(tmp_path / "cache"),
    )
    folder = tmp_path / "run"
    folder.mkdir()
    caplog.set_level("INFO")
    pipeline.run(chosen, folder)
    _, want_rows = reference
    with (folder / f"augmented_k{K}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {
        r["id"]: f"{split}/{number:03d}" for split in worlds.SPLITS for number, r in enumerate(world.records(split))
    }
    assert [row["id"] for row in rows] == [numbers[row["id"]] for row in want_rows]
    assert [row["best_similarity"] for row in rows] == [row["best_similarity"] for row in want_rows]
    assert (folder / f"augmented_k{K}.files.txt").read_text().splitlines() == [row["audio"] for row in rows]
    assert json.loads((folder / "summary.json").read_text())["label_agreement"] is None
    left_out = "No clip has labels: label agreement and recall, labels by rank and label balance are left out."
    assert left_out in (folder / "report.html").read_text()
    for split in ("seeds", "pool", "eval"):
        assert f"{root / split}: no class folders in it: what needs labels is left out" in caplog.text
    assert "neighbour rows follow" in verify(str(folder))[0]
    assert not list(folder.glob("*weight*"))


def test_members_that_cannot_be_decoded_are_named(world, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for split, name in worlds.SPLITS.items():
        as_webdataset(world, root, name, world.records(split))
    shard = root / f"{worlds.SPLITS['pool']}.tar"
    with tarfile.open(shard) as tar:
        member = next(m for m in tar if not m.name.endswith(".json"))
    with shard.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(b"\0" * member.size)
    chosen = settings(world, root, tmp_path / "cache", Format.webdataset)
    chosen.max_failures = 0.1
    (failure,) = pipeline.prepare(chosen, pipeline.Kept()).embedded.failures
    assert failure.path == f"{shard.name}: {member.name}"
    assert (failure.split, failure.reason) == ("pool", "undecodable")
    assert str(tmp_path) not in failure.detail


def test_own_vectors_give_the_neighbours_of_the_run(world, reference, tmp_path):
    """The embeddings of the first run, given as files; labels and lines from the indexes beside them."""
    prepared, want_rows = reference
    root = tmp_path / "data"
    root.mkdir()
    for split, name in worlds.SPLITS.items():
        part = prepared.embedded.splits[split]
        np.save(root / f"{name}.npy", part.vectors.read(0, len(part.embedded)))
        (root / f"{name}.ids.txt").write_text(
            "".join(f"{id}\n" for id in part.index.take(part.embedded).ids.to_pylist())
        )
        (root / f"{name}.csv").write_bytes(world.index(split).read_bytes())
    own = Settings(
        k=K,
        dataset=DatasetConfig(name="own", format=Format.embeddings, root=str(root)),
        num_workers=1,
        cache_dir=str(tmp_path / "cache"),
    )
    (tmp_path / "run").mkdir()
    pipeline.run(own, tmp_path / "run")
    with (tmp_path / "run" / f"augmented_k{K}.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == want_rows
    assert (tmp_path / "run" / f"src_augmented_k{K}.csv").exists()
    inputs = json.loads((tmp_path / "run" / "manifest.json").read_text())["inputs"]
    for name in worlds.SPLITS.values():
        for path in (root / f"{name}.ids.txt", root / f"{name}.csv"):
            assert inputs[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "neighbour rows follow" in verify(str(tmp_path / "run"))[0]
    pool = root / f"{worlds.SPLITS['pool']}.npy"
    np.save(pool, np.load(pool)[:, :-1])  # other vectors, of another dimension
    with pytest.raises(UserError, match=r"the vectors of dataset.unbalanced=.* are no longer those"):
        verify(str(tmp_path / "run"))


def test_own_vectors_with_an_index_are_compared_by_sound(tmp_path):
    """The decisions are those of the run that made the vectors; evaluation clips are heard without vectors."""
    world = worlds.make(tmp_path / "world", seeds=4, pool=15, evaluation=2)
    seeds, pool, evaluation = (world.records(split) for split in worlds.SPLITS)
    samples, rate = soundfile.read(world.media(evaluation[0]), dtype="float32")
    soundfile.write(world.media(pool[3]), samples, rate)
    soundfile.write(world.media(pool[8]), 0.4 * samples, rate)
    shutil.copy(world.media(seeds[0]), world.media(pool[0]))
    augment = AugmentConfig(leaks=Leaks.acoustic, copies=Copies.exact)

    def decisions(chosen: Settings, name: str) -> list[dict]:
        chosen.augment = augment
        (tmp_path / name).mkdir()
        pipeline.run(chosen, tmp_path / name)
        return pq.read_table(tmp_path / name / "decisions.parquet").to_pylist()

    made_by = settings(world, world.root, tmp_path / "cache", Format.vipant)
    expected = decisions(made_by, "made_by")
    assert {(row["id"], row["rule"]) for row in expected} == {
        (pool[3]["id"], "leak_exact"),
        (pool[8]["id"], "leak_acoustic"),
        (pool[0]["id"], "copy_exact"),
    }
    prepared = pipeline.prepare(made_by, pipeline.Kept())
    root = tmp_path / "own"
    root.mkdir()
    for split, name in worlds.SPLITS.items():
        part = prepared.embedded.splits[split]
        if split != "eval":
            np.save(root / f"{name}.npy", part.vectors.read(0, len(part.embedded)))
            (root / f"{name}.ids.txt").write_text("".join(f"{id}\n" for id in part.index.ids.to_pylist()))
        (root / f"{name}.csv").write_bytes(world.index(split).read_bytes())
    own = settings(world, root, tmp_path / "own-cache", Format.embeddings)
    assert decisions(own, "of_own") == expected
    world.media(pool[5]).write_bytes(b"no sound")
    with pytest.raises(UserError, match=r"(?s)1 of the 15 pool clips could not be read .* type max_failures=0.07"):
        decisions(own, "unreadable")
    (root / "eval_segments.csv").unlink()
    (root / "eval_segments.ids.txt").write_text("".join(f"{r['id']}\n" for r in evaluation))
    with pytest.raises(UserError, match=r"no index \(X.csv\) beside the vectors names the files"):
        decisions(own, "ids_alone")
