"""Weighted sampling of an index's clips, under distributed training too.

In: an index's labels, or weights of your own. Out: VIP-ANT's sampling weights, and a sampler whose ranks share one draw
(the published code drops the weights under distributed training). The price: every rank draws the whole epoch and
keeps its slice, 0.2 s for two million clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from balance.data.vipant_index import index_weights
from balance.errors import UserError
from balance.records import Index, Int64, Labels


def sample_weights(*indexes: Index) -> Tensor:
    """VIP-ANT's sampling weights of the indexes' clips, one index after another, (n,) float64: the sum of
    1000 / (count(label) + 1) over a clip's labels, counted over all of them."""
    return torch.from_numpy(index_weights(Labels.join([index.labels for index in indexes])))


class DistributedWeightedSampler(Sampler[int]):
    """Weighted sampling with replacement, also under distributed training.

    Every rank makes the same draw of an epoch, seeded by (seed, epoch), and takes each num_replicas-th of it from its
    rank on: the slices are disjoint and together they are the weighted draw. weights: (n,), ≥ 0; num_samples: draws per
    epoch over all ranks (default n), rounded up to a multiple of the ranks; num_replicas, rank: default those of
    torch.distributed where it is initialised, else one rank. Call `set_epoch` before each epoch, as with
    torch's DistributedSampler.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        num_samples: int | None = None,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 1213,
    ) -> None:
        values = np.asarray(weights, dtype=np.float64)
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (values < 0).any():
            raise UserError(f"weights must be finite numbers ≥ 0, one per clip; got an array of shape {values.shape}")
        if not values.sum() > 0:
            raise UserError(f"all {len(values)} weights are 0 (clips without labels?): nothing can be drawn")
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        world_size = torch.distributed.get_world_size() if is_distributed else 1
        self.num_replicas = world_size if num_replicas is None else num_replicas
        if self.num_replicas < 1:
            raise UserError(f"num_replicas={num_replicas}: at least 1")
        self.rank = rank if rank is not None else (torch.distributed.get_rank() if is_distributed else 0)
        if not 0 <= self.rank < self.num_replicas:
            raise UserError(f"rank={self.rank}: must be 0 … {self.num_replicas - 1} of {self.num_replicas} ranks")
        wanted = len(values) if num_samples is None else num_samples
        if wanted < 1:
            raise UserError(f"num_samples={num_samples}: at least 1")
        self.num_samples = -(-wanted // self.num_replicas)  # of this rank
        self.seed, self.epoch = seed, 0
        self._cumulative = np.cumsum(values)
        self._last = int(np.flatnonzero(values)[-1])

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another draw; the same on all ranks."""
        self.epoch = epoch

    def draw(self) -> Int64:
        """The epoch's draw over all ranks, (num_samples * num_replicas,) rows."""
        rng = np.random.default_rng([self.seed, self.epoch])
        at = rng.random(self.num_samples * self.num_replicas) * self._cumulative[-1]
        # A product may round up to the total itself: that is the last clip with a weight, not one beyond the end.
        rows: Int64 = np.searchsorted(self._cumulative, at, side="right").astype(np.int64)
        return np.minimum(rows, self._last)

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw()[self.rank :: self.num_replicas].tolist())

    def __len__(self) -> int:
        return self.num_samples
