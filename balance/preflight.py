"""Everything that is refused before work begins, and that no single file can show.

In: the configuration's own parts, and the indexes as read. Out: nothing, or the UserError that says what to type. The
media inventory, which costs a directory scan, follows in the embedding stage, before anything is embedded.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from balance.curation import per_seed
from balance.curation.config import AugmentConfig
from balance.data.config import Ids
from balance.data.slices import same_sound
from balance.engine.seam import Visible
from balance.errors import UserError
from balance.records import Index
from balance.runtime.remote import AnyPath, RemotePath, Unreachable
from balance.search import candidates
from balance.search.config import SearchConfig


def check_root(root: AnyPath) -> None:
    """UserError where the folder of the indexes is none. Behind a URL what is read of it will show."""
    if isinstance(root, Path) and not root.is_dir():
        raise UserError(f"dataset.root={root}: there is no such folder; type the folder with the index files")


def check_search(config: SearchConfig) -> None:
    """UserError where the search's backend cannot be used: said before hours of embedding."""
    candidates.check(config.backend)


def check_indexes(k: int, augment: AugmentConfig, indexes: Mapping[str, Index], ids_as: Ids) -> None:
    """UserError: audio keys that differ, k beyond the pool, a budget below the seeds, no K per seed, seeds in
    eval.

    ids_as: how ids are compared (`clip_ids.reading`).
    """
    seeds, pool = indexes["seeds"], indexes["pool"]
    if seeds.audio_key != pool.audio_key:
        raise UserError(
            f"{seeds.file} uses the key {seeds.audio_key!r} and {pool.file} {pool.audio_key!r}: the published loader "
            "decides by the first line of the joint index, so both must use one; write one of them anew"
        )
    check_k(k, len(pool), f"that {pool.file} lists")
    if augment.budget is not None and augment.budget < len(seeds):
        raise UserError(
            f"augment.budget={augment.budget} is below the {len(seeds):,} seeds, which all stay: type a number of "
            f"clips from {len(seeds)} on"
        )
    if augment.per_seed_k is not None:
        per_seed.choose(augment.per_seed_k, k, seeds.labels)
    if "eval" in indexes:
        _refuse_seeds_in_eval(seeds, indexes["eval"], ids_as)


def _refuse_seeds_in_eval(seeds: Index, evaluation: Index, ids_as: Ids) -> None:
    """UserError if a seed is an evaluation clip, naming up to five."""
    shared = np.flatnonzero(same_sound(seeds, evaluation, ids_as) >= 0)
    if len(shared):
        names = ", ".join(seeds.ids.take(pa.array(shared[:5])).to_pylist())
        raise UserError(
            f"{len(shared):,} seeds are evaluation clips ({names}{', …' if len(shared) > 5 else ''}): take them out of "
            "dataset.balanced, or type dataset.eval=null to run without the guard"
        )


@contextlib.contextmanager
def marker(cache: AnyPath) -> Iterator[AnyPath]:
    """A file in the cache, which other machines must see: a folder of that name alone may be each one's own. The folder
    itself where it cannot be written. Raises Unreachable where there is nothing behind a URL, either."""
    file = cache / f"seen-{secrets.token_hex(8)}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    except (OSError, Unreachable):
        if isinstance(cache, RemotePath) and not cache.exists():
            raise
        yield cache
        return
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def visible_cache(marker: AnyPath) -> list[Visible]:
    """Of the cache, what every node of a cluster must see."""
    return [Visible("cache_dir", marker)]


def visible_inputs(media: Path | RemotePath, encoder: Mapping[str, str]) -> list[Visible]:
    """Of media and encoder, what every node of a cluster must see. encoder: its files. Of the media folder it is
    something that lies in it: the mount point of a file system that is not mounted is there, but empty. A URL is
    nobody's file system."""
    found = [Visible("dataset.media", next(media.iterdir(), media))] if isinstance(media, Path) else []
    return found + [Visible("encoder", Path(file).absolute()) for file in encoder if Path(file).exists()]


def check_k(k: int, num_pool: int, which: str) -> None:
    """UserError if there are fewer than k pool clips to choose from."""
    if not num_pool:
        raise UserError(f"there are no pool clips {which}: name another dataset.unbalanced")
    if k > num_pool:
        raise UserError(f"k={k} is more than the {num_pool:,} pool clips {which}; type k={num_pool} or less")
