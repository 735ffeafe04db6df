"""One training: its batches and rates, and that a stopped one goes on to the same scores."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from balance.errors import UserError
from balance.finetune import training
from balance.finetune.inputs import Inputs


def test_batches_go_through_permutations_without_a_gap():
    drawn = np.concatenate([training.batch_rows(10, 4, step, seed=3) for step in range(15)])
    assert [sorted(epoch) for epoch in drawn.reshape(6, 10).tolist()] == [list(range(10))] * 6
    assert len({tuple(epoch) for epoch in drawn.reshape(6, 10).tolist()}) == 6
    wide = np.concatenate([training.batch_rows(3, 8, step, seed=3) for step in range(3)])
    assert np.bincount(wide).tolist() == [8, 8, 8]


def test_weighted_batches_follow_the_weights():
    weights = np.array([0.0, 1.0, 3.0])
    drawn = np.concatenate([training.batch_rows(3, 50, step, seed=1, weights=weights) for step in range(80)])
    counts = np.bincount(drawn, minlength=3)
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(3.0, rel=0.1)


def test_the_rate_rises_straight_and_falls_as_a_cosine():
    rates = [training.rate_at(step, 100, 2.0) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) * 0.2)
    assert rates[10:] == pytest.approx(1.0 + np.cos(np.pi * np.arange(90) / 90))


def problem() -> tuple[Inputs, np.ndarray, object, np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((60, 6)).astype(np.float16)
    labels = scipy.sparse.csr_matrix((values[:40, :2] > 0).astype(np.int32))
    return Inputs(values, np.ones(60, dtype=bool), "x"), np.arange(40), labels, np.arange(40, 60)


def train(checkpoint: Path, *, steps: int = 200, rate: float = 0.05, stop_at: int | None = None) -> training.Trained:
    inputs, rows, labels, evaluation = problem()

    def progress(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    return training.train(
        lambda: nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 2)), inputs, rows, labels, evaluation,
        training.Recipe(steps, 8, rate, torch.float32), seed=5, weights=None, device=torch.device("cpu"),
        checkpoint=checkpoint, progress=progress,
    )  # fmt: skip


def test_it_learns(tmp_path):
    inputs, *_ = problem()
    scores = train(tmp_path / "a.pt").scores
    truth = inputs.values[40:, :2].astype(np.float32) > 0
    assert ((scores > 0) == truth).mean() >= 0.9


def test_a_stopped_training_goes_on_to_the_same_scores(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole.pt")
    monkeypatch.setattr(training, "SAVE_AFTER_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped.pt", stop_at=77)
    starts: list[int] = []
    resume = training._resume

    def watched(*given: object) -> tuple[int, list[float]]:
        found = resume(*given)  # type: ignore[arg-type]
        starts.append(found[0])
        return found

    monkeypatch.setattr(training, "_resume", watched)
    again = train(tmp_path / "stopped.pt")
    assert starts == [76]  # the step that was stopped is not saved
    assert again.loss == whole.loss
    np.testing.assert_array_equal(again.scores, whole.scores)


def test_a_damaged_checkpoint_starts_anew(tmp_path):
    whole = train(tmp_path / "whole.pt")
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 nothing")
    np.testing.assert_array_equal(train(tmp_path / "damaged.pt").scores, whole.scores)


def test_a_loss_that_is_not_finite_is_said(tmp_path):
    with pytest.raises(UserError, match=r"the loss is not finite at step \d+: type a smaller finetune.learning_rate"):
        train(tmp_path / "a.pt", rate=1e38)
