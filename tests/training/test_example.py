"""`examples/train.py` on a run's files."""

from __future__ import annotations

from pathlib import Path

import pytest
import sklearn.metrics
import torch

from balance.data.vipant_index import read_index
from balance.errors import UserError
from balance.results.train_root import write_train_root
from tests import four_clips
from tests.training.example import example


@pytest.fixture
def root(tmp_path) -> Path:
    return four_clips.write(tmp_path / "data")


def test_the_example_trains_on_a_run(root, tmp_path, capsys):
    (root / "src_eval_segments.csv").write_text((root / "src_X.csv").read_text())
    (tmp_path / "src_augmented_k2.csv").write_text((root / "src_X.csv").read_text())
    write_train_root(tmp_path, root=root, media=root, paths=[read_index(root / "src_X.csv").paths])
    figures = [example.train(tmp_path, epochs=2, uniform=uniform) for uniform in (False, False, True)]
    assert figures[0] == figures[1]
    assert "4 clips, 3 classes" in capsys.readouterr().out
    scores, labels = torch.randn(30, 3), (torch.rand(30, 3) > 0.6).float()
    want = sklearn.metrics.average_precision_score(labels.numpy(), scores.numpy(), average="macro")
    assert example.mean_average_precision(scores, labels) == pytest.approx(want, abs=1e-6)
    with pytest.raises(UserError, match="0 indexes"):
        example.train(root, epochs=1, uniform=False)
