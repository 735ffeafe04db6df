"""The index files of a run and what must hold between them, before any work begins."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from balance.config import DatasetConfig
from balance.curation import decontaminate
from balance.data import vipant_index
from balance.records import Index, UserError
from balance.runtime import files

log = logging.getLogger(__name__)

T = TypeVar("T")


def read_splits(dataset: DatasetConfig, read: Callable[[str], T]) -> dict[str, T]:
    """Seeds, pool and, where it is found, eval: each `read(value)` of its key."""
    found = {"seeds": read(dataset.balanced), "pool": read(dataset.unbalanced)}
    if dataset.eval is not None:
        try:
            found["eval"] = read(dataset.eval)
        except vipant_index.NoSuchIndex as error:
            log.warning("no guard against evaluation clips: %s", error)
    return found


def check_indexes(k: int, budget: int | None, indexes: Mapping[str, Index]) -> None:
    """UserError for what single files cannot show: audio keys that differ, k beyond the pool, a budget below the seeds,
    seeds in eval."""
    seeds, pool = indexes["seeds"], indexes["pool"]
    for split, index in indexes.items():
        log.info("%s: %s clips in %s", split, f"{len(index):,}", index.file)
    if seeds.audio_key != pool.audio_key:
        raise UserError(
            f"{seeds.file} uses the key {seeds.audio_key!r} and {pool.file} {pool.audio_key!r}: the published loader "
            "decides by the first line of the joint index, so both must use one; write one of them anew"
        )
    check_k(k, len(pool), f"that {pool.file} lists")
    if budget is not None and budget < len(seeds):
        raise UserError(
            f"augment.budget={budget} is below the {len(seeds):,} seeds, which all stay: type a number of clips from "
            f"{len(seeds)} on"
        )
    if "eval" in indexes:
        decontaminate.refuse_seeds_in_eval(seeds.ids, indexes["eval"].ids)


def check_k(k: int, num_pool: int, which: str) -> None:
    """UserError if there are fewer than k pool clips to choose from."""
    if not num_pool:
        raise UserError(f"there are no pool clips {which}: name another dataset.unbalanced")
    if k > num_pool:
        raise UserError(f"k={k} is more than the {num_pool:,} pool clips {which}; type k={num_pool} or less")


def read_ontology(given: str | None, root: Path) -> tuple[dict[str, str], Path | None]:
    """(label id -> name, the file): of `dataset.ontology`, else of `ontology.json` under the root if it is there."""
    path = Path(given).expanduser() if given else root / "ontology.json"
    if not path.is_file():
        if given:
            raise UserError(f"dataset.ontology={given}: no such file; leave it out, or name AudioSet's ontology.json")
        return {}, None
    try:
        return {str(entry["id"]): str(entry["name"]) for entry in json.loads(path.read_text("utf-8"))}, path
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not an ontology (a JSON list of objects with id and name)") from error


def input_hashes(paths: list[Path | None]) -> dict[str, str]:
    """Path -> sha256 of the input files that are files."""
    return {str(path): files.sha256_file(path) for path in paths if path is not None and path.is_file()}
