"""The best K keys of every seed so far, while new ones come in.

In: keys (rescore.py) with their seeds, in any order of arrival. Out: each seed's K smallest, ascending, and what a new
pair must reach to be among them. A CPU sorts the rows of a table in its caches; a GPU gathers some millions of pairs
and sorts them all at once, by key and then by seed, three times as fast as its rows one by one. The price: on a GPU
`lowest` rises a few times per search only.
"""

from __future__ import annotations

import threading

import torch

from balance.search.rescore import EMPTY, few_rows, similarities_of

_MOST_ROOM = 1 << 11  # new keys per seed: for a larger k a second table of that size would cost more than more merges


class Running:
    """On a CPU: the best k keys of each seed so far, and room for as many new ones, from 64 to 2,048: 8 bytes each.

    `add` and `merge` may be called from several threads.
    """

    def __init__(self, num_seeds: int, k: int) -> None:
        self._k = k
        self._room = min(max(k, 64), _MOST_ROOM)
        self._table = torch.full((num_seeds, k + self._room), EMPTY, dtype=torch.int64)
        self._lock = threading.Lock()
        self._new = torch.zeros(num_seeds, dtype=torch.int64)
        self.lowest = torch.full((num_seeds,), -torch.inf, dtype=torch.float32)

    @property
    def keys(self) -> torch.Tensor:
        """(S, k), ascending, once all are merged."""
        return self._table[:, : self._k]

    def add(self, seeds: slice, seed_at: torch.Tensor, keys: torch.Tensor) -> None:
        """New keys (pairs,); seed_at (pairs,), ascending, counts from the first of `seeds`."""
        counts = torch.bincount(seed_at, minlength=seeds.stop - seeds.start)
        with self._lock:
            table, new = self._table[seeds].view(-1), self._new[seeds]
            firsts = torch.arange(len(counts)) * self._table.shape[1] + self._k
            while len(keys):
                self._merge((new + counts > self._room).nonzero().squeeze(1) + seeds.start)
                most = counts.clamp(max=self._room)
                rank = torch.arange(len(keys))
                rank -= (counts.cumsum(0) - counts).repeat_interleave(counts, output_size=len(keys))
                at = (firsts + new).repeat_interleave(counts, output_size=len(keys)).add_(rank)
                fits = rank < self._room
                if bool(fits.all()):
                    table[at] = keys
                    new += counts
                    return
                table[at[fits]] = keys[fits]
                new += most
                keys, counts = keys[~fits], counts - most

    def restore(self, keys: torch.Tensor) -> None:
        """Starts from these keys (S, k)."""
        self.keys.copy_(keys)
        self._merge(torch.arange(len(keys)))

    def merge(self) -> None:
        """The new keys go into the best k."""
        with self._lock:
            self._merge((self._new > 0).nonzero().squeeze(1))

    def _merge(self, every_row: torch.Tensor) -> None:
        for some in few_rows(len(every_row), self._table.shape[1]):
            rows = every_row[some]
            table = self._table[rows]
            table.numpy().sort(axis=1)  # ten times torch's speed
            table[:, self._k :] = EMPTY
            self._table[rows] = table
            self._new[rows] = 0
            last = table[:, self._k - 1]
            self.lowest[rows] = torch.where(last == EMPTY, -torch.inf, similarities_of(last))


class RunningOnGpu:
    """The same on a GPU, which gathers at least `most_new` new keys before it merges them; one thread."""

    def __init__(self, num_seeds: int, k: int, device: torch.device, most_new: int) -> None:
        self._most_new = most_new
        self._best = torch.full((num_seeds, k), EMPTY, dtype=torch.int64, device=device)
        self._new: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.lowest = torch.full((num_seeds,), -torch.inf, dtype=torch.float32, device=device)

    @property
    def keys(self) -> torch.Tensor:
        """(S, k), ascending."""
        self._merge()
        return self._best

    def add(self, seeds: slice, seed_at: torch.Tensor, keys: torch.Tensor) -> None:
        """New keys (pairs,); seed_at (pairs,) counts from the first of `seeds`."""
        self._new.append((seed_at.int() + seeds.start, keys))
        self.merge()

    def restore(self, keys: torch.Tensor) -> None:
        """Starts from these keys (S, k)."""
        self._best.copy_(keys)
        self._see_lowest()

    def merge(self) -> None:
        """The new keys go into the best k, if they are many."""
        if sum(len(keys) for _, keys in self._new) >= self._most_new:
            self._merge()

    def _merge(self) -> None:
        if not self._new:
            return
        num_seeds, k = self._best.shape
        each = torch.arange(num_seeds, dtype=torch.int32, device=self._best.device)
        seeds = torch.cat([each.repeat_interleave(k, output_size=num_seeds * k), *(seeds for seeds, _ in self._new)])
        keys, order = torch.cat([self._best.view(-1), *(keys for _, keys in self._new)]).sort()
        seeds, order = seeds[order].sort(stable=True)
        first = torch.searchsorted(seeds, each)  # each seed has k or more: those that it had
        at = first[:, None] + torch.arange(k, device=first.device)
        self._best = keys[order[at]]
        self._new = []
        self._see_lowest()

    def _see_lowest(self) -> None:
        last = self._best.amax(dim=1)
        self.lowest = torch.where(last == EMPTY, -torch.inf, similarities_of(last))

    def forget(self, start: int) -> None:
        """Drops the keys of positions from `start` on. They may have pushed out others, but each of them comes again
        and pushes those out again."""
        old = [(keys & 0x7FFFFFFF) < start for _, keys in self._new]
        self._new = [(seeds[few], keys[few]) for few, (seeds, keys) in zip(old, self._new, strict=True)]
        self._best[(self._best & 0x7FFFFFFF) >= start] = EMPTY
        self._see_lowest()
