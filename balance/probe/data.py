"""What a probe is about: seeds, eligible pool and evaluation clips in one feature space, and who chose whom.

In: a prepared run (`prepared.Prepared`), perhaps another encoder's embeddings of the same clips; out: `ProbeData`,
whose rows all have a vector, and the arms of curated runs. Training in the space that chose the clips is circular
(neighbours are redundant there by construction), so the data know whether they are in that space. Clips that the other
embeddings lack are in no arm; how many they are is said.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from balance.data.config import DatasetConfig
from balance.data.locate import NoSuchIndex
from balance.data.precomputed import read_vectors
from balance.embed.store import Store
from balance.errors import UserError
from balance.prepared import Prepared
from balance.probe import training_sets
from balance.probe.sources import numbered, shared, sources
from balance.records import Bool, Index, Int32, Int64, Labels, SomeVectors, Split, Vectors, common_names
from balance.runtime import remote
from balance.runtime.remote import AnyPath

_CURATED = re.compile(r"ids_k(\d+)\.csv")


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """n clips: vectors (n, dim), labels over the probe's vocabulary, groups (n,) int64: each clip's source."""

    vectors: Vectors
    labels: Labels
    groups: Int64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class ProbeData:
    """seeds, pool (eligible clips only), evaluation; chosen: (S, K) int32 pool rows of each seed's neighbours, best
    first, −1 where the clip has no vector here; same_space: trained where the clips were chosen; fingerprint: hex, of
    everything here; names: label id -> name; missing: clips without a vector here, by split."""

    seeds: Side
    pool: Side
    evaluation: Side
    chosen: Int32
    same_space: bool
    fingerprint: str
    names: dict[str, str]
    missing: dict[str, int]
    clips: Mapping[str, Index]  # seeds, pool, eval: the index rows of each side, in its order
    choosing: Vectors  # (P, dim'): the pool in the space that chose the neighbours, by which rivals choose
    implies: Any = None  # CSR (L, L): the labels that each label implies, itself included; None: no ontology
    selecting: ProbeData | None = (
        None  # the same clips in the space that chose the neighbours; None where it is this one
    )
    sources: Int64 | None = None  # (P,) the group of the seeds whose source a pool clip shares, −1: none

    @property
    def label_ids(self) -> tuple[str, ...]:
        return self.seeds.labels.names

    @property
    def num_labels(self) -> int:
        return len(self.label_ids)

    @property
    def parents(self) -> Int64:
        """The labels that another one implies: with the ontology's ancestors added they are on more clips."""
        if self.implies is None:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(np.asarray(self.implies.sum(axis=0)).ravel() > 1)

    @property
    def label_sets(self) -> dict[str, Int64]:
        """The columns of `targets` that a mean over labels is of: as given, and with the ontology's ancestors."""
        given = np.arange(self.num_labels)
        if not len(self.parents):
            return {"": given}
        completed = given.copy()
        completed[self.parents] = self.num_labels + np.arange(len(self.parents))
        return {"": given, "_ancestors": completed}

    def targets(self, side: Side) -> Any:
        """CSR (n, C) of ones: the labels as given, then `parents` with the clips that imply them."""
        given = side.labels.matrix()
        if not len(self.parents):
            return given
        implied = (given @ self.implies)[:, self.parents]
        implied.data[:] = 1
        return scipy.sparse.hstack([given, implied], format="csr")


NO_EVAL = (
    "balance.probe judges on dataset.eval, which was not found: type dataset.eval=NAME (an index under "
    "dataset.root), or a path to one"
)


def of_prepared(
    prepared: Prepared,
    dataset: DatasetConfig,
    embeddings: str | None,
    *,
    parents: Mapping[str, Sequence[str]] | None = None,
    source: str | None = None,
) -> ProbeData:
    """The data in the selecting encoder's space, or in that of `embeddings`: a store's folder, or a folder of
    vectors laid out as for dataset.format=embeddings. parents: label -> the labels above it (`data.ontology`); source:
    the pattern of `sources`. UserError where there is nothing to train on or to judge by."""
    run = prepared.embedded
    if run.eval is None:
        raise UserError(NO_EVAL)
    if embeddings is None:
        views = {name: _View(split.embedded, split.vectors) for name, split in run.splits.items()}
        origin = f"{run.fingerprint} {run.identity}"
    else:
        values = {
            "seeds": dataset.balanced,
            "pool": dataset.unbalanced,
            "eval": str(dataset.eval),
        }
        views, origin = _other(remote.place(embeddings), run.splits, values)
    eligible = np.zeros(len(prepared.pool.index), dtype=bool)
    eligible[prepared.eligible] = True
    searched = np.zeros(len(prepared.seeds.index), dtype=bool)
    searched[prepared.neighbours.seed_rows] = True
    embedded = np.zeros(len(run.eval.index), dtype=bool)
    embedded[run.eval.embedded] = True
    for name, mask in (("seeds", searched), ("pool", eligible), ("eval", embedded)):
        views[name] = views[name].only(mask)
    for name, view in views.items():
        if not len(view.rows):
            where = f" in probe.embeddings={embeddings}" if embeddings is not None else ""
            raise UserError(f"no clip of the {name} has an embedding{where}: there is nothing to probe")
    indexes = {name: run.splits[name].index.take(view.rows) for name, view in views.items()}
    vocabulary = common_names(*(index.labels for index in indexes.values()))
    if not vocabulary:
        raise UserError("no clip has a label: the probe learns labels; give records with `labels`, or class folders")
    of = sources({name: index.ids for name, index in indexes.items()}, run.ids_as, source)
    sides = {
        name: Side(view.vectors, indexes[name].labels.recode(vocabulary), numbered(of[name]))
        for name, view in views.items()
    }
    of_seeds = shared(of["seeds"], of["pool"])
    implied = implied_labels(vocabulary, parents or {})
    place = np.full(len(eligible), -1, dtype=np.int32)
    place[views["pool"].rows] = np.arange(len(views["pool"].rows), dtype=np.int32)
    searched_at = np.searchsorted(prepared.neighbours.seed_rows, views["seeds"].rows)
    chosen = place[prepared.neighbours.pool_rows[searched_at]]
    missing = {
        "seeds": int(searched.sum()) - len(views["seeds"].rows),
        "pool": int(eligible.sum()) - len(views["pool"].rows),
        "eval": len(run.eval.embedded) - len(views["eval"].rows),
    }
    digest = hashlib.sha256(f"{origin}\n".encode())
    for name in ("seeds", "pool", "eval"):
        digest.update("\n".join(indexes[name].ids.to_pylist()).encode("utf-8", "surrogateescape") + b"\0")
        labels = sides[name].labels
        digest.update("\n".join(vocabulary).encode() + labels.offsets.tobytes() + labels.codes.tobytes())
    digest.update(np.ascontiguousarray(chosen).tobytes() + of_seeds.tobytes() + sides["seeds"].groups.tobytes())
    digest.update(sides["eval"].groups.tobytes())
    if implied is not None:
        digest.update(implied.indptr.tobytes() + implied.indices.tobytes())
    data = ProbeData(
        seeds=sides["seeds"],
        pool=sides["pool"],
        evaluation=sides["eval"],
        chosen=chosen,
        same_space=embeddings is None,
        fingerprint=digest.hexdigest(),
        names={label: run.ontology.get(label, label) for label in vocabulary},
        missing={name: max(0, count) for name, count in missing.items()},
        clips=indexes,
        implies=implied,
        sources=of_seeds,
        choosing=_chosen_by(run.pool, views["pool"]),
    )
    if embeddings is None:
        return data
    return dataclasses.replace(data, selecting=_in_selecting_space(data, run.splits, views, run.fingerprint))


def _in_selecting_space(
    data: ProbeData, splits: Mapping[str, Split], views: Mapping[str, _View], fingerprint: str
) -> ProbeData:
    seeds, pool, evaluation = (
        dataclasses.replace(side, vectors=_chosen_by(splits[name], views[name]))
        for name, side in (("seeds", data.seeds), ("pool", data.pool), ("eval", data.evaluation))
    )
    mark = hashlib.sha256(f"{data.fingerprint} in {fingerprint}".encode()).hexdigest()
    return dataclasses.replace(data, seeds=seeds, pool=pool, evaluation=evaluation, same_space=True, fingerprint=mark)


def _chosen_by(split: Split, view: _View) -> Vectors:
    """The view's clips in the space of the split."""
    return SomeVectors(split.vectors, np.searchsorted(split.embedded, view.rows))


def implied_labels(names: Sequence[str], parents: Mapping[str, Sequence[str]]) -> Any:
    """CSR (L, L) of ones: row l has l and every label above it that is in use; None where no label has one."""
    place = {name: i for i, name in enumerate(names)}
    rows, columns = [], []
    for name, row in place.items():
        above, left = {name}, [name]
        while left:
            new = [parent for parent in parents.get(left.pop(), ()) if parent not in above]
            above.update(new)
            left += new
        known = sorted(place[label] for label in above if label in place)
        rows += [row] * len(known)
        columns += known
    if len(rows) == len(place):
        return None
    ones = np.ones(len(rows), dtype=np.int32)
    return scipy.sparse.csr_matrix((ones, (rows, columns)), shape=(len(place), len(place)))


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    rows: Int64  # of the index, ascending
    vectors: Vectors

    def only(self, mask: Bool) -> _View:
        kept = np.flatnonzero(mask[self.rows])
        return _View(self.rows[kept], SomeVectors(self.vectors, kept))


def _other(folder: AnyPath, splits: Any, values: dict[str, str]) -> tuple[dict[str, _View], str]:
    """The splits' clips in another store (by path) or in a folder of vectors (by id)."""
    if not folder.is_dir():
        raise UserError(
            f"probe.embeddings={folder}: no such folder; give a store ({{cache_dir}}/embeddings/NAME-FINGERPRINT) or a "
            "folder of vectors as for dataset.format=embeddings"
        )
    views: dict[str, _View] = {}
    if (folder / "meta.json").is_file():
        store = Store(folder)
        for name, split in splits.items():
            found = store.rows(split.index.paths)
            rows = np.flatnonzero(found >= 0)
            views[name] = _View(rows, store.vectors(found[rows]))
        used = np.concatenate([store.rows(split.index.paths) for split in splits.values()])
        return views, f"store {folder.name} {store.identity(used[used >= 0])}"
    digests = []
    for name, split in splits.items():
        view, sha256 = _given(folder, values[name], split)
        views[name] = view
        digests.append(sha256)
    return views, " ".join(["vectors", *digests])


def _given(folder: AnyPath, value: str, split: Split) -> tuple[_View, str]:
    stem = Path(value).name.removesuffix(".csv").removeprefix("src_full_").removeprefix("src_")
    try:
        given = read_vectors(folder, stem)
    except NoSuchIndex as error:
        raise UserError(f"probe.embeddings: {error}") from None
    found = pc.index_in(split.index.ids, value_set=given.index.ids).fill_null(-1).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(found >= 0)
    return _View(rows, SomeVectors(given.vectors, np.asarray(found[rows], dtype=np.int64))), given.sha256


def read_runs(data: ProbeData, folders: Sequence[str], folds: Int64) -> list[training_sets.Arm]:
    """The arm of each finished run (its folder): the pool clips of its `ids_k{K}.csv`. UserError says what is wrong."""
    out: list[training_sets.Arm] = []
    for given in folders:
        folder = Path(given).expanduser()
        lists = sorted(p for p in folder.glob("ids_k*.csv") if _CURATED.fullmatch(p.name)) if folder.is_dir() else []
        if len(lists) != 1:
            what = f"{len(lists)} files ids_k*.csv" if folder.is_dir() else "no such folder"
            raise UserError(
                f"probe.runs: {folder}: {what}; give the folders of finished runs, probe.runs=[outputs/runs/…]"
            )
        match = _CURATED.fullmatch(lists[0].name)
        assert match is not None
        k = int(match.group(1))
        ids = pa.array(lists[0].read_text(encoding="utf-8").splitlines(), pa.string())
        inside = pc.is_in(data.clips["pool"].ids, value_set=ids).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(inside)
        if not len(rows):
            raise UserError(f"probe.runs: {folder}: none of the {len(ids):,} ids is in this pool: a run of other data?")
        excluded = training_sets.excluded_folds(data.chosen[:, :k], folds, rows)
        out.append(training_sets.Arm(training_sets.RUN, folder.name, k, rows, excluded))
    names = [arm.name for arm in out]
    if len(set(names)) < len(names):
        raise UserError(f"probe.runs: two folders have one name ({', '.join(names)}): rename one")
    return out
