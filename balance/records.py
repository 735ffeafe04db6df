"""The values that pass between stages: columns, not objects.

An index of two million clips as Python objects costs several GiB and minutes; as Arrow and numpy columns it costs
a few hundred MiB. So a split is one `Index` (columns), its label sets one `Labels` (compressed rows), a search
result one `Neighbours` (two matrices). Everything here is frozen: a change is a new value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Strings: TypeAlias = Any  # Arrow string array (Arrow has no types of its own for the checker)
Doubles: TypeAlias = Any  # Arrow double array
Binaries: TypeAlias = Any  # Arrow large_binary array

SILENT_DB = -60.0  # rms against full scale
Stamp = tuple[int, int]  # of a media file: size in bytes, modification time in ns
NO_STAMP: Stamp = (-1, -1)

SPLITS = ("seeds", "pool", "eval")
REASONS = ("missing", "undecodable", "too_short", "not_finite")


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The label sets of n clips: clip i has `names[c]` for c in `codes[offsets[i]:offsets[i + 1]]`.

    names: vocabulary, sorted; offsets: (n + 1,) int64; codes: (total,) int32 in the record's order, no repeats.
    """

    names: tuple[str, ...]
    offsets: Int64
    codes: Int32

    @staticmethod
    def of(sets: Iterable[Sequence[str]]) -> Labels:
        """From one sequence of label ids a clip; a label named twice in one clip counts once."""
        seen: dict[str, int] = {}
        codes: list[int] = []
        offsets = [0]
        for labels in sets:
            row = [seen.setdefault(name, len(seen)) for name in labels]
            codes.extend(row if len(row) < 2 or len(set(row)) == len(row) else dict.fromkeys(row))
            offsets.append(len(codes))
        names = tuple(sorted(seen))
        rank = {name: i for i, name in enumerate(names)}
        order = np.array([rank[name] for name in seen], dtype=np.int32)
        first_seen = np.array(codes, dtype=np.int64)
        return Labels(names, np.array(offsets, dtype=np.int64), order[first_seen].astype(np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> tuple[str, ...]:
        return tuple(self.names[c] for c in self.codes[self.offsets[row] : self.offsets[row + 1]])

    def sizes(self) -> Int64:
        """Labels a clip, (n,) int64."""
        return np.diff(self.offsets)

    def counts(self) -> Int64:
        """Clips that have each label, (len(names),) int64."""
        return np.bincount(self.codes, minlength=len(self.names)).astype(np.int64)

    def take(self, rows: Int64) -> Labels:
        """The label sets of these rows, in their order; the vocabulary stays."""
        sizes = self.sizes()[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        flat = np.repeat(self.offsets[rows] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Labels(self.names, offsets, self.codes[flat])

    def recode(self, names: Sequence[str]) -> Labels:
        """The same sets over a larger sorted vocabulary (`names` must hold every name used here)."""
        position = {name: i for i, name in enumerate(names)}
        code_of = np.array([position.get(name, -1) for name in self.names], dtype=np.int32)
        codes = code_of[self.codes] if len(self.codes) else self.codes
        assert not (codes < 0).any(), "recode: the vocabulary lacks a label in use"
        return Labels(tuple(names), self.offsets, codes)

    @staticmethod
    def join(tables: Sequence[Labels]) -> Labels:
        """The sets of several tables one after another, over the labels that they use."""
        names = common_names(*tables)
        recoded = [table.recode(names) for table in tables]
        sizes = np.concatenate([table.sizes() for table in recoded])
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return Labels(names, offsets, np.concatenate([table.codes for table in recoded]))

    def matrix(self) -> Any:
        """scipy.sparse CSR matrix (n, len(names)) of int32 ones."""
        data = np.ones(len(self.codes), dtype=np.int32)
        return scipy.sparse.csr_matrix((data, self.codes, self.offsets), shape=(len(self), len(self.names)))


def common_names(*tables: Labels) -> tuple[str, ...]:
    """The sorted union of the labels in use in these tables."""
    return tuple(sorted({t.names[c] for t in tables for c in np.unique(t.codes)}))


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """One split's clips as columns, in the order of the file.

    file: where it came from, for messages; ids, paths: Arrow string arrays (n,), `path` relative to the media root
    and the embedding store's key (large_string in a VIP-ANT index: over 50 M paths exceed the 2 GiB of a string array);
    lines: Arrow large_binary (n,), VIP-ANT records without their line end (`None` in other formats); entries: likewise
    the original records of another format that has any; offsets, sizes: (n,) int64 place of a clip's bytes in its
    container (webdataset only, else `None`); audio_key: `aclip` or `clip` of a VIP-ANT
    index.
    """

    file: str
    ids: Strings
    paths: Strings
    labels: Labels
    lines: Binaries | None = None
    entries: Binaries | None = None
    offsets: Int64 | None = None
    sizes: Int64 | None = None
    audio_key: str = "aclip"

    def __len__(self) -> int:
        return len(self.ids)

    def places(self) -> tuple[Int64, Int64]:
        """(offsets, sizes) in containers, −1 where a clip is a file of its own; (n,) int64 each."""
        if self.offsets is not None and self.sizes is not None:
            return self.offsets, self.sizes
        none = np.full(len(self), -1, dtype=np.int64)
        return none, none

    def take(self, rows: Int64) -> Index:
        """These rows, in their order."""
        at = pa.array(rows)
        return Index(
            file=self.file,
            ids=self.ids.take(at),
            paths=self.paths.take(at),
            labels=self.labels.take(rows),
            lines=None if self.lines is None else self.lines.take(at),
            entries=None if self.entries is None else self.entries.take(at),
            offsets=None if self.offsets is None else self.offsets[rows],
            sizes=None if self.sizes is None else self.sizes[rows],
            audio_key=self.audio_key,
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip without an embedding. `reason` is one of REASONS; `detail` holds no folder, time or process id."""

    id: str
    split: str
    path: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class DecodeFailure:
    """A clip that could not be embedded, as remembered in a part (missing files never are). stamp: of its file then;
    decoders: who tried, as `decode.DECODERS`, "" in parts of earlier versions."""

    id: str
    path: str
    reason: str
    detail: str
    stamp: Stamp = NO_STAMP
    decoders: str = ""


@dataclass(frozen=True, slots=True)
class Partial:
    """A clip whose embedding is of a part of it. `detail`: the seconds announced and decoded, as `decode.Waveform`."""

    id: str
    split: str
    path: str
    detail: str


# Of whole decoded clips, beside `Facts`, in this order; channels_equal: 0 or 1; clipped: share of values at full scale.
QUALITY = (
    *("channels", "channels_equal", "clipped", "dc_offset"),
    *("bandwidth_hz", "leading_silence_s", "trailing_silence_s"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What was measured on whole decoded clips, before any crop; one row a clip.

    sample_rate: (n,) int32 in Hz; num_samples: (n,) int64 a channel; rms_db: (n,) float32, 20 log10 of the rms over
    all channels against full scale 1.0, −inf for zeros; pcm_sha1: (n, 20) uint8 of the interleaved little-endian
    float32 samples; quality: (n, len(QUALITY)) float32, NaN of clips that were embedded by earlier versions; None for
    all of them.
    """

    sample_rate: Int32
    num_samples: Int64
    rms_db: Float32
    pcm_sha1: npt.NDArray[np.uint8]
    quality: Float32 | None = None

    def silent(self) -> Bool:
        """(n,) whether a clip is below SILENT_DB: embedded like others, and counted."""
        return self.rms_db < SILENT_DB


class SomeVectors:
    """`Vectors`: chosen rows of other vectors, in the order of `rows` (n,) int64."""

    def __init__(self, vectors: Vectors, rows: Int64) -> None:
        self._vectors, self._rows = vectors, rows
        self._in_order = len(rows) == vectors.shape[0] and bool((rows == np.arange(len(rows))).all())

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._rows), self._vectors.shape[1]

    def read(self, start: int, stop: int) -> Float32:
        if self._in_order:
            return self._vectors.read(start, stop)
        return self._vectors.take(self._rows[start:stop])

    def take(self, rows: Int64) -> Float32:
        return self._vectors.take(self._rows[rows])

    def portable(self, rows: Int64) -> Vectors | None:
        """These rows as vectors that can be pickled and read on another machine; None where these vectors can not."""
        choose = getattr(self._vectors, "portable", None)
        return None if choose is None else choose(self._rows[rows])

    def name(self, row: int) -> str:
        return self._vectors.name(int(self._rows[row]))


class Vectors(Protocol):
    """n stored float32 vectors of one dimension, read in blocks: never all in memory at once."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dim)"""
        ...

    def read(self, start: int, stop: int) -> Float32:
        """Rows start … stop, a fresh (stop − start, dim) float32 array."""
        ...

    def take(self, rows: Int64) -> Float32:
        """These rows in any order, a fresh (len(rows), dim) float32 array."""
        ...

    def name(self, row: int) -> str:
        """Where a row came from (part or file, and id), for messages."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One split after embedding.

    embedded: (m,) int64 rows of `index` that have an embedding, ascending; vectors: their m vectors; facts: theirs,
    None where the vectors are the user's own (`dataset.format=embeddings`).
    """

    index: Index
    embedded: Int64
    vectors: Vectors
    facts: Facts | None


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The top K of each seed that has an embedding, best first: (similarity descending, pool order ascending).

    seed_rows: (S,) int64 rows of the seed index; pool_rows: (S, K) int32 rows of the pool index;
    similarities: (S, K) float32 exact cosines.
    """

    seed_rows: Int64
    pool_rows: Int32
    similarities: Float32

    @property
    def k(self) -> int:
        return int(self.pool_rows.shape[1])

    def top(self, k: int) -> Neighbours:
        """The first k ≤ K of each seed: a slice."""
        assert 1 <= k <= self.k
        return Neighbours(self.seed_rows, self.pool_rows[:, :k], self.similarities[:, :k])


@dataclass(frozen=True, slots=True)
class RandomSimilarity:
    """mean, std: of the cosine of seeds and pool clips that were paired at random."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.std:.4f}"


def join_strings(arrays: Iterable[Strings]) -> Strings:
    """Arrow string arrays one after another, as one large_string array: one of 32-bit offsets ends at 2 GiB of text."""
    return pa.concat_arrays([pa.array([], pa.large_string()), *(some.cast(pa.large_string()) for some in arrays)])


def duplicate_ids(ids: Strings) -> list[str]:
    """The ids that occur more than once in an Arrow string array, in order of their count."""
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    return [str(x) for x in twice.field("values").to_pylist()]
