"""balance.data.folder_files: folders of audio as indexes, against what was put into them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from balance.data.config import ColumnsConfig, Format
from balance.data.formats import read_split, write_index
from balance.data.locate import NoSuchIndex
from balance.errors import UserError


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def read(root: Path, value: str, *, media: Path | None = None, labels: str | None = "labels"):
    return read_split(Format.folder, value, root=root, media=media or root, columns=ColumnsConfig(labels=labels))


def rows(index) -> list[tuple[str, str, tuple[str, ...]]]:
    labels = [index.labels[row] for row in range(len(index))]
    return list(zip(index.ids.to_pylist(), index.paths.to_pylist(), labels, strict=True))


def test_files_are_clips_and_class_folders_labels(tmp_path, caplog):
    caplog.set_level("INFO")
    put(tmp_path, "pool/b.WAV", "pool/a.p0.mp3", "pool/dog/b.wav", "pool/cat/x/c.m4a", "pool/notes.txt", "pool/README")
    put(tmp_path, "pool/._a.mp3", "pool/.DS_Store", "pool/.hidden/d.wav", "pool/__MACOSX/a.wav")
    assert rows(read(tmp_path, "pool")) == [
        ("pool/a", "pool/a.p0.mp3", ()),
        ("pool/b", "pool/b.WAV", ()),
        ("pool/cat/x/c", "pool/cat/x/c.m4a", ("cat",)),
        ("pool/dog/b", "pool/dog/b.wav", ("dog",)),
    ]
    assert "left out, for their suffixes are not of audio: 1 without suffix, 1 .txt" in caplog.text
    assert read(tmp_path, "pool", labels=None).labels.names == ()


def test_links_are_followed_but_not_in_circles(tmp_path, caplog):
    put(tmp_path / "elsewhere", "c.wav")
    put(tmp_path / "data", "pool/x/a.wav")
    (tmp_path / "data" / "pool" / "x" / "up").symlink_to(tmp_path / "data" / "pool")
    (tmp_path / "data" / "pool" / "y").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "pool" / "gone.wav").symlink_to("nowhere")
    assert read(tmp_path / "data", "pool").paths.to_pylist() == ["pool/gone.wav", "pool/x/a.wav", "pool/y/c.wav"]
    assert "leads to a folder that it is in" in caplog.text
    (tmp_path / "data" / "pool" / "around").symlink_to(tmp_path)  # would bring in the other splits
    assert not [path for path in read(tmp_path / "data", "pool").paths.to_pylist() if "around" in path]


def test_where_a_folder_lies(tmp_path, monkeypatch):
    put(tmp_path, "media/sets/a/x.wav", "a/y.wav")
    media = tmp_path / "media"
    assert read(media / "sets", "a", media=media).paths.to_pylist() == ["sets/a/x.wav"]
    assert read(media, "sets/a").ids.to_pylist() == ["sets/a/x"]
    assert read(media / "sets" / "a", ".").ids.to_pylist() == ["x"]
    monkeypatch.chdir(media / "sets")
    assert read(media, "./a").paths.to_pylist() == ["sets/a/x.wav"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"say dataset.media={tmp_path},"):
        read(media, "./a")
    with pytest.raises(NoSuchIndex, match=r"no folder 'b' .*There are: sets/\."):
        read(media, "b")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/x.txt"], "no audio file in it"),
        (["a/x.wav", "a/x.flac"], "more than once: a/x"),
        (["a/x\ny.wav"], "a/x\ny.wav: 'a/x\\ny' is no id"),
        (["a/\udcff.wav"], "its name is not UTF-8"),
    ],
)
def test_mistakes(tmp_path, names, words):
    put(tmp_path, *names)
    with pytest.raises(UserError, match=re.escape(words)):
        read(tmp_path, "a")


def test_the_chosen_files_and_weights(tmp_path):
    put(tmp_path, "a/dog/1.wav", "a/2.wav", "b/dog/1.wav", "b/3.wav")
    parts = [read(tmp_path, "a"), read(tmp_path, "b").take(np.array([1]))]
    written, weights = write_index(Format.folder, parts, tmp_path, 7, columns=ColumnsConfig())
    assert written.name == "augmented_k7.files.txt"
    assert written.read_text() == "a/2.wav\na/dog/1.wav\nb/dog/1.wav\n"
    assert [float(x) for x in weights.read_text().split()] == [0.0, 1000 / 3, 1000 / 3]
    assert write_index(Format.folder, [parts[0].take(np.array([0]))], tmp_path, 8, columns=ColumnsConfig()) == [
        tmp_path / "augmented_k8.files.txt"
    ]
