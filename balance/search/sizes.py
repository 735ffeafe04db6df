"""How much a search works on at once: seeds, rows of the pool, pairs whose similarity is computed, new keys.

In: the shapes, the first pass, and on a GPU the memory that is free. Out: frozen sizes, and half of them for a GPU
that ran out of memory all the same. The result's bytes do not depend on any. The price of small sizes is time: below
some thousand rows every product ends before all cores are at work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from balance.search.candidates import CandidateSearch

SEED_ROWS_CPU = 1 << 12  # seeds in one product
SEED_ROWS_GPU = 1 << 15  # AudioSet's 22,160: a product at a time, and few that wait for each other
SAMPLE_ROWS_CPU = 1 << 12
SAMPLE_ROWS_GPU = 1 << 16  # 2 ms more of products; a seed of AudioSet's size then has 1,300 candidates, not 5,000
ROWS_MULTIPLE = 64  # of a block: with odd numbers of rows MKL's float32 product takes a third longer
BLOCK_PAIRS_CPU = 1 << 24  # seeds x rows of all blocks at work: all of them may reach their thresholds
BLOCK_PAIRS_GPU = (1 << 30) - (1 << 20)  # the same; CUDA numbers the bytes of a float16 block in 31 bits
RESCORE_PAIRS = 1 << 22  # pairs rescored at once by all cores
RESCORE_PAIR_BYTES = 100
NEW_PAIRS_GPU = 1 << 24  # keys that are sorted at once, besides the best so far
NEW_PAIR_BYTES = 80


@dataclass(frozen=True, slots=True)
class Sizes:
    """seed_rows, block_rows: seeds and pool rows in one product; sample_rows: of the pool, for a guess; rescore_pairs:
    pairs rescored at once by one thread; new_pairs: keys that a GPU gathers before it sorts them."""

    seed_rows: int
    sample_rows: int
    block_rows: int
    rescore_pairs: int
    new_pairs: int

    def halved(self, num_rows: int) -> Sizes:
        """For a GPU that had too little memory for a block of `num_rows`."""
        fewer = max(1, self.rescore_pairs // 2), max(1, self.new_pairs // 2)
        return Sizes(self.seed_rows, self.sample_rows, max(1, num_rows // 2), *fewer)


def usual_sizes(num_seeds: int, num_pool: int, dim: int, first_pass: CandidateSearch) -> Sizes:
    """As much as the first pass likes and memory allows, and about as many rows in every block of every core."""
    on_cpu = first_pass.device.type == "cpu"
    seed_rows, sample_rows = (SEED_ROWS_CPU, SAMPLE_ROWS_CPU) if on_cpu else (SEED_ROWS_GPU, SAMPLE_ROWS_GPU)
    batch = min(num_seeds, seed_rows)
    most = first_pass.block_bytes // (4 * dim)
    if on_cpu:
        cores = torch.get_num_threads()
        most = min(most, BLOCK_PAIRS_CPU // (cores * batch))
        rescore_pairs, new_pairs = RESCORE_PAIRS // cores, 0
    else:
        cores = 1
        free_bytes, _ = torch.cuda.mem_get_info(first_pass.device)
        # Half of what is free: for a row as it came, in float64 and in low precision; a pair's score, and its share of
        # the groups that are looked into.
        most = min(most, BLOCK_PAIRS_GPU // batch, free_bytes // 2 // (18 * dim + 4 * batch))
        # An eighth each; the last quarter is for the seeds and their running top K.
        rescore_pairs = max(1, min(RESCORE_PAIRS, free_bytes // 8 // RESCORE_PAIR_BYTES))
        new_pairs = max(1, min(NEW_PAIRS_GPU, free_bytes // 8 // NEW_PAIR_BYTES))
        sample_rows = max(1, min(sample_rows, free_bytes // 8 // (14 * dim)))
    if not first_pass.needs_guess:
        sample_rows, new_pairs = max(1, sample_rows // 4), 1  # nothing but the running K-th keeps its pairs few
    most = max(ROWS_MULTIPLE, most // ROWS_MULTIPLE * ROWS_MULTIPLE)
    rows = math.ceil(num_pool / (cores * math.ceil(num_pool / (cores * most))))
    block_rows = math.ceil(rows / ROWS_MULTIPLE) * ROWS_MULTIPLE
    return Sizes(seed_rows, sample_rows, block_rows, rescore_pairs, new_pairs)
