"""Consensus between encoders: the neighbours that several stores of the same clips agree on, and how far they agree.

In: a run's own neighbours at K, the stores that `search.also` names. Out: the neighbours in the order of
`search.consensus`, and an `Agreement`: a neighbour that only one model sees is where models err. Every store is
searched over the same eligible clips, exactly, as far as it has them; the price is one search more per store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from balance.embed.store import Store
from balance.engine.seam import Engine
from balance.errors import UserError
from balance.records import Int32, Int64, Neighbours, SomeVectors, Split
from balance.runtime.remote import AnyPath, RemotePath, place
from balance.runtime.wording import listed
from balance.search import consensus
from balance.search.config import SearchConfig
from balance.search.ranges import kept_search
from balance.search.top_k import load


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """stores: names of the others; agreement: the mean over seeds of the share of the first encoder's top K that
    another encoder has in its top K too; agreement_random: the same for uniform picks; in_all: share of the
    neighbours that all encoders have; by_seed: seed id -> its agreement; by_label: label -> mean over its seeds."""

    stores: Sequence[str]
    agreement: float | None
    agreement_random: float
    in_all: float
    by_seed: Mapping[str, float]
    by_label: Mapping[str, float]


def find_stores(also: Sequence[str], cache: AnyPath) -> list[AnyPath]:
    """The folders of these stores. UserError where one is none."""
    found: list[AnyPath] = []
    stores = cache / "embeddings"
    for given in also:
        folder = next((path for path in (place(given), stores / given) if _is_store(path)), None)
        if folder is None:
            names = stores.names("directory") if isinstance(stores, RemotePath) else [p.name for p in stores.glob("*")]
            there = sorted(name for name in names if _is_store(stores / name))
            raise UserError(
                f"search.also names {given}, which is no store: type a folder with part-*.arrow, or the name of one in "
                f"{stores}: {listed(there) if there else 'there is none yet'}"
            )
        found.append(folder)
    return found


def _is_store(folder: AnyPath) -> bool:
    return any(folder.glob("part-*-*.arrow"))


def agree(
    stores: Sequence[AnyPath],
    own: Neighbours,
    seeds: Split,
    pool: Split,
    eligible_positions: Int64,
    config: SearchConfig,
    *,
    cache: AnyPath,
    device: torch.device,
    engine: Engine | None,
) -> tuple[Neighbours, Agreement]:
    """own: the run's own neighbours at K; eligible_positions: places in `pool.embedded`. Raises UserError."""
    eligible = pool.embedded[eligible_positions]
    place = np.full(len(pool.index), -1, dtype=np.int32)
    place[eligible] = np.arange(len(eligible), dtype=np.int32)
    others = [
        _top(folder, own.k, seeds, pool, eligible, config, cache=cache, device=device, engine=engine)
        for folder in stores
    ]
    candidates = SomeVectors(pool.vectors, eligible_positions)
    found = consensus.find(place[own.pool_rows], own.similarities, others, load(seeds.vectors), candidates)
    neighbours = Neighbours(own.seed_rows, eligible.astype(np.int32)[found.positions], found.similarities)
    known = ~np.isnan(found.agreement)
    ids = seeds.index.ids.take(pa.array(own.seed_rows[known])).to_pylist()
    labels = seeds.index.labels.take(own.seed_rows[known])
    counts = np.bincount(labels.codes, minlength=len(labels.names))
    sums = np.bincount(
        labels.codes, weights=np.repeat(found.agreement[known], labels.sizes()), minlength=len(labels.names)
    )
    by_label = {name: float(sums[i] / counts[i]) for i, name in enumerate(labels.names) if counts[i]}
    return neighbours, Agreement(
        stores=[folder.name for folder in stores],
        agreement=float(found.agreement[known].mean()) if known.any() else None,
        agreement_random=own.k / len(eligible),
        in_all=float((found.num_lists == 1 + len(others)).mean()),
        by_seed=dict(zip(ids, found.agreement[known].tolist(), strict=True)),
        by_label=dict(sorted(by_label.items())),
    )


def _top(
    folder: AnyPath,
    k: int,
    seeds: Split,
    pool: Split,
    eligible: Int64,
    config: SearchConfig,
    *,
    cache: AnyPath,
    device: torch.device,
    engine: Engine | None,
) -> Int32:
    """(S, k) places in `eligible` of each seed's neighbours in this store, −1 for seeds that it does not have."""
    store = Store(folder)
    seed_rows = store.rows(seeds.index.paths.take(pa.array(seeds.embedded)))
    pool_rows = store.rows(pool.index.paths.take(pa.array(eligible)))
    has_seed, has_pool = np.flatnonzero(seed_rows >= 0), np.flatnonzero(pool_rows >= 0)
    if not len(has_seed) or not len(has_pool):
        raise UserError(f"search.also: the store {folder.name} has none of these clips' paths; is it of other data?")
    size = min(k, len(has_pool))
    used = np.concatenate([seed_rows[has_seed], pool_rows[has_pool]])
    positions, _ = kept_search(
        cache,
        _key(folder, store, used, has_seed, has_pool),
        store.vectors(seed_rows[has_seed]),
        store.vectors(pool_rows[has_pool]),
        size,
        config,
        device=device,
        engine=engine,
    )
    out = np.full((len(seed_rows), k), -1, dtype=np.int32)
    out[has_seed, :size] = has_pool.astype(np.int32)[positions[:, :size]]
    return out


def _key(folder: AnyPath, store: Store, used: Int64, *columns: Int64) -> str:
    """What decides the neighbours, for their file in the cache."""
    digest = hashlib.sha256(f"also {folder.name} {store.identity(used)}\n".encode() + used.tobytes())
    for column in columns:
        digest.update(np.int64(len(column)).tobytes() + column.tobytes())
    return digest.hexdigest()[:32]
