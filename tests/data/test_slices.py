"""Clips that are stretches of longer files: ids, keys, what counts as the same sound, and whole runs."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from balance.audio import decode
from balance.curation.config import AugmentConfig
from balance.data import media
from balance.data.build_index import build
from balance.data.config import ColumnsConfig, DatasetConfig, Format, Ids, IndexConfig
from balance.data.formats import read_split
from balance.data.slices import same_sound
from balance.data.vipant_index import read_index
from balance.errors import UserError
from balance.preflight import check_indexes
from balance.records import Index, Labels
from tests import worlds
from tests.command import command, run_dir

RATE = 16_000


def index(*clips: tuple[str, str]) -> Index:
    ids, paths = zip(*clips, strict=True)
    return Index("x", pa.array(ids), pa.array(paths), Labels.of([()] * len(ids)))


@pytest.mark.parametrize(
    ("key", "stretch"),
    [
        ("a/x.mp3#t=0.000,10.000", (0.0, 10.0)),
        ("x.wav#t=3,4.5", (3.0, 4.5)),
        ("x.wav", None),
        ("x#t=1.wav", None),
        ("x.wav#t=a,b", None),
    ],
)
def test_keys(key: str, stretch: tuple[float, float] | None) -> None:
    assert media.stretch_s(key) == stretch
    assert media.container("vipant", key) == (key.partition("#")[0] if stretch else key)


def test_overlapping_stretches_of_a_file_are_the_same_sound() -> None:
    others = index(("v_10", "v.mp3#t=10,20"), ("w_0", "b/w.mp3#t=0,5"), ("whole", "u.mp3"))
    clips = index(
        ("v_0", "v.mp3#t=0,10"),  # ends where the other begins
        ("v_19.5", "v.mp3#t=19.5,30"),
        ("w_4", "elsewhere/w.flac#t=4,8"),  # the same video in another folder
        ("u_3", "u.mp3#t=3,4"),  # a stretch of a clip that is a whole file
        ("other_10", "other.mp3#t=10,20"),
    )
    assert same_sound(clips, others, Ids.whole).tolist() == [-1, 0, 1, 2, -1]
    assert same_sound(others, clips, Ids.whole).tolist() == [1, 2, 3]
    named = index(("Yabcdefghijk_30", "a.mp3#t=30,40"))
    assert same_sound(named, index(("abcdefghijk_35.000", "b.mp3#t=35.000,45.000")), Ids.youtube).tolist() == [0]
    assert same_sound(named, index(("abcdefghijk_45", "b.mp3#t=45,55")), Ids.youtube).tolist() == [-1]


def test_whole_files_are_compared_by_their_ids() -> None:
    clips, others = index(("Yabcdefghijk_30", "a"), ("b", "b")), index(("abcdefghijk", "c"), ("b.wav", "d"))
    assert same_sound(clips, others, Ids.youtube).tolist() == [0, 1]
    assert same_sound(clips, others, Ids.whole).tolist() == [-1, 1]
    assert same_sound(clips, others, None).tolist() == [-1, -1]


def test_seeds_in_eval_are_named() -> None:
    seeds, pool = index(("Yabcdefghijk", "a"), ("bcdefghijkl_1", "b"), ("other", "c")), index(("p", "p"))
    evaluation = index(("abcdefghijk_30", "d"), ("Ybcdefghijkl", "e"))
    found = {"seeds": seeds, "pool": pool, "eval": evaluation}
    with pytest.raises(UserError, match=r"2 seeds .*Yabcdefghijk, bcdefghijkl_1"):
        check_indexes(1, AugmentConfig(), found, Ids.youtube)
    check_indexes(1, AugmentConfig(), found, Ids.whole)
    cut = {"seeds": index(("v_1", "v.mp3#t=1,2")), "pool": pool, "eval": index(("v_1.5", "v.mp3#t=1.5,9"))}
    with pytest.raises(UserError, match=r"1 seeds .*v_1"):
        check_indexes(1, AugmentConfig(), cut, Ids.whole)


def record(id: str, bos: str | None, eos: str | None, suffix: str = "flac") -> dict[str, object]:
    times = {name: value for name, value in (("bos", bos), ("eos", eos)) if value is not None}
    return {"id": id, "dir": "a", "aclip": [f"p0.{suffix}"], "frame": [], **times, "labels": ["/m/a"]}


def write(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def test_an_index_of_several_stretches_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "src_x.csv", record("v", "0.000", "1.5"), record("v", "1", "3"), record("w", "0.0", "1"))
    found = read_index(path, slices=True)
    assert found.ids.to_pylist() == ["v_0.000", "v_1", "w_0.0"]
    assert found.paths.to_pylist() == [
        "a/aclip/v.p0.flac#t=0.000,1.5",
        "a/aclip/v.p0.flac#t=1,3",
        "a/aclip/w.p0.flac#t=0.0,1",
    ]
    assert found.lines is not None
    assert [json.loads(line)["id"] for line in found.lines.to_pylist()] == ["v", "v", "w"]
    with pytest.raises(UserError, match="more than once: v"):
        read_index(path)


@pytest.mark.parametrize("times", [("1", None), (None, None), ("2", "2"), ("3", "1"), ("-1", "2"), ("1", "nan")])
def test_times_that_are_no_stretch(times: tuple[str | None, str | None], tmp_path: Path) -> None:
    path = write(tmp_path / "src_x.csv", record("v", "0", "1"), record("w", *times))
    with pytest.raises(UserError, match=r"line 2: bos .*two times in seconds"):
        read_index(path, slices=True)


def test_a_format_without_times_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset\.format=parquet has none"):
        DatasetConfig(format=Format.parquet, slices=True)


def test_an_official_list_of_several_segments_per_video(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('v, 0.000, 10.000, "/m/a"\nv, 5.000, 15.000, "/m/b"\n')
    for name in ("v.m4a", "v_5_15.wav"):  # the cut piece is not what the times are seconds of
        (tmp_path / name).touch()
    found = read_split(Format.segments, "l", root=tmp_path, media=tmp_path, columns=ColumnsConfig(), slices=True)
    assert found.ids.to_pylist() == ["v_0.000", "v_5.000"]
    assert found.paths.to_pylist() == ["v.m4a#t=0.000,10.000", "v.m4a#t=5.000,15.000"]


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings of 30 s, one of 3 s; seeds, pool and eval are stretches of them."""
    root = tmp_path_factory.mktemp("slices")
    worlds.write_checkpoint(root / "tiny.pth")
    (root / "a" / "aclip").mkdir(parents=True)
    for number, (name, seconds) in enumerate((("u", 30), ("v", 30), ("w", 30), ("short", 3))):
        rng = np.random.default_rng(number)
        samples = 0.1 * rng.standard_normal((seconds * RATE, 1 + number % 2)).astype(np.float32)
        soundfile.write(root / "a" / "aclip" / f"{name}.p0.flac", samples, RATE)
    write(root / "src_seeds.csv", record("u", "0.000", "2.000"), record("u", "1.000", "3.000"))
    write(
        root / "src_pool.csv",
        record("u", "2.500", "4.000"),  # overlaps a seed
        record("v", "0.000", "2.000"),
        record("v", "1.500", "3.500"),
        record("v", "20.000", "22.000"),
        record("w", "5.000", "7.000"),  # overlaps an evaluation clip
        record("w", "8.000", "10.000"),  # does not
        record("short", "2.000", "4.000"),  # the file ends
        record("short", "10.000", "12.000"),  # nothing there
    )
    write(root / "src_eval.csv", record("w", "6.000", "8.000"))
    return root


def run(root: Path, folder: Path, *more: str) -> Path:
    folder.mkdir()
    splits = ("dataset.balanced=seeds", "dataset.unbalanced=pool", "dataset.eval=eval", "dataset.slices=true")
    done = command(
        folder,
        f"dataset.root={root}",
        f"encoder.checkpoint={root / 'tiny.pth'}",
        *splits,
        "k=3",
        "max_failures=0.2",
        *more,
    )
    assert done.returncode == 0, done.stderr
    return run_dir(folder)


def test_a_run_of_stretches(sliced: Path, tmp_path: Path) -> None:
    folder = run(sliced, tmp_path / "run", "report.quality=true")
    rows = list(csv.DictReader((folder / "augmented_k3.csv").read_text().splitlines()))
    assert [row["id"] for row in rows if row["source"] == "seed"] == ["u_0.000", "u_1.000"]
    chosen = {row["id"]: row["audio"] for row in rows if row["source"] == "neighbour"}
    assert chosen.keys() <= {"v_0.000", "v_1.500", "v_20.000", "w_8.000", "short_2.000"}
    assert all(path == f"a/aclip/{id.split('_')[0]}.p0.flac#t={path.split('=')[1]}" for id, path in chosen.items())
    failures = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    assert [(f["id"], f["reason"]) for f in failures] == [("short_10.000", "too_short")]
    assert failures[0]["detail"] == "the file ends before 10.000 s, where the stretch begins"
    warnings = [json.loads(line) for line in (folder / "warnings.jsonl").read_text().splitlines()]
    assert [(w["id"], w["detail"]) for w in warnings] == [
        ("short_2.000", "2.000 s announced, 1.000 s decoded: the file ends at 3.000 s")
    ]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["num_pool_eligible"], summary["num_leaks"]) == (5, 1)
    assert {row["channels"] for row in rows} == {"1", "2"}
    assert all(7500 < float(row["bandwidth_hz"]) <= 8000 for row in rows)  # white noise at 16 kHz
    assert "quality of the sound by split" in (folder / "report.html").read_text()
    why = command(tmp_path / "run", str(folder), rows[-1]["id"], module="balance.why")
    assert why.returncode == 0, why.stderr
    links = [line for line in (folder / "report.html").read_text().split('"') if line.endswith("#t=0.000,2.000")]
    assert links
    assert not [line for line in links if "%23" in line]


def test_a_stretch_gives_the_embedding_of_its_own_file(sliced: Path, tmp_path: Path) -> None:
    """Cut with soundfile and embedded as whole files, the same clips have the same vectors and facts."""
    run(sliced, tmp_path / "run")
    cut = tmp_path / "cut"
    (cut / "a" / "aclip").mkdir(parents=True)
    shutil.copy(sliced / "tiny.pth", cut)
    for split in ("seeds", "pool", "eval"):
        records = []
        for line in (sliced / f"src_{split}.csv").read_text().splitlines():
            one = json.loads(line)
            start, stop = (round(float(one[name]) * RATE) for name in ("bos", "eos"))
            samples, _ = soundfile.read(sliced / "a" / "aclip" / f"{one['id']}.p0.flac", start=start, stop=stop)
            if len(samples):
                one["id"] = f"{one['id']}_{one['bos']}"
                soundfile.write(cut / "a" / "aclip" / f"{one['id']}.p0.flac", samples, RATE)
                records.append(one)
        write(cut / f"src_{split}.csv", *records)
    run(cut, tmp_path / "whole", "dataset.slices=false")
    tables = []
    for folder in (tmp_path / "run", tmp_path / "whole"):
        parts = sorted((folder / "outputs" / "cache" / "embeddings").glob("*/part-*.arrow"))
        rows = [row for part in parts for row in pa.ipc.open_file(str(part)).read_all().to_pylist()]
        tables.append({row.pop("id"): row for row in rows})
    assert tables[0].keys() == tables[1].keys()
    for id, row in tables[0].items():
        assert row.pop("path").partition("#")[0] == f"a/aclip/{id.split('_')[0]}.p0.flac"
        tables[1][id].pop("path")
        assert row == tables[1][id]


def test_training_hears_the_stretch(sliced: Path) -> None:
    from balance.training.dataset import ClipDataset, load_index

    clips = ClipDataset(load_index(sliced / "src_pool.csv", slices=True), sliced)
    expected, _ = soundfile.read(
        sliced / "a/aclip/v.p0.flac", start=24_000, stop=56_000, dtype="float32", always_2d=True
    )
    example = clips[2]
    assert example is not None
    assert example.id == "v_1.500"
    np.testing.assert_allclose(example.audio.numpy(), expected[:, 0] - expected.mean(), atol=1e-6)
    assert decode.load(
        sliced / "a/aclip/v.p0.flac", max_frames=1000, zero_mean=True, stretch_s=(1.5, 3.5)
    ).num_samples == len(expected)


def test_balance_index_takes_several_segments_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('v, 0.000, 10.000, "/m/a"\nv, 5.000, 15.000, "/m/b"\n')
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "v.m4a").touch()
    config = IndexConfig(segments=["l.csv"], media=str(tmp_path / "m"), out=str(tmp_path / "o"), slices=True)
    config.segments = [str(tmp_path / "l.csv")]
    said = list(build(config))
    assert "dataset.slices=true" in said[-1]
    found = read_index(tmp_path / "o" / "src_l.csv", slices=True)
    assert found.ids.to_pylist() == ["v_0.000", "v_5.000"]
    assert {(tmp_path / "o" / media.without_stretch(path)).resolve() for path in found.paths.to_pylist()} == {
        tmp_path / "m" / "v.m4a"
    }
