"""Every `dataset.format` from real files: the same clips, labels and samples as the VIP-ANT layout of that audio."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from balance.audio import decode
from balance.data import media
from balance.data.config import ColumnsConfig, Format
from balance.data.containers import find, relative
from balance.data.formats import read_split, write_index
from balance.data.locate import NoSuchIndex
from balance.data.vipant_index import index_weights
from balance.errors import UserError

COLUMNS = ColumnsConfig()
NAMES = {"id": "video_id", "audio": "audio", "labels": "labels"}
CLIPS = [  # id, suffix, subtype, sample rate, channels, labels
    ("--PJHxphWEs", "flac", "PCM_16", 16_000, 1, ["/m/b", "/m/a"]),
    ("a_b_30000_cd", "mp3", "MPEG_LAYER_III", 44_100, 2, ["/m/a"]),
    ("Y1234567890", "wav", "FLOAT", 8_000, 2, ["/m/c", "/m/a"]),
    ("zz9876543_1", "mp3", "MPEG_LAYER_III", 22_050, 1, ["/m/b"]),
]
LABELS = {id: tuple(labels) for id, *_, labels in CLIPS}


def make_audio(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(3)
    files = {}
    for id, suffix, subtype, rate, channels, _ in CLIPS:
        files[id] = folder / f"{id}.{suffix}"
        samples = rng.uniform(-0.5, 0.5, size=(rate, channels)).astype(np.float32)
        soundfile.write(files[id], samples, rate, subtype=subtype)
    return files


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_vipant(root: Path, files: dict[str, Path]) -> None:
    (root / "chunk" / "aclip").mkdir(parents=True)
    with (root / "src_X.csv").open("w") as out:
        for id, suffix, *_, labels in CLIPS:
            shutil.copy(files[id], root / "chunk" / "aclip" / f"{id}.p0.{suffix}")
            record = {"id": id, "dir": "chunk", "aclip": [f"p0.{suffix}"], "labels": labels}
            out.write(json.dumps(record) + "\n")


def make_ast_json(root: Path, files: dict[str, Path]) -> None:
    data = [
        {"wav": str(files[id]) if i % 2 else f"audio/{files[id].name}", "labels": ",".join(labels), "extra": i}
        for i, (id, *_, labels) in enumerate(CLIPS)
    ]
    (root / "X.json").write_text(json.dumps({"data": data}))
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/a,"A, a"\n1,/m/b,B\n2,/m/c,C\n3,/m/unused,D\n'
    )


def parquet_table(files: dict[str, Path], clips) -> pa.Table:
    audio_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": files[c[0]].read_bytes(), "path": files[c[0]].name} for c in clips]
    return pa.table(
        {
            "video_id": [c[0] for c in clips],
            "audio": pa.array(cells, type=audio_type),
            "labels": [c[5] for c in clips],
            "human_labels": [["some name"] for _ in clips],
        }
    )


def make_parquet(root: Path, files: dict[str, Path]) -> None:
    pq.write_table(parquet_table(files, CLIPS[:3]), root / "X-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(parquet_table(files, CLIPS[3:]), root / "X-00001-of-00002.parquet")


def make_webdataset(root: Path, files: dict[str, Path]) -> None:
    (root / "X").mkdir()
    for shard, clips in enumerate((CLIPS[:2], CLIPS[2:])):
        with tarfile.open(root / "X" / f"shard-{shard:05d}.tar", "w") as tar:
            for id, suffix, *_, labels in clips:
                name = f"{id}.p0.{suffix}" if id == "zz9876543_1" else f"{id}.{suffix}"  # VIP-ANT's names too
                add_member(tar, name, files[id].read_bytes())
                add_member(tar, f"{id}.json", json.dumps({"labels": labels}).encode())
                add_member(tar, f"{id}.txt", b"something else")


def make_segments(root: Path, files: dict[str, Path]) -> None:
    with (root / "X.csv").open("w") as out:
        out.write("# Segments csv created\n# num_ytids=5\n# YTID, start_seconds, end_seconds, positive_labels\n")
        for id, *_, labels in CLIPS:
            out.write(f'{id}, 30.000, 40.000, "{",".join(labels)}"\n')
        out.write('notthere_00, 0.000, 10.000, "/m/a"\n')


MAKERS = {
    Format.vipant: make_vipant,
    Format.ast_json: make_ast_json,
    Format.parquet: make_parquet,
    Format.webdataset: make_webdataset,
    Format.segments: make_segments,
}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "data" / "audio").mkdir(parents=True)
    return tmp_path / "data"


def make(format: Format, root: Path) -> dict[str, Path]:
    files = make_audio(root / "audio")
    MAKERS[format](root, files)
    return files


def read(format: Format, root: Path, value: str = "X", columns: ColumnsConfig = COLUMNS):
    return read_split(format, value, root=root, media=root, columns=columns)


def load(root: Path, format: Format, index, row: int) -> decode.Waveform:
    place = (-1, -1) if index.offsets is None else (int(index.offsets[row]), int(index.sizes[row]))
    source = media.MediaReader(str(root), format.value, NAMES).open(index.paths[row].as_py(), *place)
    if isinstance(source, str):
        return decode.load(source, max_frames=1000, zero_mean=True)
    with source:
        return decode.load(source, max_frames=1000, zero_mean=True)


@pytest.mark.parametrize("format", list(MAKERS))
def test_same_clips_labels_and_samples(root, format):
    files = make(format, root)
    index = read(format, root)
    assert index.ids.to_pylist() == [clip[0] for clip in CLIPS]
    assert [index.labels[i] for i in range(4)] == [tuple(clip[5]) for clip in CLIPS]
    for row in (0, 1, 2, 3, 1, 0):  # back and forth
        direct, sample_rate = soundfile.read(files[CLIPS[row][0]], dtype="float32", always_2d=True)
        wave = load(root, format, index, row)
        assert (wave.sample_rate, wave.num_samples) == (sample_rate, len(direct))
        np.testing.assert_allclose(wave.samples, direct[:, 0] - direct.mean(dtype=np.float64), atol=1e-6)


@pytest.mark.parametrize(
    ("format", "keys"),
    [
        (Format.vipant, ["chunk/aclip/--PJHxphWEs.p0.flac", "chunk/aclip/zz9876543_1.p0.mp3"]),
        (Format.ast_json, ["audio/--PJHxphWEs.flac", "audio/zz9876543_1.mp3"]),
        (Format.parquet, ["X-00000-of-00002.parquet row 0", "X-00001-of-00002.parquet row 0"]),
        (Format.webdataset, ["X/shard-00000.tar: --PJHxphWEs.flac", "X/shard-00001.tar: zz9876543_1.p0.mp3"]),
        (Format.segments, ["audio/--PJHxphWEs.flac", "audio/zz9876543_1.mp3"]),
    ],
)
def test_keys(root, format, keys):
    make(format, root)
    paths = read(format, root).paths.to_pylist()
    assert [paths[0], paths[3]] == keys
    held_in = media.container(format.value, paths[0])
    assert (root / held_in).is_file()
    assert format.in_containers == (held_in != paths[0])


CHOSEN = [0, 3, 1]  # a seed, then neighbours


def write(format: Format, root: Path, run_dir: Path) -> list[Path]:
    run_dir.mkdir()
    index = read(format, root)
    parts = [index.take(np.array(CHOSEN[:1])), index.take(np.array(CHOSEN[1:]))]
    return write_index(format, parts, run_dir, 7, columns=COLUMNS)


def weights(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()]


def reference_weights(labels: list[list[str]], smoothing: float) -> list[float]:
    counts = Counter(name for names in labels for name in names)
    return [sum(1000 / (counts[name] + smoothing) for name in names) for names in labels]


CHOSEN_LABELS = [CLIPS[row][5] for row in CHOSEN]


def test_ast_json_round_trip(root, tmp_path):
    make(Format.ast_json, root)
    written, weight_file = write(Format.ast_json, root, tmp_path / "run")
    assert (written.name, weight_file.name) == ("augmented_k7.json", "augmented_k7_weight.csv")
    original = json.loads((root / "X.json").read_text())["data"]
    # AST's own loader: json.load, then datum["wav"], datum["labels"].split(",").
    assert json.loads(written.read_text())["data"] == [original[row] for row in CHOSEN]
    # AST's gen_weight_file.py, over label indices.
    map_rows = list(csv.DictReader((root / "class_labels_indices.csv").read_text().splitlines()))
    index_of = {row["mid"]: int(row["index"]) for row in map_rows}
    label_count = np.zeros(len(map_rows))
    data = json.loads(written.read_text())["data"]
    for sample in data:
        for label in sample["labels"].split(","):
            label_count[index_of[label]] += 1.0
    label_weight = 1000.0 / (label_count + 0.01)
    want = [sum(label_weight[index_of[label]] for label in sample["labels"].split(",")) for sample in data]
    np.testing.assert_allclose(weights(weight_file), want, rtol=1e-15)
    shutil.copy(written, root / "again.json")
    assert read(Format.ast_json, root, "again").ids.to_pylist() == [CLIPS[row][0] for row in CHOSEN]


def test_parquet_references(root, tmp_path):
    make(Format.parquet, root)
    written, weight_file = write(Format.parquet, root, tmp_path / "run")
    table = pq.read_table(written)
    assert table.column_names == ["video_id", "file", "row", "labels"]
    for reference in table.to_pylist():
        original = pq.read_table(root / reference["file"]).slice(reference["row"], 1).to_pylist()[0]
        assert original["video_id"] == reference["video_id"]
        assert original["labels"] == reference["labels"]
    assert table["video_id"].to_pylist() == [CLIPS[row][0] for row in CHOSEN]
    assert weights(weight_file) == reference_weights(CHOSEN_LABELS, 1)


def test_webdataset_references(root, tmp_path):
    files = make(Format.webdataset, root)
    written, weight_file = write(Format.webdataset, root, tmp_path / "run")
    assert written.name == "augmented_k7.tar.csv"
    rows = list(csv.DictReader(written.read_text().splitlines()))
    assert [row["id"] for row in rows] == [CLIPS[row][0] for row in CHOSEN]
    for row in rows:
        with tarfile.open(root / row["shard"]) as tar:
            assert tar.extractfile(row["member"]).read() == files[row["id"]].read_bytes()
        with (root / row["shard"]).open("rb") as shard:
            shard.seek(int(row["offset"]))
            assert shard.read(int(row["size"])) == files[row["id"]].read_bytes()
        assert tuple(row["labels"].split(";")) == LABELS[row["id"]]
    assert weights(weight_file) == reference_weights(CHOSEN_LABELS, 1)


def test_segments_round_trip(root, tmp_path):
    make(Format.segments, root)
    written, weight_file = write(Format.segments, root, tmp_path / "run")
    original = (root / "X.csv").read_text().splitlines()[3:]
    lines = written.read_text().splitlines()
    assert lines[3:] == [original[row] for row in CHOSEN]
    assert lines[1] == "# num_ytids=3, num_segs=3, num_unique_labels=2, num_positive_labels=4"
    shutil.copy(written, root / "again.csv")
    again = read(Format.segments, root, "again")
    assert again.ids.to_pylist() == [CLIPS[row][0] for row in CHOSEN]
    assert weights(weight_file) == index_weights(again.labels).tolist()


def test_parts_with_other_vocabularies_are_joined(root, tmp_path):
    make(Format.webdataset, root)
    first = read(Format.webdataset, root)
    shutil.copy(root / "X" / "shard-00001.tar", root / "only.tar")
    second = read(Format.webdataset, root, "only")  # its labels are coded otherwise
    assert first.labels.names != second.labels.names or len(first) != len(second)
    written, _ = write_index(
        Format.webdataset, [first.take(np.array([1])), second.take(np.array([1]))], tmp_path, 1, columns=COLUMNS
    )
    assert [row["labels"] for row in csv.DictReader(written.read_text().splitlines())] == ["/m/a", "/m/b"]


def test_segments_say_how_many_are_there(root, caplog):
    make(Format.segments, root)
    read(Format.segments, root)
    assert "4 of the 5 listed clips are there" in caplog.text


def test_own_column_names_and_plain_bytes(root):
    files = make_audio(root / "audio")
    table = parquet_table(files, CLIPS)
    sound = pa.array([files[clip[0]].read_bytes() for clip in CLIPS])
    table = pa.table(
        {
            "key": table["video_id"],
            "sound": sound,
            "tags": table["labels"],
        }
    )
    (root / "X").mkdir()
    pq.write_table(table, root / "X" / "a.parquet")
    index = read(Format.parquet, root, columns=ColumnsConfig(id="key", audio="sound", labels="tags"))
    source = media.MediaReader(str(root), "parquet", {"audio": "sound"}).open(index.paths[2].as_py(), -1, -1)
    with source:
        assert source.read() == files["Y1234567890"].read_bytes()


def test_large_row_groups_are_streamed(root, monkeypatch):
    monkeypatch.setattr(media, "PARQUET_BATCH_ROWS", 2)
    cells = [{"bytes": bytes([i]) * 3, "path": None} for i in range(11)]
    table = pa.table({"audio": pa.array(cells, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    pq.write_table(table, root / "x.parquet", row_group_size=7)
    reader = media.MediaReader(str(root), "parquet", NAMES)
    for row in (0, 1, 2, 5, 6, 7, 10, 3, 9, 8):
        with reader.open(f"x.parquet row {row}", -1, -1) as source:
            assert source.read() == bytes([row]) * 3


def test_the_decoder_side_imports_no_torch_and_no_arrow():
    code = "import sys, balance.data.media; print([m for m in ('torch', 'pyarrow', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_suffixes_cover_what_soundfile_writes():
    """libsndfile's names of formats, which are mostly suffixes; those that are not, or that hold no plain audio."""
    others = {"MAT4", "MAT5", "MPC2K", "RAW", "WAVEX"}
    assert {name.lower() for name in soundfile.available_formats() if name not in others} <= media.AUDIO_SUFFIXES


# -- mistakes ----------------------------------------------------------------------------------------------------------


def cut_tar(root: Path) -> None:
    make(Format.webdataset, root)
    shard = root / "X" / "shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:20_000])


def cut_tar_between_members(root: Path) -> None:
    make(Format.webdataset, root)
    shard = root / "X" / "shard-00001.tar"
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
    shard.write_bytes(shard.read_bytes()[: last.offset])


def tar_without_json(root: Path) -> None:
    with tarfile.open(root / "X.tar", "w") as tar:
        add_member(tar, "abc.flac", b"x")


def tar_with(name: str, data: bytes, suffix: str = "flac"):
    def write(root: Path) -> None:
        with tarfile.open(root / "X.tar", "w") as tar:
            add_member(tar, f"abc.{suffix}", b"x")
            add_member(tar, name, data)

    return write


def tar_of_keys(*names: str):
    def write(root: Path) -> None:
        with tarfile.open(root / "X.tar", "w") as tar:
            for name in names:
                add_member(tar, name, b'{"labels": ["x"]}' if name.endswith(".json") else name.encode())

    return write


def rename(name: str, other: str):
    return lambda root: (root / name).rename(root / other)


def two_tars_in_one(root: Path) -> None:
    for name in ("X", "Y"):
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            add_member(tar, f"{name}.flac", b"x")
            add_member(tar, f"{name}.json", b"{}")
    (root / "X.tar").write_bytes((root / "X.tar").read_bytes() + (root / "Y.tar").read_bytes())


def tar_of_links(kind: str, target: str = "x.bin"):
    """abc.flac as a link: "1" a hard one, "2" a symbolic one."""

    def write(root: Path) -> None:
        with tarfile.open(root / "X.tar", "w") as tar:
            add_member(tar, "x.bin", b"audio")
            info = tarfile.TarInfo("abc.flac")
            info.type, info.linkname = kind.encode(), target
            tar.addfile(info)
            add_member(tar, "abc.json", b'{"labels": ["x"]}')

    return write


def read_tar(root: Path, columns: ColumnsConfig = COLUMNS):
    index = read(Format.webdataset, root, columns=columns)
    labels = [index.labels[row] for row in range(len(index))]
    return dict(zip(index.ids.to_pylist(), zip(index.paths.to_pylist(), labels, strict=True), strict=True))


def member_bytes(root: Path, index, row: int) -> bytes:
    reader = media.MediaReader(str(root), "webdataset", NAMES)
    with reader.open(index.paths[row].as_py(), int(index.offsets[row]), int(index.sizes[row])) as source:
        return source.read()


def test_keys_with_dots(root):
    tar_of_keys("a_30.000.flac", "a_30.000.json", "b.p0.mp3", "b.json", "d.e/c.seg.json", "d.e/c.wav", "d.e/c.json")(
        root
    )
    assert read_tar(root) == {
        "a_30.000": ("X.tar: a_30.000.flac", ("x",)),
        "b": ("X.tar: b.p0.mp3", ("x",)),
        "d.e/c": ("X.tar: d.e/c.wav", ("x",)),
    }


def test_what_macos_leaves_is_nobodys_clip(root):
    tar_of_keys(
        "._a.flac",
        "a.flac",
        "._a.json",
        "a.json",
        "d/._b.json",
        "d/.DS_Store",
        "__MACOSX/a.flac",
        "d/b.wav",
        "d/b.json",
    )(root)
    assert list(read_tar(root)) == ["a", "d/b"]
    (root / "._X-000000.tar").write_bytes(b"junk")
    (root / "X.tar").rename(root / "X-000000.tar")
    assert list(read_tar(root)) == ["a", "d/b"]


def test_a_key_without_audio_counts_as_undecodable(root, caplog):
    tar_of_keys("a.flac", "a.json", "b.json", "c.pcm", "c.json", "d.txt", "d.cls", "a.txt", "a.seg.npy")(root)
    index = read(Format.webdataset, root)
    assert index.ids.to_pylist() == ["a", "b", "c", "d"]
    assert member_bytes(root, index, 0) == b"a.flac"
    for row in (1, 2, 3):
        with pytest.raises(OSError, match="the shard has no audio of this key"):
            member_bytes(root, index, row)
    assert "3 keys have no audio of a known suffix and count as undecodable: X.tar: b.json" in caplog.text


def test_a_hard_link_is_what_it_leads_to(root):
    tar_of_links("1")(root)
    index = read(Format.webdataset, root)
    assert index.ids.to_pylist()[0] == "abc"
    assert member_bytes(root, index, 0) == b"audio"


def test_the_key_of_the_labels_can_be_named(root, caplog):
    def write(**records) -> None:
        with tarfile.open(root / "X.tar", "w") as tar:
            for key, record in records.items():
                add_member(tar, f"{key}.wav", b"x")
                add_member(tar, f"{key}.json", json.dumps(record).encode())

    write(a={"tag": ["x", "y"]}, b={"tag": "Male speech"}, c={"tag": []})
    labels = {id: labels for id, (_, labels) in read_tar(root, ColumnsConfig(labels="tag")).items()}
    assert labels == {"a": ("x", "y"), "b": ("Male speech",), "c": ()}
    assert not caplog.text
    assert {labels for _, labels in read_tar(root, ColumnsConfig(labels=None)).values()} == {()}
    tar_of_keys("a.wav", "b.p0.wav")(root)
    assert read_tar(root, ColumnsConfig(labels=None)) == {"a": ("X.tar: a.wav", ()), "b": ("X.tar: b.p0.wav", ())}
    write(a={"labels": ["x"]}, b={"seconds": 3})
    assert read_tar(root)["b"][1] == ()
    assert "the json of 1 of the 2 clips has no 'labels'" in caplog.text
    caplog.clear()
    write(a={"seconds": 3}, b={"seconds": 3})
    assert read_tar(root)["b"][1] == ()
    assert "other keys there: seconds" in caplog.text


def test_bit_flips_of_a_tar_are_errors_or_change_nothing_that_is_read(root):
    """Headers carry checksums; whatever stops tarfile without a word is an error."""
    tar_of_keys("a.flac", "a.json", "b.flac", "b.json")(root)
    data = (root / "X.tar").read_bytes()
    want = read_tar(root)
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * 3 * 1024, 400, replace=False):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        (root / "X.tar").write_bytes(broken)
        try:
            got = read_tar(root)
        except UserError:
            continue
        assert got.keys() == want.keys(), bit


def parquet_with(**columns):
    def write(root: Path) -> None:
        table = {
            "video_id": pa.array(["a", "b"]),
            "audio": pa.array([{"bytes": b"x", "path": "p"}] * 2),
            "labels": pa.array([["x"], ["y"]]),
        }
        kept = {name: column for name, column in (table | columns).items() if column is not None}
        pq.write_table(pa.table(kept), root / "X.parquet")

    return write


def junk(name: str, data: bytes = b"junk"):
    return lambda root: (root / name).write_bytes(data)


def ast(entries, with_map: bool = True):
    def write(root: Path) -> None:
        (root / "X.json").write_text(json.dumps({"data": entries}))
        if with_map:
            (root / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/a,A\n")

    return write


NULL_LABEL = pa.array([["x"], [None]], pa.list_(pa.string()))
GOOD = {"wav": "a.wav", "labels": "/m/a"}


@pytest.mark.parametrize(
    ("format", "makes", "words"),
    [
        (Format.webdataset, [cut_tar], "X/shard-00001.tar: not a complete tar"),
        (Format.webdataset, [cut_tar_between_members], "X/shard-00001.tar: not a complete tar"),
        (Format.webdataset, [tar_with("abc.json", b'{"labels": ["\\ud800"]}')], "X.tar: abc.json: must be an object"),
        (Format.webdataset, [tar_with("abc.json", b"[" * 100_000)], "X.tar: abc.json: not JSON"),
        (Format.webdataset, [tar_with("\udcff.json", b"{}")], "is not UTF-8"),
        (Format.webdataset, [junk("X.tar", b"junk" * 400)], "X.tar: not a complete tar"),
        (Format.webdataset, [tar_without_json], "X.tar: abc.flac: no abc.json"),
        (Format.webdataset, [tar_with("abc.json", b"{")], "X.tar: abc.json: not JSON"),
        (Format.webdataset, [tar_with("abc.json", b'{"labels": 7}')], "X.tar: abc.json: must be an object"),
        (Format.webdataset, [tar_with("abc.json", b'{"labels": "a,b"}')], "X.tar: abc.json: must be an object"),
        (Format.webdataset, [tar_with("abc.json", b"[]")], "X.tar: abc.json: must be an object"),
        (
            Format.webdataset,
            [tar_with("abc.json", b'{"text": ["x"], "tag": ["y"], "id": 1}')],
            "no clip's json has 'labels'; it has text, tag, id. Type dataset.columns.labels=tag",
        ),
        (Format.webdataset, [two_tars_in_one], "X.tar: not a complete tar file (data that are no member at byte"),
        (Format.webdataset, [tar_of_links("2")], "X.tar: abc.flac: no regular file"),
        (Format.webdataset, [tar_of_links("1", "gone.flac")], "X.tar: abc.flac: no regular file"),
        (Format.webdataset, [tar_of_keys("a.left.wav", "a.right.wav", "a.json")], "second audio file of the key 'a'"),
        (Format.webdataset, [junk("X.tar.gz")], "X.tar.gz: compressed as a whole"),
        (
            Format.webdataset,
            [tar_of_keys("X.flac", "X.json"), junk("Y.tar.gz"), rename("X.tar", "X-0.tar"), junk("X-1.tar.gz")],
            "X-1.tar.gz: compressed",
        ),
        (Format.webdataset, [junk("X-000000.tar.gz")], "X-000000.tar.gz: compressed as a whole"),
        (Format.webdataset, [tar_with("abc.wav", b"")], "second audio file of the key 'abc'"),
        (Format.webdataset, [tar_with("abc.json", b"{}", "txt")], "empty index"),
        (Format.parquet, [junk("X.parquet")], "not a complete parquet file"),
        (
            Format.parquet,
            [parquet_with(video_id=None)],
            "(it has audio, labels); say dataset.columns.id=",
        ),
        (Format.parquet, [parquet_with(video_id=pa.array([1, 2]))], "column 'video_id' is int64"),
        (Format.parquet, [parquet_with(video_id=pa.array(["a", None]))], "X.parquet row 1: no id"),
        (Format.parquet, [parquet_with(video_id=pa.array(["a", ""]))], "X.parquet row 1: '' is no id"),
        (Format.parquet, [parquet_with(video_id=pa.array(["a\nb", "c"]))], "X.parquet row 0: 'a\\nb' is no id"),
        (Format.parquet, [parquet_with(video_id=pa.array(["a", "a"]))], "more than once: a"),
        (Format.parquet, [parquet_with(audio=pa.array(["x", "y"]))], "dataset.columns.audio must be struct<bytes"),
        (Format.parquet, [parquet_with(labels=pa.array(["x", "y"]))], "dataset.columns.labels must be list<string>"),
        (Format.parquet, [parquet_with(labels=pa.array([[1], [2]]))], "dataset.columns.labels must be list<string>"),
        (
            Format.parquet,
            [parquet_with(labels=NULL_LABEL)],
            "X.parquet row 1: null among the labels",
        ),
        (Format.ast_json, [ast([GOOD], with_map=False)], "class_labels_indices.csv: no such file"),
        (Format.ast_json, [ast([GOOD]), junk("class_labels_indices.csv", b"a,b\n1,2\n")], "not a label map"),
        (Format.ast_json, [ast([GOOD, {"wav": "b.wav", "labels": "/m/z"}])], "data[1]: label '/m/z' is not in"),
        (Format.ast_json, [ast([{"labels": "/m/a"}])], "data[0]: no 'wav'"),
        (Format.ast_json, [ast([{"wav": "b.wav", "labels": ["/m/a"]}])], "data[0]: 'labels' must be one string"),
        (Format.ast_json, [ast([GOOD, {"wav": "x/a.flac", "labels": ""}])], "more than once: a"),
        (Format.ast_json, [ast([{"wav": "/elsewhere/b.wav", "labels": ""}])], "say dataset.media=/elsewhere"),
        (Format.ast_json, [ast([{"wav": "/elsewhere/b.wav"}, {"wav": "c.wav"}, 3])], "say dataset.media=/elsewhere"),
        (Format.ast_json, [ast([{"wav": "\ud800.wav"}])], "data[0]: half of a surrogate pair"),
        (Format.ast_json, [ast([])], "at least one clip"),
        (Format.ast_json, [ast([{"wav": "a.wav", "label": "/m/a"}])], "no entry has 'labels'; they have wav, label."),
        (Format.ast_json, [ast([GOOD, {"wav": "../b.wav", "labels": ""}])], "data[1]"),
        (Format.ast_json, [ast([GOOD]), junk("X.json")], "not JSON"),
        (Format.segments, [junk("X.csv", b'{"id": "a"}\n')], "an index already"),
        (Format.segments, [junk("X.csv", b"# a\n# b\n# c\n")], "empty segment list"),
        (Format.segments, [junk("X.csv", b'\xef\xbb\xbf# a\n\nabc, nan, 10, "/m/a"\n\n')], "X.csv line 3"),
        (Format.segments, [junk("X.csv", b'../x, 0, 10, "/m/a"\n')], "X.csv line 1"),
        (Format.segments, [junk("X.csv", b'abc, 0, 10, "/m/a,"\n')], "X.csv line 1"),
        (Format.segments, [junk("X.csv", b'# a\nabc, 0, 10, "/m/a"\nabc, x, 10, "/m/a"\n')], "X.csv line 3"),
        (Format.segments, [junk("X.csv", b'abc, 0, 10, "/m/a"\nabc, 1, 10, "/m/a"\n')], "more than once: abc"),
        (Format.segments, [junk("X.csv", b'abc, 0.000, 10.000, "/m/a"\n')], "none of its 1 clips is under"),
    ],
)
def test_mistakes(root, format, makes, words):
    for maker in makes:
        maker(root)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        read(format, root)
    assert str(caught.value).count("\n") <= 1


@pytest.mark.parametrize("format", list(MAKERS))
def test_absent_names_list_what_is_there(root, format):
    make(format, root)
    with pytest.raises(NoSuchIndex) as caught:
        read(format, root, "nope")
    assert "nope" in str(caught.value)
    assert re.search(r"There (are|is)", str(caught.value))


@pytest.mark.parametrize(
    ("value", "files", "found"),
    [
        ("train", ["train-clean-000000", "train-000000", "train-000001", "train"], ["train"]),
        ("train", ["train-clean-000000", "train-000000", "train-000001"], ["train-000000", "train-000001"]),
        (
            "train",
            ["train-00000-of-00002", "train-00001-of-00002", "train-x"],
            ["train-00000-of-00002", "train-00001-of-00002"],
        ),
        ("train", ["train-00000-of-00001-0123456789abcdef"], ["train-00000-of-00001-0123456789abcdef"]),
        ("train", ["train/b", "train/a", "train/._a", "trainer-0"], ["train/a", "train/b"]),
        ("data/train", ["data/train/a"], ["data/train/a"]),
        ("data/train", ["data/train-000000"], ["data/train-000000"]),
        ("train.tar", ["train"], ["train"]),
        ("train-clean", ["train-clean-000000", "train-000000"], ["train-clean-000000"]),
    ],
)
def test_what_a_name_means(root, value, files, found):
    for name in files:
        (root / f"{name}.tar").parent.mkdir(exist_ok=True, parents=True)
        (root / f"{name}.tar").touch()
    assert find(root, value, ".tar") == [root / f"{name}.tar" for name in found]


def test_a_path_is_first_one_of_the_working_directory(root, monkeypatch):
    (root / "here" / "data").mkdir(parents=True)
    (root / "data").mkdir()
    for folder in (root / "data", root / "here" / "data"):
        (folder / "train-000000.tar").touch()
    monkeypatch.chdir(root / "here")
    assert find(root, "data/train", ".tar") == [Path("data/train-000000.tar")]
    with pytest.raises(NoSuchIndex, match=r"looked in the working directory and under .*There are: data/"):
        find(root, "x/train", ".tar")
    with pytest.raises(NoSuchIndex, match=r"'train' \(looked under "):
        find(root, "train", ".tar")


def test_a_shard_that_was_unpacked_beside_itself(root):
    for name in ("X.tar", "X.tar.gz", "Xy.tar.gz"):
        (root / name).touch()
    assert find(root, "X", ".tar") == [root / "X.tar"]


def test_entries_without_labels_are_counted(root, caplog):
    ast([GOOD, {"wav": "b.wav"}])(root)
    assert read(Format.ast_json, root).labels.sizes().tolist() == [1, 0]
    assert "1 of the 2 entries have no 'labels'" in caplog.text


@pytest.mark.parametrize("format", [Format.parquet, Format.vipant])
def test_a_split_without_any_label_is_said(root, caplog, format):
    parquet_with(labels=pa.array([[], None], pa.list_(pa.string())))(root)
    (root / "src_X.csv").write_text('{"id": "a", "aclip": ["p0.wav"], "label": ["x"]}\n')
    read(format, root)
    assert "no clip has labels: weights are 0" in caplog.text
    caplog.clear()
    read(format, root, columns=ColumnsConfig(labels=None))
    assert not caplog.text


@pytest.mark.parametrize("value", ["./", ".", "..", "/", "x/", "a\tb"])
@pytest.mark.parametrize("format", list(MAKERS))
def test_values_that_mean_nothing(root, format, value):
    with pytest.raises(NoSuchIndex, match=r"There (are|is)"):
        read(format, root, value)


def test_absent_shards_are_said(root, caplog):
    for name in ("X-00000-of-00003", "X-00002-of-00003"):
        (root / f"{name}.tar").touch()
    find(root, "X", ".tar")
    assert "2 of the 3 shards are there" in caplog.text


def test_a_file_elsewhere_gives_the_folder_of_both(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"say dataset.media={tmp_path},"):
        relative(tmp_path / "a", tmp_path / "b" / "x.tar")


AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("kind", [AUDIO, pa.struct([("path", pa.string())])])
def test_audio_by_path(root, kind):
    files = make_audio(root / "audio")
    names = [f"audio/{files[clip[0]].name}" for clip in CLIPS]
    names[1] = f"./{names[1]}"
    names[2] = str(root / names[2])
    audio = pa.array([{"path": name} for name in names], type=kind)
    table = parquet_table(files, CLIPS).set_column(1, "audio", audio)
    pq.write_table(table, root / "X.parquet", row_group_size=3)
    index = read(Format.parquet, root)
    for row, clip in enumerate(CLIPS):
        direct, _ = soundfile.read(files[clip[0]], dtype="float32", always_2d=True)
        assert load(root, Format.parquet, index, row).num_samples == len(direct)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../x.wav", "its path leads outside dataset.media"),
        ("/etc/x.wav", "its path leads outside dataset.media"),
        ("audio", "there is no file audio under dataset.media"),
        ("gone.wav", "there is no file gone.wav under dataset.media"),
        (None, "neither bytes nor a path"),
    ],
)
def test_audio_by_a_path_that_is_none(root, path, why):
    pq.write_table(pa.table({"audio": pa.array([{"path": path}], type=AUDIO)}), root / "X.parquet")
    with pytest.raises(OSError, match=why):
        media.MediaReader(str(root), "parquet", NAMES).open("X.parquet row 0", -1, -1)


def test_parquet_without_labels(root):
    files = make_audio(root / "audio")
    pq.write_table(parquet_table(files, CLIPS).drop_columns(["labels"]), root / "X.parquet")
    columns = ColumnsConfig(labels=None)
    index = read(Format.parquet, root, columns=columns)
    assert index.labels.sizes().tolist() == [0] * 4
    written, _ = write_index(Format.parquet, [index], root, 3, columns=columns)
    assert pq.read_table(written).column_names == ["video_id", "file", "row"]


def test_bit_flips_of_parquet_are_errors_that_name_the_file(root):
    """Damage of the parts that are read is refused, or (without checksums) changes a value; never a traceback."""
    parquet_with()(root)
    data = (root / "X.parquet").read_bytes()
    rng = np.random.default_rng(0)
    refused: list[str] = []
    for bit in rng.choice(8 * len(data), 600, replace=False):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        (root / "X.parquet").write_bytes(broken)
        try:
            read(Format.parquet, root)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all("X" in message and "\n" not in message for message in refused)


def test_the_failure_of_a_member_names_it(root):
    make(Format.webdataset, root)
    make_parquet(root, make_audio(root / "audio"))
    tar = read(Format.webdataset, root)
    shard = root / "X" / "shard-00001.tar"
    os.truncate(shard, int(tar.offsets[3]) + 5)
    with pytest.raises(OSError, match=re.escape("shard-00001.tar: zz9876543_1.p0.mp3: the shard is cut short (5 of")):
        load(root, Format.webdataset, tar, 3)
    shard.unlink()
    with pytest.raises(OSError, match=re.escape("shard-00001.tar: zz9876543_1.p0.mp3: No such file")):
        load(root, Format.webdataset, tar, 3)
    for path, why in (
        ("X-00000-of-00002.parquet row 99", "X-00000-of-00002.parquet row 99: the row cannot be read"),
        ("gone.parquet row 1", "gone.parquet row 1: No such file or directory"),
    ):
        with pytest.raises(OSError, match=re.escape(why)) as caught:
            media.MediaReader(str(root), "parquet", NAMES).open(path, -1, -1)
        assert str(root) not in str(caught.value)


def test_columns_are_checked():
    with pytest.raises(ValueError, match="three different names"):
        ColumnsConfig(id="x", audio="x")
