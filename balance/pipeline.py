"""The story of a run: index files -> checkpoint -> inventory -> embeddings -> neighbours.

`prepare` does every stage that is not yet done and gives what all later questions need (outputs, report, probe). Its
files lie in the cache: `{cache_dir}/embeddings/{dataset.name}-{fingerprint}/` and `{cache_dir}/neighbours/`. What does
not depend on k is kept between the jobs of a sweep, which run one after another in one process: a further k is a slice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from balance.audio.fbank import FrontEnd
from balance.config import Settings, as_omegaconf
from balance.curation import decontaminate
from balance.curation.acoustic import AcousticCopies
from balance.data import formats, precomputed
from balance.data.formats import Format
from balance.data.splits import check_indexes, check_k, input_hashes, read_ontology, read_splits
from balance.data.vipant_index import NoSuchIndex
from balance.demo import sounds
from balance.embed.checks import PrecisionReport
from balance.embed.stage import decode_settings, embed_media
from balance.encoders.checkpoint import TowerConfig, read_checkpoint, write_random_checkpoint
from balance.encoders.vipant import resolve_device
from balance.records import Failure, Index, Int64, Neighbours, SomeVectors, Split, UserError
from balance.search.top_k import cached_search, load

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Loaded:
    """A run up to the embeddings: what does not depend on k.

    splits: `seeds`, `pool` and, where it was found, `eval`; failures: of all splits, in the order of failures.jsonl;
    ontology: label id -> name; fingerprint: of the embeddings (hex); identity: changes when their bytes do; inputs:
    path -> sha256 of the files read; times_s: seconds of each stage.
    """

    splits: Mapping[str, Split]
    failures: tuple[Failure, ...]
    ontology: Mapping[str, str]
    fingerprint: str
    identity: str
    device: str
    precision: str
    precision_report: PrecisionReport | None
    inputs: Mapping[str, str]
    times_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared(Loaded):
    """A run up to the neighbours.

    leaks: pool clips kept out as copies of evaluation clips; eligible: (e,) int64 pool rows that may be neighbours,
    ascending; neighbours: at max(k, search.k_cache), at most the eligible pool.
    """

    settings: Settings
    leaks: decontaminate.Removed
    eligible: Int64
    neighbours: Neighbours

    @property
    def seeds(self) -> Split:
        return self.splits["seeds"]

    @property
    def pool(self) -> Split:
        return self.splits["pool"]

    @property
    def eval(self) -> Split | None:
        return self.splits.get("eval")


# The published shape in small; 5 s, the longest demo clip.
_DEMO_TOWER = TowerConfig(
    width=128, num_layers=2, dim=64, patch=(32, 32), stride=(16, 24), max_frames=500, num_mel_bins=128
)
_DEMO_FRONT_END = FrontEnd(max_frames=500, num_mel_bins=128, mean=-4.93839311, std=5.75751113, zero_mean=True)

_kept: dict[str, Loaded] = {}


def prepare(settings: Settings) -> Prepared:
    """Every stage up to the neighbours, or what is left of it. Raises UserError, OSError."""
    beside = dataclasses.replace(settings, k=1, augment=decontaminate.AugmentConfig())
    key = json.dumps(asdict(beside), default=str, sort_keys=True)
    if key not in _kept:
        _kept.clear()
        _kept[key] = _load(settings)
    loaded = _kept[key]
    started = time.monotonic()
    seeds, pool = loaded.splits["seeds"], loaded.splits["pool"]
    leaks = decontaminate.find_leaks(
        settings.augment, pool, loaded.splits.get("eval"), acoustic_copies(settings, loaded)
    )
    excluded = np.asarray(
        pc.is_in(pool.index.ids, value_set=seeds.index.ids).to_numpy(zero_copy_only=False), dtype=bool
    ).copy()
    excluded[leaks.rows] = True
    may_be = np.flatnonzero(~excluded[pool.embedded])
    eligible = pool.embedded[may_be]
    check_k(
        settings.k,
        len(eligible),
        f"that can be neighbours ({len(pool.index):,} listed, {len(pool.embedded):,} embedded, of these "
        f"{int(excluded[pool.embedded].sum()):,} excluded as seeds or copies of evaluation clips)",
    )
    bar = tqdm(total=len(eligible), desc="search", unit=" clips", leave=False, disable=not sys.stderr.isatty())

    def progress(done: int, _: int) -> None:
        bar.update(done - bar.n)

    positions, similarities = cached_search(
        settings.cache,
        _neighbours_key(loaded, eligible),
        load(seeds.vectors),
        SomeVectors(pool.vectors, may_be),
        settings.k,
        settings.search,
        device=torch.device(loaded.device),
        progress=progress,
    )
    bar.close()
    neighbours = Neighbours(seeds.embedded, eligible.astype(np.int32)[positions], similarities)
    values = {f.name: getattr(loaded, f.name) for f in dataclasses.fields(Loaded)}
    values["times_s"] = {**loaded.times_s, "search_s": time.monotonic() - started}
    return Prepared(**values, settings=settings, leaks=leaks, eligible=eligible, neighbours=neighbours)


def acoustic_copies(settings: Settings, loaded: Loaded) -> AcousticCopies | None:
    """What finds copies by their sound, where the configuration asks for it and there is sound."""
    asked = (
        decontaminate.Leaks.acoustic is settings.augment.leaks
        or decontaminate.Copies.acoustic is settings.augment.copies
    )
    if not asked or settings.dataset.format is Format.embeddings:
        return None
    return AcousticCopies(
        decode_settings(settings, _DEMO_FRONT_END),
        threshold=settings.augment.copy_threshold,
        num_workers=settings.num_workers or 1,
        clip_timeout_s=settings.clip_timeout_s,
        search=settings.search,
        device=torch.device(loaded.device),
    )


def _neighbours_key(loaded: Loaded, eligible: Int64) -> str:
    seeds, pool = loaded.splits["seeds"], loaded.splits["pool"]
    digest = hashlib.sha256(f"{loaded.fingerprint} {loaded.identity}\n".encode())
    for index, rows in ((seeds.index, seeds.embedded), (pool.index, eligible)):
        for column in (index.ids, index.paths):
            digest.update("\n".join(column.take(pa.array(rows)).to_pylist()).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


def _load(settings: Settings) -> Loaded:
    started = time.monotonic()
    if settings.is_demo:
        _ensure_demo(settings)
    if not settings.root.is_dir():
        raise UserError(f"dataset.root={settings.root}: there is no such folder; type the folder with the index files")
    device = resolve_device(settings.encoder.device)
    own_vectors = settings.dataset.format is Format.embeddings
    loaded = _load_vectors(settings, device) if own_vectors else _load_media(settings, device)
    for split in ("seeds", "pool"):
        if not len(loaded.splits[split].embedded):
            raise UserError(f"no clip of the {split} has an embedding: there is nothing to search")
    return dataclasses.replace(loaded, times_s={**loaded.times_s, "load_s": time.monotonic() - started})


def _ensure_demo(settings: Settings) -> None:
    root = settings.cache / "demo"
    sounds.ensure(root, num_processes=settings.num_workers or 1)
    if not (root / "checkpoint.pth").is_file():
        write_random_checkpoint(
            root / "checkpoint.pth", seed=sounds.SEED, config=_DEMO_TOWER, front_end=_DEMO_FRONT_END, wrap=as_omegaconf
        )


def _load_vectors(settings: Settings, device: torch.device) -> Loaded:
    root = settings.root
    beside: list[Path] = []

    def read(value: str) -> precomputed.GivenSplit | Index:
        split: precomputed.GivenSplit | Index
        try:
            split = precomputed.read_vectors(root, value, scratch=_scratch(settings))
        except NoSuchIndex:
            if value != settings.dataset.eval:
                raise
            split = precomputed.read_guard(root, value)  # ids alone serve the guard
        beside.extend(precomputed.files_beside(root, value))
        return split

    found = read_splits(settings.dataset, read)
    given = {name: split for name, split in found.items() if isinstance(split, precomputed.GivenSplit)}
    indexes = {
        name: split.index if isinstance(split, precomputed.GivenSplit) else split for name, split in found.items()
    }
    check_indexes(settings.k, settings.augment.budget, indexes)
    precomputed.refuse_other_dims(**given)
    names, ontology = read_ontology(settings.dataset.ontology, root)
    shas = {f"{name}.vectors": split.sha256 for name, split in given.items()}
    fingerprint = hashlib.sha256(json.dumps([shas["seeds.vectors"], shas["pool.vectors"]]).encode()).hexdigest()
    splits = {
        name: Split(split.index, np.arange(len(split.index), dtype=np.int64), split.vectors, None)
        for name, split in given.items()
    }
    if "eval" in indexes and "eval" not in given:
        none = np.empty(0, dtype=np.int64)
        splits["eval"] = Split(indexes["eval"], none, SomeVectors(given["seeds"].vectors, none), None)
    return Loaded(
        splits=splits,
        failures=(),
        ontology=names,
        fingerprint=fingerprint[:16],
        identity="",
        device=str(device),
        precision="float32",
        precision_report=None,
        inputs=shas | input_hashes([*beside, ontology]),
        times_s={},
    )


def _scratch(settings: Settings) -> Path | None:
    """A folder for large temporary files: the cache, which has room (the system's may be memory); None if read-only."""
    try:
        settings.cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return settings.cache if os.access(settings.cache, os.W_OK) else None


def _load_media(settings: Settings, device: torch.device) -> Loaded:
    dataset = settings.dataset
    root, media_root = settings.root, settings.media_root

    def read(value: str) -> Index:
        return formats.read_split(dataset.format, value, root=root, media=media_root, columns=dataset.columns)

    indexes = read_splits(dataset, read)
    check_indexes(settings.k, settings.augment.budget, indexes)
    names, ontology = read_ontology(dataset.ontology, root)
    if settings.encoder.checkpoint is None:
        raise UserError(
            "encoder.checkpoint is not given: type encoder.checkpoint=/path/to/00071478.pth (the README says where it "
            "is), or try dataset=demo"
        )
    checkpoint = read_checkpoint(Path(settings.encoder.checkpoint).expanduser())
    embedded = embed_media(settings, indexes, checkpoint, device=device, names=names)
    return Loaded(
        splits=embedded.splits,
        failures=embedded.failures,
        ontology=names,
        fingerprint=embedded.fingerprint,
        identity=embedded.identity,
        device=str(device),
        precision=embedded.precision,
        precision_report=embedded.precision_report,
        inputs=input_hashes([*(Path(index.file) for index in indexes.values()), ontology])
        | {str(checkpoint.path): checkpoint.sha256},
        times_s=embedded.times_s,
    )
