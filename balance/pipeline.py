"""The story of a run, top to bottom: indexes -> media -> embeddings -> neighbours -> curation -> files.

`run` is the main job; `prepare`, its first half, also serves the probe. What lasts lies in the cache,
`{cache_dir}/embeddings/{dataset.name}-{fingerprint}/` and `{cache_dir}/neighbours/`, so that a stage that is done is
not done again. A sweep's jobs run one after another in one process and share a `Kept`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from balance import consensus, preflight
from balance.config import Settings, as_omegaconf, as_plain
from balance.curation import curate, decontaminate, id_lists, own_sound
from balance.curation.acoustic import AcousticCopies
from balance.curation.config import AugmentConfig, Copies, Leaks
from balance.curation.removed import Removals
from balance.curation.sounds import Decoders
from balance.data import clip_ids, formats, precomputed, splits
from balance.data.config import Format, Ids
from balance.data.locate import NoSuchIndex
from balance.data.ontology import ontology_file, read_ontology, read_parents
from balance.data.slices import same_sound
from balance.demo.making import ensure_demo
from balance.embed.stage import embed_media
from balance.encoders.chosen import read_encoder
from balance.encoders.config import EncoderConfig
from balance.encoders.device import own_device, resolve_device
from balance.engine import config as engine_config
from balance.engine.seam import Engine
from balance.errors import UserError
from balance.prepared import Embedded, Prepared
from balance.records import Float32, Index, Int64, Neighbours, SomeVectors, Split
from balance.report import page
from balance.report.sound import Sound
from balance.results import console, curation_files, manifest, tables
from balance.results.summary import Summary, summarise, write_summary
from balance.results.train_root import write_train_root
from balance.runtime import files
from balance.runtime.remote import AnyPath, place
from balance.runtime.terminal import Stage
from balance.search.ranges import kept_search

if TYPE_CHECKING:
    from balance.engine.ray import Cluster

_KEY_ROWS = 65_536
Decontaminated: TypeAlias = tuple[Removals, tuple[str, ...]]  # pool clips that are out, warnings


class Kept:
    """What the jobs of a sweep share: the last run up to its embeddings, and the settings that it belongs to.

    uses: the marks in the stores that the embeddings are read from, taken away when this is closed, as the engine is.
    """

    def __init__(self) -> None:
        self._key = ""
        self._embedded: Embedded | None = None
        self._decontaminated: dict[tuple[Leaks, float], Decontaminated] = {}
        self._heard: Embedded | None = None
        self.uses = contextlib.ExitStack()
        self._engine: Cluster | None = None

    def engine(self, settings: Settings) -> Cluster | None:
        """What runs the work on many machines, connected once; None for this machine's own processes."""
        if settings.executor.kind is engine_config.Kind.ray and self._engine is None:
            self._engine = self.uses.enter_context(_connect(settings, self.uses))
        return self._engine

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.uses.close()

    def get(self, settings: Settings) -> Embedded | None:
        """The embeddings of settings that differ in `k` and `augment` alone; None where there are none."""
        return self._embedded if self._key == self._key_of(settings) else None

    def put(self, settings: Settings, embedded: Embedded) -> None:
        self._key, self._embedded, self._heard = self._key_of(settings), embedded, None
        self._decontaminated.clear()

    def heard(self, find: Callable[[], Embedded]) -> Embedded:
        """What `find` gives of the kept embeddings: the same with facts of their sound, once."""
        self._heard = self._heard or find()
        return self._heard

    def decontaminated(self, augment: AugmentConfig, find: Callable[[], Decontaminated]) -> Decontaminated:
        """What `find` gives of the kept embeddings: once per level and threshold, since sound is dear to compare."""
        key = augment.leaks, augment.copy_threshold
        if key not in self._decontaminated:
            self._decontaminated[key] = find()
        return self._decontaminated[key]

    @staticmethod
    def _key_of(settings: Settings) -> str:
        beside = dataclasses.replace(settings, k=1, augment=AugmentConfig())
        return json.dumps(dataclasses.asdict(beside), default=str, sort_keys=True)


def run(settings: Settings, folder: Path, kept: Kept | None = None, *, in_sweep: bool = False) -> None:
    """The whole job into `folder`. in_sweep: the console has a line per run. Raises UserError, OSError."""
    if kept is None:
        with Kept() as own:
            return run(settings, folder, own, in_sweep=in_sweep)
    started = time.monotonic()
    prepared = prepare(settings, kept)
    neighbours = prepared.neighbours.top(settings.k)
    heard = _heard(settings, prepared.embedded, kept)
    curated = curate.curate(
        settings.augment,
        rng_seed=settings.seed,
        seeds=heard.seeds,
        pool=heard.pool,
        eligible=prepared.eligible,
        neighbours=neighbours,
        acoustic=_acoustic_copies(settings, heard),
        included=prepared.included,
    )
    summary, train_with = _write(settings, folder, prepared, neighbours, curated, started)
    console.tell(
        folder, prepared, summary, curated, train_with=train_with, is_demo=settings.hears_at_random, in_sweep=in_sweep
    )


def prepare(settings: Settings, kept: Kept) -> Prepared:
    """Every stage up to the neighbours, or what is left of it. Raises UserError, OSError."""
    started = time.monotonic()
    stores = consensus.find_stores(settings.search.also, settings.cache)
    embedded = kept.get(settings)
    if embedded is None:
        embedded = _embed(settings, kept)
        kept.put(settings, embedded)
        times_s = {**embedded.times_s, "load_s": time.monotonic() - started}
    else:
        _check(settings, {name: split.index for name, split in embedded.splits.items()}, embedded.ids_as)
        times_s = {"load_s": time.monotonic() - started}
    for split in ("seeds", "pool"):
        if not len(embedded.splits[split].embedded):
            raise UserError(f"no clip of the {split} has an embedding: there is nothing to search")

    started = time.monotonic()
    indexes = {name: split.index for name, split in embedded.splits.items()}
    lists = id_lists.read_id_lists(settings.augment, indexes, embedded.ids_as)
    out, warnings = kept.decontaminated(
        settings.augment, lambda: _decontaminate(settings, _heard(settings, embedded, kept))
    )
    excluded = lists.out(out)
    eligible_positions = _eligible_positions(settings.k, embedded, Removals.join(out, excluded))
    eligible = embedded.pool.embedded[eligible_positions]
    included, not_entering = lists.entering(out, eligible, embedded.pool.index)
    neighbours = _search(settings, embedded, eligible_positions, kept.engine(settings))
    agreement = None
    if stores:
        neighbours, agreement = consensus.agree(
            stores,
            neighbours.top(settings.k),
            embedded.seeds,
            embedded.pool,
            eligible_positions,
            settings.search,
            cache=settings.cache,
            device=torch.device(embedded.device),
            engine=kept.engine(settings),
        )
    times_s["search_s"] = time.monotonic() - started
    return Prepared(
        embedded=dataclasses.replace(embedded, inputs={**embedded.inputs, **files.input_hashes(lists.files)}),
        decontaminated=out,
        excluded=excluded,
        included=included,
        warnings=(*lists.warnings, *not_entering, *warnings),
        eligible=eligible,
        neighbours=neighbours,
        consensus=agreement,
        times_s=times_s,
    )


# -- indexes, media, embeddings ------------------------------------------------------------------------------------


def _connect(settings: Settings, uses: contextlib.ExitStack) -> Cluster:
    """The Ray cluster, whose nodes are asked whether they see the files before they get work."""
    try:
        from balance.engine import ray as ray_engine
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            "executor=ray: Ray is not installed; type `pip install 'audio-balance[ray]'`, or leave executor=ray out"
        ) from None
    cluster = ray_engine.Cluster(settings.executor, settings.encoder.device)
    cluster.must_see(preflight.visible_cache(uses.enter_context(preflight.marker(settings.cache))))
    return cluster


def _embed(settings: Settings, kept: Kept) -> Embedded:
    engine = kept.engine(settings)  # first: where workers have GPUs is known to the cluster
    device = resolve_device(settings.encoder.device) if engine is None else torch.device(engine.device)
    settings.encoder.precision.resolve(device.type)  # refused before the demo is made
    preflight.check_search(settings.search)
    if settings.is_demo:
        ensure_demo(settings.cache_folder / "demo", num_processes=settings.num_decoders, wrap=as_omegaconf)
    preflight.check_root(settings.root)
    if settings.dataset.format is Format.embeddings:
        return _own_vectors(settings, device)
    return _embed_media(settings, device, kept.uses, engine)


def embed_with(settings: Settings, encoder: EncoderConfig, kept: Kept) -> AnyPath:
    """Embed the same clips with another encoder; the folder of its store. Raises UserError, OSError."""
    if settings.dataset.format is Format.embeddings:
        raise UserError("dataset.format=embeddings has no sound for a second encoder: leave out probe.encoder")
    embedded = _embed(dataclasses.replace(settings, k=1, augment=AugmentConfig(), encoder=encoder), kept)
    return settings.cache / "embeddings" / f"{settings.dataset.name}-{embedded.fingerprint}"


def _check(settings: Settings, indexes: dict[str, Index], ids_as: Ids) -> None:
    preflight.check_indexes(settings.k, settings.augment, indexes, ids_as)
    id_lists.read_id_lists(settings.augment, indexes, ids_as)  # refused here, before hours of embedding


def _embed_media(
    settings: Settings, device: torch.device, uses: contextlib.ExitStack, engine: Cluster | None
) -> Embedded:
    dataset = settings.dataset

    def read(value: str) -> Index:
        return formats.read_split(
            dataset.format,
            value,
            root=settings.root,
            media=settings.media_root,
            columns=dataset.columns,
            slices=dataset.slices,
        )

    indexes = splits.read_splits(dataset, read)
    ids_as = clip_ids.reading(settings.dataset.ids, indexes)
    splits.tell(indexes)
    _check(settings, indexes, ids_as)
    names, ontology = read_ontology(dataset.ontology, settings.root)
    encoder = read_encoder(settings.encoder)
    if engine is not None:
        engine.must_see(preflight.visible_inputs(settings.media_root, encoder.inputs))
    done = embed_media(
        settings,
        settings.encoder,
        settings.media,
        indexes,
        encoder,
        dataset=dataset.name,
        cache=settings.cache,
        seed=settings.seed,
        device=device,
        names=names,
        uses=uses,
        engine=engine,
    )
    return Embedded(
        splits=done.splits,
        failures=done.failures,
        partial=done.partial,
        ids_as=ids_as,
        ontology=names,
        fingerprint=done.fingerprint,
        identity=done.identity,
        device=str(device),
        precision=done.precision,
        precision_report=done.precision_report,
        conformance=done.conformance,
        inputs=files.input_hashes([*(place(index.file) for index in indexes.values()), ontology])
        | dict(encoder.inputs),
        times_s=done.times_s,
    )


def _own_vectors(settings: Settings, device: torch.device) -> Embedded:
    """`dataset.format=embeddings`: the user's own vectors instead of media and encoder."""
    root = settings.root
    beside: list[Path] = []

    def read(value: str) -> precomputed.PrecomputedSplit | Index:
        split: precomputed.PrecomputedSplit | Index
        try:
            split = precomputed.read_vectors(root, value, scratch=_scratch(settings))
        except NoSuchIndex:
            if value != settings.dataset.eval:
                raise
            split = precomputed.read_ids(root, value)  # ids alone serve the decontamination
        beside.extend(precomputed.files_beside(root, value))
        return split

    found = splits.read_splits(settings.dataset, read)
    given = {name: split for name, split in found.items() if isinstance(split, precomputed.PrecomputedSplit)}
    indexes = {
        name: split.index if isinstance(split, precomputed.PrecomputedSplit) else split for name, split in found.items()
    }
    ids_as = clip_ids.reading(settings.dataset.ids, indexes)
    splits.tell(indexes)
    _check(settings, indexes, ids_as)
    precomputed.refuse_other_dims(**given)
    names, ontology = read_ontology(settings.dataset.ontology, root)
    shas = {f"{name}.vectors": split.sha256 for name, split in given.items()}
    fingerprint = hashlib.sha256(json.dumps([shas["seeds.vectors"], shas["pool.vectors"]]).encode()).hexdigest()
    with_vectors = {
        name: Split(split.index, np.arange(len(split.index), dtype=np.int64), split.vectors, None)
        for name, split in given.items()
    }
    if "eval" in indexes and "eval" not in given:
        none = np.empty(0, dtype=np.int64)
        with_vectors["eval"] = Split(indexes["eval"], none, SomeVectors(given["seeds"].vectors, none), None)
    return Embedded(
        splits=with_vectors,
        failures=(),
        ids_as=ids_as,
        ontology=names,
        fingerprint=fingerprint[:16],
        identity="",
        device=str(device),
        precision="float32",
        precision_report=None,
        inputs=shas | files.input_hashes([*beside, ontology]),
        times_s={},
    )


def _scratch(settings: Settings) -> Path | None:
    """A folder for large temporary files: the cache, which has room (the system's may be memory); None if read-only."""
    try:
        settings.cache_folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return settings.cache_folder if os.access(settings.cache_folder, os.W_OK) else None


# -- neighbours ----------------------------------------------------------------------------------------------------


def _eligible_positions(k: int, embedded: Embedded, kept_out: Removals) -> Int64:
    """The places in `pool.embedded` of the clips that may be neighbours: no seed's id, not kept out."""
    seeds, pool = embedded.seeds, embedded.pool
    excluded = same_sound(pool.index, seeds.index, None) >= 0
    excluded[kept_out.rows] = True
    positions = np.flatnonzero(~excluded[pool.embedded])
    preflight.check_k(
        k,
        len(positions),
        f"that can be neighbours ({len(pool.index):,} listed, {len(pool.embedded):,} embedded, of these "
        f"{int(excluded[pool.embedded].sum()):,} excluded as seeds, copies of evaluation clips or by augment.exclude)",
    )
    return positions


def _search(settings: Settings, embedded: Embedded, eligible_positions: Int64, engine: Engine | None) -> Neighbours:
    seeds, pool = embedded.seeds, embedded.pool
    eligible = pool.embedded[eligible_positions]
    with Stage("search", len(eligible)) as stage:

        def progress(done: int, _: int) -> None:
            stage.at(done)

        positions, similarities = kept_search(
            settings.cache,
            _neighbours_key(embedded, eligible),
            seeds.vectors,
            SomeVectors(pool.vectors, eligible_positions),
            settings.k,
            settings.search,
            device=torch.device(embedded.device),
            engine=engine,
            progress=progress,
        )
    return Neighbours(seeds.embedded, eligible.astype(np.int32)[positions], similarities)


def _neighbours_key(embedded: Embedded, eligible: Int64) -> str:
    seeds, pool = embedded.seeds, embedded.pool
    digest = hashlib.sha256(f"{embedded.fingerprint} {embedded.identity}\n".encode())
    for index, rows in ((seeds.index, seeds.embedded), (pool.index, eligible)):
        for column in (index.ids, index.paths):
            for first in range(0, len(rows), _KEY_ROWS):  # not ten million strings at once
                texts = column.take(pa.array(rows[first : first + _KEY_ROWS])).to_pylist()
                digest.update(("\n" * (first > 0) + "\n".join(texts)).encode("utf-8", "surrogateescape"))
            digest.update(b"\0")
    return digest.hexdigest()[:32]


def _decontaminate(settings: Settings, embedded: Embedded) -> Decontaminated:
    level, acoustic = settings.augment.leaks, _acoustic_copies(settings, embedded)
    out = decontaminate.decontaminate(level, embedded.pool, embedded.eval, embedded.ids_as, acoustic)
    warnings = decontaminate.warn_of_copied_seeds(level, embedded.seeds, embedded.eval, acoustic)
    return out, (*warnings, *(acoustic.warnings if acoustic is not None else ()))


def _heard(settings: Settings, embedded: Embedded, kept: Kept) -> Embedded:
    """With facts of the sound where a step compares it: own vectors have none before their files are decoded."""
    by_sound = settings.augment.leaks is not Leaks.id
    is_asked = by_sound or settings.augment.copies is not Copies.none
    needed = [embedded.seeds, embedded.pool, *([embedded.eval] if by_sound else [])]
    if not is_asked or settings.dataset.format is not Format.embeddings or not all(map(own_sound.has_files, needed)):
        return embedded

    def find() -> Embedded:
        decoders = Decoders(
            num_workers=settings.num_decoders, queue_bytes=settings.queue_bytes, clip_timeout_s=settings.clip_timeout_s
        )
        splits = own_sound.with_facts(
            embedded.splits,
            settings.media,
            decoders,
            cache=settings.cache_folder,
            again=settings.retry_failures,
            max_missing=settings.max_missing,
            max_failures=settings.max_failures,
        )
        return dataclasses.replace(embedded, splits=splits)

    return kept.heard(find)


def _acoustic_copies(settings: Settings, embedded: Embedded) -> AcousticCopies | None:
    """What finds copies by their sound, where the configuration asks for it and there is sound."""
    asked = Leaks.acoustic is settings.augment.leaks or Copies.acoustic is settings.augment.copies
    if not asked or embedded.pool.facts is None:
        return None
    return AcousticCopies(
        settings.media,
        threshold=settings.augment.copy_threshold,
        num_workers=settings.num_decoders,
        queue_bytes=settings.queue_bytes,
        clip_timeout_s=settings.clip_timeout_s,
        search=settings.search,
        device=own_device(embedded.device),
    )


def _sound(settings: Settings, seeds: Index) -> Sound | None:
    """What the page draws spectrograms from; None where there is no sound: own vectors without an index have none."""
    if not pc.any(pc.not_equal(seeds.paths, "")).as_py():
        return None
    return Sound(settings.media, settings.num_decoders, settings.queue_bytes, settings.clip_timeout_s)


# -- files ---------------------------------------------------------------------------------------------------------


def _evidence(settings: Settings) -> dict[str, str]:
    """The probe.json that K per seed was chosen by -> its sha256."""
    given = settings.augment.per_seed_k
    return files.input_hashes([None if given is None else Path(given).expanduser().absolute()])


def _quality(settings: Settings, prepared: Prepared, curated: curate.Curated) -> tuple[Float32, Float32] | None:
    """Of the seeds and the chosen clips, where it is asked for and there is sound."""
    seeds, pool = prepared.seeds, prepared.pool
    if not settings.report.quality or seeds.facts is None or pool.facts is None:
        return None
    assert seeds.facts.quality is not None
    assert pool.facts.quality is not None
    return seeds.facts.quality, pool.facts.quality[np.searchsorted(pool.embedded, curated.union.pool_rows)]


def _write(
    settings: Settings,
    folder: Path,
    prepared: Prepared,
    neighbours: Neighbours,
    curated: curate.Curated,
    started: float,
) -> tuple[Summary, str]:
    """Every file of the run, complete or not there at all; the manifest, which names their hashes, last. Returns the
    figures, and the name of the file to train on."""
    k, seeds, pool, dataset = settings.k, prepared.seeds, prepared.pool, settings.dataset
    written = tables.write_neighbours(folder, k, seeds.index, pool.index, neighbours)
    written += tables.write_augmented(
        folder, k, seeds.index, seeds.embedded, pool.index, curated.union, quality=_quality(settings, prepared, curated)
    )
    chosen = [seeds.index.take(seeds.embedded), pool.index.take(curated.union.pool_rows)]
    training = formats.write_index(dataset.format, chosen, folder, k, columns=dataset.columns)
    written += training
    written += curation_files.write_curation(
        folder, k, seeds.index, seeds.embedded, pool.index, prepared.kept_out, curated
    )
    written.append(tables.write_failures(folder, prepared.embedded.failures))
    written.append(tables.write_warnings(folder, prepared.embedded.partial))
    summary = summarise(prepared, k, curated, settings.seed)
    written.append(write_summary(folder, summary))
    about = page.About(
        dataset=dataset.name,
        is_demo=settings.hears_at_random,
        media_root=settings.media_root,
        media_base=settings.report.media_base,
        parents=read_parents(ontology_file(dataset.ontology, settings.root)),
        sound=_sound(settings, seeds.index),
        num_embedded=settings.report.embed_audio,
        rng_seed=settings.seed,
    )
    written.append(page.write_report(folder, about, prepared=prepared, k=k, curated=curated, summary=summary))
    manifest.write(
        folder,
        config=as_plain(settings),
        embedded=dataclasses.replace(prepared.embedded, inputs={**prepared.embedded.inputs, **_evidence(settings)}),
        outputs=written,
        ids=folder / f"ids_k{k}.csv",
        times_s={**prepared.times_s, "total_s": time.monotonic() - started},
    )
    if dataset.format is Format.vipant:
        write_train_root(
            folder,
            root=settings.root,
            media=settings.media_root,
            paths=[split.index.paths for split in prepared.embedded.splits.values()],
        )
    return summary, training[0].name if training else f"ids_k{k}.csv"
