"""The keys of `dataset` and `index`: which lists and media, in which form."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from balance.runtime.keys import key
from balance.runtime.remote import AnyPath, check_url


class Format(Enum):
    """How index and media lie on disk."""

    vipant = "vipant"
    ast_json = "ast_json"
    parquet = "parquet"
    webdataset = "webdataset"
    segments = "segments"
    embeddings = "embeddings"
    folder = "folder"

    @property
    def in_containers(self) -> bool:
        """Whether the clips lie inside larger files, which the index was read from: none can be missing alone."""
        return self in (Format.parquet, Format.webdataset)

    @property
    def is_its_own_index(self) -> bool:
        """Whether the media are all there is: nothing else lies under `dataset.root`."""
        return self.in_containers or self is Format.folder


class Ids(Enum):
    """Whether ids are YouTube ids when it is asked if two of them mean the same clip."""

    auto = "auto"
    youtube = "youtube"
    whole = "whole"


@dataclass(kw_only=True, slots=True)
class ColumnsConfig:
    """Names of the columns of parquet files, and of the labels in the json of tar shards."""

    id: str = key("video_id", "column of the clip's id (dataset.format=parquet)")
    audio: str = key("audio", "column of the audio bytes")
    labels: str | None = key("labels", "column (in tar shards: key of the json) of the labels; null: there are none")

    def __post_init__(self) -> None:
        names = [self.id, self.audio, self.labels]
        if "" in names or len(set(names)) < 3:
            raise ValueError(f"dataset.columns must be three different names, got {names}")


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """Which index files and media."""

    name: str = key("audioset", "keeps the stores of different data sets apart")
    format: Format = key(
        Format.vipant, "vipant, ast_json, parquet, webdataset, segments, embeddings or folder", common=True
    )
    root: str | None = key(None, "folder or URL (s3://…) of the index files and the media (required)", common=True)
    media: str | None = key(None, "folder or URL of the media, if elsewhere than dataset.root", common=True)
    balanced: str = key("balanced_train_segments", "the seeds: an index's name or path", common=True)
    unbalanced: str = key("unbalanced_train_segments", "the pool to choose from", common=True)
    eval: str | None = key("eval_segments", "the clips that must never be chosen; null: no guard", common=True)
    ids: Ids = key(Ids.auto, "compare ids as YouTube ids (auto: where nearly all have that shape), or whole")
    slices: bool = key(False, "clips are stretches of longer files: only bos … eos of each record is decoded")
    ontology: str | None = key(None, "names for label ids; default: ontology.json under the root, if it is there")
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"dataset.name={self.name}: a name for folders, without slashes")
        for name in ("root", "media", "balanced", "unbalanced", "eval", "ontology"):
            check_url(f"dataset.{name}", getattr(self, name))
        if self.slices and self.format not in (Format.vipant, Format.segments):
            raise ValueError(
                f"dataset.slices=true needs records with times, and dataset.format={self.format.value} has none: "
                "type dataset.format=vipant or segments, or leave it out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaSource:
    """Where clips' bytes lie: the media root, `dataset.format`, and the names of parquet columns."""

    root: AnyPath
    format: Format
    columns: ColumnsConfig


INDEX_EXAMPLES = {
    "segments": "[balanced_train_segments.csv,unbalanced_train_segments.csv]",
    "media": "/data/audioset",
    "out": "/data/indexes",
}


class Layout(Enum):
    """Whose list files `index.segments` names."""

    audioset = "audioset"
    audioset_strong = "audioset_strong"
    esc50 = "esc50"
    fsd50k = "fsd50k"
    urbansound8k = "urbansound8k"
    vggsound = "vggsound"
    audiocaps = "audiocaps"
    folders = "folders"


@dataclass(kw_only=True, slots=True)
class IndexConfig:
    """The keys of `python -m balance.index`."""

    layout: Layout = key(
        Layout.audioset,
        "audioset, audioset_strong, esc50, fsd50k, urbansound8k, vggsound, audiocaps, folders",
        common=True,
    )
    segments: Any = key(None, "a list file, or several: [a.csv,b.csv] (required, but with folders)", common=True)
    splits: Any = key(None, "the folds or splits to take of a list that has any: [1,2], or train; default: all")
    slices: bool = key(False, "several segments of one file: to be used with dataset.slices=true")
    media: str | None = key(None, "the folder to walk, in VIP-ANT's layout or flat (required)", common=True)
    out: str | None = key(None, "where src_*.csv are written, and links for flat media (required)", common=True)
    require_frames: bool | None = key(
        None, "leave out clips without a frame; default: if the media have any frame/ folder", common=True
    )
    link: bool | None = key(None, "make a tree of links under index.out; default: if the media lie flat", common=True)

    def __post_init__(self) -> None:
        if isinstance(self.segments, str):
            self.segments = [self.segments]
        if self.splits is not None:
            given = self.splits if isinstance(self.splits, list) else [self.splits]
            self.splits = [str(split) for split in given]
            if self.layout not in (Layout.esc50, Layout.fsd50k, Layout.urbansound8k, Layout.vggsound):
                raise ValueError(f"index.splits={given}: the lists of index.layout={self.layout.value} have none")
        if self.segments is not None:
            if not isinstance(self.segments, list) or not all(isinstance(path, str) for path in self.segments):
                raise ValueError(
                    f"index.segments={self.segments} was given; a list file is needed, or several: "
                    f"index.segments={INDEX_EXAMPLES['segments']}"
                )
            self.segments = [os.path.expanduser(path) for path in self.segments]
        if self.slices and self.layout is not Layout.audioset:
            raise ValueError(f"index.slices=true: clips of index.layout={self.layout.value} are files of their own")
        stems = [self._stem(path) for path in self.segments or []]
        if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
            raise ValueError(f"index.segments has two lists named {twice[0]}: each gives src_{twice[0]}.csv")

    def _stem(self, path: str) -> str:
        return Path(path).name if self.layout is Layout.folders else Path(path).stem
