"""A run's result in a training loop of plain PyTorch, without the published loader's silent mistakes.

In: an index (`src_augmented_k{K}.csv`, or any VIP-ANT index) and its media; or an index and a k-NN file to filter it
by. Out: a `torch.utils.data.Dataset`, weights and a sampler. A missing file, a malformed line or a filter that matches
nothing is an error here, never "no filter"; an unreadable clip is an error or left out, never noise; weighted sampling
also works under distributed training, where the published code drops the weights. The price: every rank draws the
whole epoch and keeps its slice, 0.2 s for two million clips.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from balance.audio import decode
from balance.audio.fbank import FrontEnd, log_mel
from balance.data.formats import LABEL_MAP, read_label_map
from balance.data.precomputed import read_ids
from balance.data.vipant_index import index_weights, read_index
from balance.errors import UserError
from balance.records import Index, Int64, common_names

log = logging.getLogger(__name__)

# The released checkpoints' input.
VIPANT_FRONT_END = FrontEnd(max_frames=1000, num_mel_bins=128, mean=-4.93839311, std=5.75751113, zero_mean=True)


class UnreadableClip(Exception):
    """A clip of the index that cannot be decoded, or is not there; says which file and why."""


class Example(NamedTuple):
    """One clip.

    audio: waveform (num_samples,) float32 at the file's own rate, or spectrogram (max_frames, num_mel_bins) float32;
    sample_rate: Hz; labels: (num_classes,) float32 of zeros and ones; id; frame: path of the image that evaluation
    uses, "" where the record names none.
    """

    audio: Tensor
    sample_rate: int
    labels: Tensor
    id: str
    frame: str


def load_index(path: str | os.PathLike[str]) -> Index:
    """A VIP-ANT index, strictly: UserError names the file, the line and what is wrong with it."""
    return read_index(Path(path))


def load_neighbours(path: str | os.PathLike[str], *, top: int) -> dict[str, list[tuple[str, float]]]:
    """Each seed's `top` nearest (id, similarity), best first, of `neighbours_k{K}.jsonl` or `.parquet`.

    UserError for a missing or malformed file, a seed named twice or one with fewer neighbours than `top`.
    """
    path = Path(path)
    if not isinstance(top, int) or top < 1:
        raise UserError(f"top={top}: the number of neighbours a seed is a whole number, at least 1")
    if not path.is_file():
        raise UserError(f"{path}: no such k-NN file; a run writes neighbours_k{{K}}.jsonl and .parquet")
    found: dict[str, list[tuple[str, float]]] = {}
    for where, seed, pairs in _read_table(path) if path.suffix == ".parquet" else _read_lines(path):
        if seed in found:
            raise UserError(f"{where}: the seed {seed!r} occurs twice")
        if len(pairs) < top:
            raise UserError(f"{where}: the seed {seed!r} has {len(pairs)} neighbours, {top} are asked for")
        found[seed] = pairs[:top]
    if not found:
        raise UserError(f"{path}: empty k-NN file")
    return found


def _read_lines(path: Path) -> Iterator[tuple[str, str, list[tuple[str, float]]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path} line {number}"
            try:
                record = json.loads(line, object_pairs_hook=tuple)  # not a dict: it would swallow a repeated key
                if not isinstance(record, tuple):
                    raise TypeError
                ((seed, pairs),) = record
                yield where, _text(seed), _pairs(pairs)
            except (ValueError, TypeError, AttributeError):
                raise UserError(f'{where}: not {{"<seed id>": [["<id>", similarity], …]}}: {line[:60]!r}') from None


def _pairs(pairs: Sequence[tuple[object, object]]) -> list[tuple[str, float]]:
    """Checked (id, similarity) pairs of one seed; TypeError, ValueError for anything else."""
    checked = []
    for clip_id, similarity in pairs:
        if isinstance(similarity, bool) or not isinstance(similarity, (int, float)) or not math.isfinite(similarity):
            raise TypeError
        checked.append((_text(clip_id), float(similarity)))
    if len({clip_id for clip_id, _ in checked}) < len(checked):
        raise ValueError
    return checked


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _read_table(path: Path) -> Iterator[tuple[str, str, list[tuple[str, float]]]]:
    try:
        table = pq.read_table(path, columns=["seed_id", "rank", "neighbour_id", "similarity"])
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{path}: not a neighbours_k{{K}}.parquet ({str(error).splitlines()[0]})") from None
    table = table.combine_chunks()
    names, similarities = table["neighbour_id"].to_pylist(), table["similarity"].to_pylist()
    ranks, seeds = table["rank"].to_numpy(), table["seed_id"].to_pylist()
    starts = np.flatnonzero(ranks == 1).tolist()
    if len(ranks) and (not starts or starts[0]):
        raise UserError(f"{path} row 0: ranks of a seed must be 1, 2, 3, …")
    for start, stop in zip(starts, [*starts[1:], len(ranks)], strict=True):
        if (ranks[start:stop] != np.arange(1, stop - start + 1)).any() or len(set(seeds[start:stop])) > 1:
            raise UserError(f"{path} row {start}: ranks of a seed must be 1, 2, 3, …")
        try:
            pairs = _pairs(list(zip(names[start:stop], similarities[start:stop], strict=True)))
            yield f"{path} row {start}", _text(seeds[start]), pairs
        except (TypeError, ValueError):
            raise UserError(f"{path} row {start}: ids must be text, each once a seed, similarities numbers") from None


def load_ids(path: str | os.PathLike[str]) -> list[str]:
    """The ids of `ids_k{K}.csv`, one a line. UserError if the file is missing, empty or has empty lines."""
    ids: list[str] = read_ids(Path(path)).to_pylist()
    if not ids:
        raise UserError(f"{path}: empty id list")
    return ids


def select(index: Index, ids: Iterable[str]) -> Index:
    """The rows of an index whose ids are given, in the order of the index.

    UserError if none is there; a warning if some are not. For a k-NN file: `{*neighbours, *(id for pairs in
    neighbours.values() for id, _ in pairs)}`.
    """
    wanted = pa.array(sorted(set(ids)), type=pa.string())
    rows = np.flatnonzero(pc.is_in(index.ids, value_set=wanted).to_numpy(zero_copy_only=False)).astype(np.int64)
    if not len(rows):
        raise UserError(f"{index.file}: none of the {len(wanted)} ids of the filter is in it: another data set's?")
    if len(rows) < len(wanted):
        num_absent = len(wanted) - len(rows)
        log.warning("%s: %d of the %d ids of the filter are not in it", index.file, num_absent, len(wanted))
    return index.take(rows)


def class_names(*indexes: Index, root: str | os.PathLike[str] | None = None) -> list[str]:
    """The classes in order: those of `class_labels_indices.csv` under `root` if it is there, else the sorted labels in
    use in these indexes. Never all nodes of the ontology: most of them label no clip, and their mAP is undefined."""
    if root is not None and (path := Path(root) / LABEL_MAP).is_file():
        return read_label_map(path)
    return list(common_names(*(index.labels for index in indexes)))


class ClipDataset(Dataset[Example | None]):
    """The clips of an index, decoded when asked for. Picklable; holds no open file.

    index: of `load_index`; root: the media folder; classes: of `class_names` (default: of this index and root);
    output: `waveform` or `spectrogram`; front_end: frames, bins and normalisation (default: the released
    checkpoints'); on_unreadable: `error` raises UnreadableClip, `skip` gives None, which `collate` leaves out.
    UserError if a label of the index is none of the classes.
    """

    def __init__(
        self,
        index: Index,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        output: Literal["waveform", "spectrogram"] = "waveform",
        front_end: FrontEnd = VIPANT_FRONT_END,
        on_unreadable: Literal["error", "skip"] = "error",
    ) -> None:
        if output not in ("waveform", "spectrogram"):
            raise UserError(f"output={output!r}: waveform or spectrogram")
        if on_unreadable not in ("error", "skip"):
            raise UserError(f"on_unreadable={on_unreadable!r}: error or skip")
        self.index = index
        self.root = Path(root)
        self.classes = list(classes) if classes is not None else class_names(index, root=root)
        self._output, self._front_end, self._on_unreadable = output, front_end, on_unreadable
        position = {name: i for i, name in enumerate(self.classes)}
        unknown = [name for name in common_names(index.labels) if name not in position]
        if unknown:
            raise UserError(f"{index.file}: {len(unknown)} labels are none of the classes: {', '.join(unknown[:5])}")
        self._class_of_code = np.array([position.get(name, -1) for name in index.labels.names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def targets(self) -> Tensor:
        """The multi-hot labels of all clips, (n, num_classes) float32: no audio is read."""
        out = torch.zeros(len(self), len(self.classes))
        rows = np.repeat(np.arange(len(self)), self.index.labels.sizes())
        out[torch.from_numpy(rows), torch.from_numpy(self._class_of_code[self.index.labels.codes])] = 1.0
        return out

    def __getitem__(self, row: int) -> Example | None:
        if not 0 <= row < len(self):
            raise IndexError(row)
        path = self.index.paths[row].as_py()
        try:
            wave = decode.load(
                self.root / path, max_frames=self._front_end.max_frames, zero_mean=self._front_end.zero_mean
            )
        except (decode.Undecodable, OSError) as error:
            if self._on_unreadable == "skip":
                return None
            why = error.detail if isinstance(error, decode.Undecodable) else error.strerror
            if not (self.root / path).exists():  # libsndfile says "System error."
                why = f"no such file under {self.root}"
            raise UnreadableClip(f"{path}: {why}") from None
        samples = torch.from_numpy(np.ascontiguousarray(wave.samples))
        if self._output == "spectrogram":
            samples = log_mel(samples[None], [len(samples)], wave.sample_rate, self._front_end)[0]
        labels = torch.zeros(len(self.classes))
        offsets = self.index.labels.offsets
        labels[torch.from_numpy(self._class_of_code[self.index.labels.codes[offsets[row] : offsets[row + 1]]])] = 1.0
        return Example(samples, wave.sample_rate, labels, self.index.ids[row].as_py(), self._frame(row, path))

    def _frame(self, row: int, path: str) -> str:
        """The image that evaluation uses: number ceil(n / 2) − 1 of the record's n frames."""
        if self.index.lines is None:
            return ""
        frames = json.loads(self.index.lines[row].as_py()).get("frame") or []
        frames = [frames] if isinstance(frames, str) else frames
        if not frames:
            return ""
        chunk = path.rpartition("/")[0].rpartition("/")[0]
        name = f"{self.index.ids[row].as_py()}.{frames[math.ceil(len(frames) / 2) - 1]}"
        return str(self.root / chunk / "frame" / name)


def collate(examples: Sequence[Example | None]) -> Example:
    """A batch: waveforms padded with zeros to the longest, None (skipped clips) left out.

    UnreadableClip if nothing is left: a whole batch of unreadable clips is no accident.
    """
    kept = [example for example in examples if example is not None]
    if not kept:
        raise UnreadableClip(f"none of the {len(examples)} clips of a batch could be read: is the root right?")
    if kept[0].audio.dim() == 1:
        longest = max(len(example.audio) for example in kept)
        pad = torch.nn.functional.pad
        kept = [example._replace(audio=pad(example.audio, (0, longest - len(example.audio)))) for example in kept]
    batch: Example = default_collate(kept)
    return batch


def sample_weights(index: Index) -> Tensor:
    """VIP-ANT's sampling weights of an index's clips, (n,) float64: the sum of 1000 / (count(label) + 1)."""
    return torch.from_numpy(index_weights(index.labels))


class DistributedWeightedSampler(Sampler[int]):
    """Weighted sampling with replacement, also under distributed training.

    Every rank makes the same draw of an epoch, seeded by (seed, epoch), and takes each num_replicas-th of it from its
    rank on: the slices are disjoint and together they are the weighted draw. weights: (n,), ≥ 0; num_samples: draws an
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
            raise UserError(f"weights must be finite numbers ≥ 0, one a clip; got an array of shape {values.shape}")
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
