"""The data set and its batches: against direct readings of the same files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from balance.audio.fbank import VIPANT_FRONT_END, LogMel
from balance.errors import UserError
from balance.training.dataset import (
    ClipDataset,
    UnreadableClip,
    class_names,
    collate,
    load_index,
    select,
)
from balance.training.knn_file import load_ids
from tests import four_clips
from tests.four_clips import CLIPS


@pytest.fixture
def root(tmp_path) -> Path:
    return four_clips.write(tmp_path / "data")


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
        want = LogMel(VIPANT_FRONT_END)(example.audio[None], [len(example.audio)], rate)[0]
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


def test_select(root, tmp_path, caplog):
    index = load_index(root / "src_X.csv")
    (tmp_path / "ids.csv").write_text("0123456789_\n--PJHxphWEs\n")
    assert select(index, load_ids(tmp_path / "ids.csv")).ids.to_pylist() == ["--PJHxphWEs", "0123456789_"]
    assert not caplog.records
    select(index, ["0123456789_", "other"])
    assert "1 of the 2 ids of the filter are not in it" in caplog.text
    with pytest.raises(UserError, match="none of the 1 ids"):
        select(index, ["other"])
