"""`train_root` by the published loader's rules."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
import soundfile

from balance.data.vipant_index import read_index
from balance.results.train_root import write_train_root
from tests import four_clips
from tests.four_clips import CLIPS


@pytest.fixture
def root(tmp_path) -> Path:
    return four_clips.write(tmp_path / "data")


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
    (run / "neighbours_k2.jsonl").write_text(
        json.dumps({"--PJHxphWEs": [["0123456789_", 0.5], ["a_b-c_d-e_f", 0.25]]}) + "\n"
    )
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


def test_folders_written_in_other_ways(root, tmp_path):
    """The lines keep their `dir`, and the published loader finds the files by it."""
    records = [json.loads(line) for line in (root / "src_X.csv").read_text().splitlines()]
    for run, dirs in enumerate(
        [(".//./all_0_2", "./all_0_2", "./", "all_0_2/../all_2_4"), ("all_0_2/.", "all_0_2//", ".", "./all_2_4/")]
    ):
        folder = tmp_path / str(run)
        folder.mkdir()
        text = "".join(json.dumps(r | {"dir": dir}) + "\n" for r, dir in zip(records, dirs, strict=True))
        (folder / "src_X.csv").write_text(text)
        paths = [read_index(folder / "src_X.csv", root).paths]
        train_root = write_train_root(folder, root=root, media=root, paths=paths)
        files = published_loader(train_root, "src_X")
        assert [Path(file).name.split(".")[0] for file in files] == [clip[0] for clip in CLIPS]
        for file in files:
            assert soundfile.info(file).frames > 0


def test_what_fails_leaves_nothing_behind(root, tmp_path):
    """A folder of media called like a file of the run would do, or a full disk: here a name that cannot be linked."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="File exists"):
        write_train_root(tmp_path, root=root, media=root, paths=[pa.array(["../aclip/x.p0.wav"])])
    assert sorted(tmp_path.rglob("*")) == before
