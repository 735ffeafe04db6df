"""One training: the rows of an arm and a seed -> scores on the evaluation clips, the same number of steps for all.

In: inputs and labels; out: `Trained`. Every arm takes the same steps with the same batch size, schedule and first
weights, so a larger set is not also trained longer. Batches are drawn without replacement epoch by epoch (where the arm
is weighted: with VIP-ANT's weights), from a generator that depends on the step alone, so a stopped training goes on at
its last checkpoint. The price of equal steps: a small set is seen more often.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from balance.errors import UserError
from balance.finetune.inputs import Inputs
from balance.records import Float32, Float64, Int64
from balance.runtime import files

SAVE_AFTER_S = 60.0  # of work since the last checkpoint
WARM_UP = 0.1  # share of the steps in which the rate rises; it then falls as a cosine
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained; the same for all arms. dtype: of autocast, float32: none."""

    steps: int
    batch_size: int
    learning_rate: float
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """scores: (n, L) float32 logits of the evaluation clips; loss: mean over the last tenth of the steps."""

    scores: Float32
    loss: float


def batch_rows(num_rows: int, size: int, step: int, seed: int, weights: Float64 | None = None) -> Int64:
    """The places of a step's batch in a set of `num_rows`, (size,): permutation after permutation, or, weighted, draws
    with replacement."""
    if weights is not None:
        rng = np.random.default_rng([seed, 1, step])
        return np.asarray(rng.choice(num_rows, size, p=weights / weights.sum()), dtype=np.int64)
    first, out = step * size, []
    for epoch in range(first // num_rows, (first + size - 1) // num_rows + 1):
        order = np.random.default_rng([seed, 0, epoch]).permutation(num_rows)
        out.append(order[max(0, first - epoch * num_rows) : first + size - epoch * num_rows])
    return np.concatenate(out)


def rate_at(step: int, steps: int, highest: float) -> float:
    """Learning rate of a step: a straight rise over WARM_UP of the steps, then half a cosine down to 0."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return highest * (step + 1) / rise
    return highest * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def train(
    build: Callable[[], nn.Module],
    inputs: Inputs,
    rows: Int64,
    labels: Any,
    evaluation: Int64,
    recipe: Recipe,
    *,
    seed: int,
    weights: Float64 | None,
    device: torch.device,
    checkpoint: Path,
    progress: Callable[[int], None],
) -> Trained:
    """Train on these rows of the inputs and score the evaluation rows.

    build: the network, whose random weights come from torch's generator; labels: CSR (len(rows), L); weights:
    (len(rows),) of the draw, None for permutations; checkpoint: a file that is there while the training is unfinished;
    progress: called with the number of steps done. UserError where the loss is not finite.
    """
    torch.manual_seed(seed)
    model = build().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY)
    start, losses = _resume(checkpoint, model, optimiser, device)
    saved = time.monotonic()
    model.train()
    for step in range(start, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, recipe.steps, recipe.learning_rate)
        at = batch_rows(len(rows), recipe.batch_size, step, seed, weights)
        audio = torch.from_numpy(inputs.batch(rows[at])).to(device)
        truth = torch.from_numpy(labels[at].toarray().astype(np.float32)).to(device)
        with _autocast(device, recipe.dtype):
            logits = model(audio)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), truth)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise UserError(f"the loss is not finite at step {step + 1}: type a smaller finetune.learning_rate")
        progress(step + 1)
        if time.monotonic() - saved > SAVE_AFTER_S:
            _save(checkpoint, model, optimiser, step + 1, losses)
            saved = time.monotonic()
    last = losses[-max(1, recipe.steps // 10) :]
    return Trained(_scores(model, inputs, evaluation, recipe, device), float(np.mean(last)))


@torch.no_grad()
def _scores(model: nn.Module, inputs: Inputs, rows: Int64, recipe: Recipe, device: torch.device) -> Float32:
    model.eval()
    out: list[Tensor] = []
    for some in np.split(rows, range(recipe.batch_size, len(rows), recipe.batch_size)):
        with _autocast(device, recipe.dtype):
            out.append(model(torch.from_numpy(inputs.batch(some)).to(device)).float().cpu())
    scores: Float32 = torch.cat(out).numpy()
    return scores


def _autocast(device: torch.device, dtype: torch.dtype) -> Any:
    return torch.autocast(device.type, dtype) if dtype is not torch.float32 else contextlib.nullcontext()


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, losses: list[float]) -> None:
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "losses": losses,
        "rng": torch.get_rng_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as file:
        torch.save(state, file)


def _resume(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> tuple[int, list[float]]:
    """(the step to go on with, the losses so far); a damaged checkpoint starts anew."""
    if not path.is_file():
        return 0, []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"].cpu())
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, ValueError):
        return 0, []
    return int(state["step"]), list(state["losses"])
