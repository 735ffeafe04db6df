"""Label balance and budget: how many of the neighbours stay, and which.

In: the candidates' label sets or lowest ranks, random numbers. Out: masks or chances, one value per candidate. The cap,
which is a linear programme, is `label_cap`; here are MetaCLIP's draw, which thins the frequent labels without a firm
limit, and the budget, which takes clips rank by rank so that no seed's first neighbour waits for another's last.
"""

from __future__ import annotations

import numpy as np

from balance.records import Bool, Float64, Int32, Labels


def metaclip_chances(candidates: Labels, per_label: int) -> Float64:
    """Probability of each candidate to stay, (n,) float64: 1 − Π over its labels of (1 − t / max(count, t)).

    MetaCLIP's balancing (Xu et al. 2024, "Demystifying CLIP Data", algorithm 1) with the labels as its entries; count
    over the candidates. A clip without labels has probability 0.
    """
    misses = 1.0 - per_label / np.maximum(candidates.counts(), per_label)
    chances = np.zeros(len(candidates))
    some = np.flatnonzero(candidates.sizes())
    if len(some):
        chances[some] = 1.0 - np.multiply.reduceat(misses[candidates.codes], candidates.offsets[some])
    return chances


def within_budget(lowest: Int32, room: int, rng: np.random.Generator) -> tuple[Bool, int]:
    """(mask of the clips taken rank by rank, the rank reached): whole ranks while they fit, the last by a draw."""
    if room >= len(lowest):
        return np.ones(len(lowest), dtype=np.bool_), int(lowest.max(initial=0))
    upto = np.cumsum(np.bincount(lowest))  # clips of rank r or lower
    rank = int(np.searchsorted(upto, room, side="left"))
    chosen = lowest < rank
    last = np.flatnonzero(lowest == rank)
    chosen[rng.choice(last, room - int(chosen.sum()), replace=False)] = True
    return chosen, rank
