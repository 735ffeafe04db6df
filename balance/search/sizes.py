"""How much a search works on at once: rows of the pool, pairs whose similarity is computed.

In: the shapes, the first pass, and on a GPU the memory that is free. Out: frozen sizes, and half of them for a GPU
that ran out of memory all the same. The result's bytes do not depend on any. The price of small sizes is time: below
some thousand rows every product ends before all cores are at work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from balance.search.candidates import CandidateSearch

SEED_ROWS = 1 << 12  # seeds in one product
ROWS_MULTIPLE = 64  # of a block: with odd numbers of rows MKL's float32 product takes a third longer
BLOCK_PAIRS_CPU = 1 << 24  # seeds x rows of all blocks at work: all of them may reach their thresholds
BLOCK_PAIRS_GPU = 1 << 28  # the same; CUDA numbers the elements of a block in 31 bits
RESCORE_PAIRS = 1 << 22  # pairs rescored at once by all cores
RESCORE_PAIR_BYTES = 100
GATHER_BYTES = 1 << 30  # of a GPU, for both rows in float64 of the pairs whose products are summed at once


@dataclass(frozen=True, slots=True)
class Sizes:
    """block_rows: pool rows read and multiplied at once; rescore_pairs: pairs rescored at once by one thread;
    gather_pairs: pairs whose rows a GPU gathers at once."""

    block_rows: int
    rescore_pairs: int
    gather_pairs: int

    def halved(self, num_rows: int) -> Sizes:
        """For a GPU that had too little memory for a block of `num_rows`."""
        return Sizes(max(1, num_rows // 2), max(1, self.rescore_pairs // 2), max(1, self.gather_pairs // 2))


def usual_sizes(num_seeds: int, num_pool: int, dim: int, first_pass: CandidateSearch) -> Sizes:
    """As much as the first pass likes and memory allows, and about as many rows in every block of every core."""
    batch, gather_pair_bytes = min(num_seeds, SEED_ROWS), 24 * dim
    most = first_pass.block_bytes // (4 * dim)
    if first_pass.device.type == "cpu":
        cores = torch.get_num_threads()
        most = min(most, BLOCK_PAIRS_CPU // (cores * batch))
        rescore_pairs, gather_pairs = RESCORE_PAIRS // cores, GATHER_BYTES // gather_pair_bytes
    else:
        cores = 1
        free_bytes, _ = torch.cuda.mem_get_info(first_pass.device)
        # Half of what is free: for a row as it came, in float64 and in low precision; a pair's score, and a bool.
        most = min(most, BLOCK_PAIRS_GPU // batch, free_bytes // 2 // (18 * dim + 4 * batch))
        # An eighth each; the last quarter is for the seeds and their running top K.
        rescore_pairs = max(1, min(RESCORE_PAIRS, free_bytes // 8 // RESCORE_PAIR_BYTES))
        gather_pairs = max(1, min(GATHER_BYTES, free_bytes // 8) // gather_pair_bytes)
    most = max(ROWS_MULTIPLE, most // ROWS_MULTIPLE * ROWS_MULTIPLE)
    rows = math.ceil(num_pool / (cores * math.ceil(num_pool / (cores * most))))
    return Sizes(math.ceil(rows / ROWS_MULTIPLE) * ROWS_MULTIPLE, rescore_pairs, gather_pairs)
