"""Two more readings beside the linear one and the k-NN vote: class prototypes, and a small network.

In: training rows (`logistic.Examples`), standardised queries; out: (q, C) scores. A prototype head has nothing to
choose: each label's mean clip. The network is one hidden layer, trained for the same number of steps on every training
set: what a linear probe cannot use, it can. Price: its own randomness, which the draws' spread contains.
Sources: Snell, Swersky and Zemel 2017 (prototypes); Loshchilov and Hutter 2019 (AdamW).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from balance.probe.logistic import Examples
from balance.records import Float32
from balance.runtime.threads import one_core

HIDDEN = 256
BATCH = 512
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2
STEPS_AT_ONCE = 16  # whose rows are read together
FEW_VALUES = 2**22  # weights x rows of a step up to which one core is faster than several


def prototypes(examples: Examples, queries: Tensor) -> Float32:
    """Cosine of each query (q, dim) with each label's prototype: the mean of its unit clips minus that of all."""
    dim = examples.shape[1]
    labels, weights = examples.labels, examples.weights
    sums = np.zeros((labels.shape[1], dim))
    total = np.zeros(dim)
    mass = labels.T @ weights.astype(np.float64)
    for start, block in examples.blocks():
        rows = torch.nn.functional.normalize(block, dim=1).cpu().numpy() * weights[start : start + len(block), None]
        sums += labels[start : start + len(block)].T @ rows
        total += rows.sum(axis=0, dtype=np.float64)
    centres = sums / np.maximum(mass, 1e-12)[:, None] - total / weights.sum(dtype=np.float64)
    centres[mass == 0] = 0.0
    at = torch.as_tensor(centres, dtype=torch.float32, device=queries.device)
    unit = torch.nn.functional.normalize(queries, dim=1)
    return np.asarray((unit @ torch.nn.functional.normalize(at, dim=1).T).cpu().numpy(), dtype=np.float32)


def network(examples: Examples, queries: Tensor, steps: int, rng: np.random.Generator) -> Float32:
    """Logits (q, C) of one hidden layer of HIDDEN units after `steps` steps of BATCH rows, drawn by their weights."""
    (num_rows, dim), num_labels = examples.shape, examples.labels.shape[1]
    values = [
        rng.standard_normal((dim, HIDDEN)) * np.sqrt(2 / dim), np.zeros(HIDDEN),
        np.zeros((HIDDEN, num_labels)), _log_odds(examples),
    ]  # fmt: skip
    parameters = [torch.tensor(v, dtype=torch.float32, device=queries.device, requires_grad=True) for v in values]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    chances = examples.weights / examples.weights.sum(dtype=np.float64)
    even = bool((examples.weights == examples.weights[0]).all())
    few = BATCH * HIDDEN * (dim + num_labels) <= FEW_VALUES * 8

    def forward(features: Tensor) -> Tensor:
        hidden = torch.relu(torch.addmm(parameters[1], features, parameters[0]))
        return torch.addmm(parameters[3], hidden, parameters[2])

    def train() -> None:
        for first in range(0, steps, STEPS_AT_ONCE):
            num = min(STEPS_AT_ONCE, steps - first)
            size = (num, min(BATCH, num_rows))
            drawn = rng.integers(0, num_rows, size) if even else rng.choice(num_rows, size, p=chances)
            rows, place = np.unique(drawn, return_inverse=True)
            features = examples.sample(rows)
            truth = torch.as_tensor(examples.labels[rows].toarray(), dtype=torch.float32, device=queries.device)
            for at in torch.as_tensor(place.reshape(size), device=queries.device):
                optimiser.zero_grad()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(forward(features[at]), truth[at])
                (loss * num_labels).backward()
                optimiser.step()
                schedule.step()

    if few:
        with one_core():
            train()
    else:
        train()
    with torch.no_grad():
        return np.asarray(forward(queries).cpu().numpy(), dtype=np.float32)


def _log_odds(examples: Examples) -> Float32:
    """Where the network starts: every label's share of the rows."""
    share = (np.asarray(examples.labels.sum(axis=0)).ravel() + 0.5) / (examples.shape[0] + 1.0)
    return np.asarray(np.log(share) - np.log1p(-share), dtype=np.float32)
