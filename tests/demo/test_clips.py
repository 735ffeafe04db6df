"""The demo's audio and indexes: what the indexes promise lies in the files, the same for everybody."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import soundfile

from balance.data.vipant_index import read_index
from balance.demo import clips as demo


def test_files_are_what_the_clips_say(tmp_path: Path) -> None:
    """A few clips of one share; once more in another share they are the same bytes."""
    clips = {tmp_path / "a" / clip.path: clip for clip in demo._clips()}
    for path in islice(demo.write_shard(tmp_path / "a", 7, 100), 8):
        clip, info = clips[path], soundfile.info(path)
        assert (info.samplerate, info.channels) == (clip.sample_rate, clip.channels)
        assert info.format == {"mp3": "MP3", "flac": "FLAC", "wav": "WAV"}[path.suffix[1:]]
        assert abs(info.frames / info.samplerate - clip.duration_s) < 0.1
        samples, _ = soundfile.read(path)
        assert 0.05 < abs(samples).max() <= 1
    written = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
    assert len(written) == 8
    for path in islice(demo.write_shard(tmp_path / "b", 7, 50), 15):
        if (content := written.pop(path.relative_to(tmp_path / "b"), None)) is not None:
            assert path.read_bytes() == content
    assert not written


def test_indexes_name_the_files(tmp_path: Path) -> None:
    demo.write_indexes(tmp_path)
    paths = {path for split, _ in demo._SPLITS for path in read_index(tmp_path / f"src_{split}.csv").paths.to_pylist()}
    assert paths == {clip.path for clip in demo._clips()}
    names = {entry["id"]: entry["name"] for entry in json.loads((tmp_path / "ontology.json").read_text())}
    assert list(names.values()) == list(demo.CLASSES)
    assert set(read_index(tmp_path / "src_unbalanced_train_segments.csv").labels.names) <= set(names)
