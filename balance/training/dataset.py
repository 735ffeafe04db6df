"""A run's result as a `torch.utils.data.Dataset`, without the published loader's silent mistakes.

In: an index (`src_augmented_k{K}.csv`, or any VIP-ANT index) and its media. Out: examples, and batches by `collate`. A
malformed line or a filter that matches nothing is an error here; an unreadable clip is an error or left out, never
noise. The price: a clip is decoded each time that it is asked for, so the data loader's workers are kept busy.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from balance.audio import decode
from balance.audio.fbank import VIPANT_FRONT_END, FrontEnd, LogMel
from balance.audio.sound_file import Undecodable
from balance.data.config import ColumnsConfig, Format, MediaSource
from balance.data.label_map import LABEL_MAP, read_label_map
from balance.data.media import MediaReader, container, stretch_s
from balance.data.vipant_index import read_index
from balance.errors import UserError
from balance.records import Index, common_names
from balance.runtime.remote import RemotePath, place

log = logging.getLogger(__name__)


class UnreadableClip(Exception):
    """A clip of the index that cannot be decoded, or does not exist; says which file and why."""


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


def load_index(path: str | os.PathLike[str], *, slices: bool = False) -> Index:
    """A VIP-ANT index, strictly: UserError names the file, the line and what is wrong with it. slices: the run's
    `dataset.slices`: clips are stretches of their files."""
    return read_index(place(path), slices=slices)


def select(index: Index, ids: Iterable[str]) -> Index:
    """The rows of an index whose ids are given, in the order of the index.

    UserError if none is in it; a warning if some are not. For a k-NN file: `{*neighbours, *(id for pairs in
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


def class_names(*indexes: Index, root: str | os.PathLike[str] | RemotePath | None = None) -> list[str]:
    """The classes in order: those of `class_labels_indices.csv` under `root` if it exists, else the sorted labels in
    use in these indexes. Never all nodes of the ontology: most of them label no clip, and their mAP is undefined."""
    if root is not None and (path := place(root) / LABEL_MAP).is_file():
        return list(read_label_map(path))
    return list(common_names(*(index.labels for index in indexes)))


class ClipDataset(Dataset[Example | None]):
    """The clips of an index, decoded when asked for. Picklable; holds no open file.

    index: of `load_index`; root: the media folder, or where the clips of another format lie (in parquet a row group is
    unpacked up to the row: read in order); classes: of `class_names` (default: of this index and root); output:
    `waveform` or `spectrogram`; front_end: frames, bins and normalisation (default: the released checkpoints');
    on_unreadable: `error` raises UnreadableClip, `skip` gives None, which `collate` leaves out.
    UserError if a label of the index is none of the classes.
    """

    def __init__(
        self,
        index: Index,
        root: str | os.PathLike[str] | RemotePath | MediaSource,
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
        if not isinstance(root, MediaSource):
            root = MediaSource(root=place(root), format=Format.vipant, columns=ColumnsConfig())
        self._media = root
        self._reader: tuple[int, MediaReader] | None = None  # with its process: an open file is not shared by two
        self._places = index.places()
        self.root = self._media.root
        self.classes = list(classes) if classes is not None else class_names(index, root=self.root)
        self._output, self._front_end, self._on_unreadable = output, front_end, on_unreadable
        self._log_mel = LogMel(front_end)
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
            wave = self._wave(row, path)
        except (Undecodable, OSError) as error:
            if self._on_unreadable == "skip":
                return None
            why = error.detail if isinstance(error, Undecodable) else error.strerror
            if not (self.root / container(self._media.format.value, path)).exists():  # libsndfile says "System error."
                why = f"no such file under {self.root}"
            raise UnreadableClip(f"{path}: {why}") from None
        samples = torch.from_numpy(np.ascontiguousarray(wave.samples))
        if self._output == "spectrogram":
            samples = self._log_mel(samples[None], [len(samples)], wave.sample_rate)[0]
        labels = torch.zeros(len(self.classes))
        offsets = self.index.labels.offsets
        labels[torch.from_numpy(self._class_of_code[self.index.labels.codes[offsets[row] : offsets[row + 1]]])] = 1.0
        return Example(samples, wave.sample_rate, labels, self.index.ids[row].as_py(), self._frame(row, path))

    def _wave(self, row: int, path: str) -> decode.Waveform:
        if self._reader is None or self._reader[0] != os.getpid():
            media = self._media
            self._reader = os.getpid(), MediaReader(str(media.root), media.format.value, asdict(media.columns))
        offsets, sizes = self._places
        source = self._reader[1].open(path, int(offsets[row]), int(sizes[row]))
        with contextlib.nullcontext(source) if isinstance(source, str) else source as file:
            front_end = self._front_end
            return decode.load(
                file, max_frames=front_end.max_frames, zero_mean=front_end.zero_mean, stretch_s=stretch_s(path)
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def _frame(self, row: int, path: str) -> str:
        """The image that evaluation uses: number ceil(n / 2) − 1 of the record's n frames."""
        if self.index.lines is None:
            return ""
        record = json.loads(self.index.lines[row].as_py())
        frames = record.get("frame") or []
        frames = [frames] if isinstance(frames, str) else frames
        if not frames:
            return ""
        chunk = path.rpartition("/")[0].rpartition("/")[0]
        name = f"{record['id']}.{frames[math.ceil(len(frames) / 2) - 1]}"
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
