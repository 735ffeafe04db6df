"""How similar a seed and a pool clip are that were drawn at random: what every similarity is held against.

In: the splits with their vectors. Out: mean and standard deviation of exact cosines, the same numbers on every machine.
Where embeddings crowd, a cosine of .996 may be what any two clips have. The price: 1,000 rows are read from the store.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from balance.records import Int64, RandomSimilarity, Split
from balance.search.rescore import exact_cosines

NUM_PAIRS = 1000


def random_similarity(seeds: Split, pool: Split, eligible: Int64, rng_seed: int) -> RandomSimilarity:
    """Of seeds and eligible pool clips, drawn with replacement. eligible: (e,) int64 rows of the pool's index."""
    rng = np.random.default_rng(rng_seed)
    of_seeds = seeds.vectors.take(rng.integers(len(seeds.embedded), size=NUM_PAIRS))
    chosen = eligible[rng.integers(len(eligible), size=NUM_PAIRS)]
    of_pool = pool.vectors.take(np.searchsorted(pool.embedded, chosen))
    nonzero = of_seeds.any(axis=1) & of_pool.any(axis=1)  # else the similarity is 0
    pairs = (torch.from_numpy(rows[nonzero]).double() for rows in (of_seeds, of_pool))
    values = np.zeros(NUM_PAIRS)
    values[nonzero] = exact_cosines(*pairs).numpy()
    mean = math.fsum(values) / NUM_PAIRS
    return RandomSimilarity(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / NUM_PAIRS))
