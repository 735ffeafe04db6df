"""The probe's second classifier, with nothing to fit: a clip's label is the vote of its nearest training clips.

In: standardised queries and training blocks; out: (q, L) scores, each the share of a query's `num_votes` nearest
training clips (cosine) that have the label, votes weighted by similarity. No regularisation is chosen and no optimiser
runs, so it cannot be fooled by either. Price: one product of all queries with all rows, and coarse scores (many ties).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from balance.probe.logistic import Examples
from balance.records import Float32

QUERY_ROWS = 2048  # a block of similarities is 2,048 x 4,096 float32: 33 MB


def vote(examples: Examples, queries: Tensor, num_votes: int) -> Float32:
    """Scores (q, L) float32 of queries (q, dim), standardised, on the device of the examples.

    Row weights of the examples weigh their votes. Ties in similarity go to the earlier training row.
    """
    num_votes = min(num_votes, examples.shape[0])
    unit = torch.nn.functional.normalize(queries, dim=1)
    values = torch.empty((len(unit), 0), device=queries.device)
    places = torch.empty((len(unit), 0), device=queries.device, dtype=torch.int64)
    for start, block in examples.blocks():
        rows = torch.nn.functional.normalize(block, dim=1)
        parts = []
        for first in range(0, len(unit), QUERY_ROWS):
            at = slice(first, first + QUERY_ROWS)
            found, where = torch.topk(unit[at] @ rows.T, min(num_votes, len(rows)), dim=1)
            joined = torch.cat([values[at], found], dim=1)
            origin = torch.cat([places[at], where + start], dim=1)
            order = torch.argsort(joined, dim=1, descending=True, stable=True)[:, :num_votes]
            parts.append((joined.gather(1, order), origin.gather(1, order)))
        values, places = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    near = places.cpu().numpy()
    votes = (values.clamp_min(0).cpu().numpy() + 1e-6) * examples.weights[near]
    indptr = np.arange(len(near) + 1) * near.shape[1]
    chosen: Any = scipy.sparse.csr_matrix((votes.ravel(), near.ravel(), indptr), shape=(len(near), examples.shape[0]))
    scores = np.asarray((chosen @ examples.labels.astype(np.float32)).todense(), dtype=np.float32)
    return np.asarray(scores / votes.sum(axis=1, keepdims=True), dtype=np.float32)
