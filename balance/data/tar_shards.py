"""Tar shards (webdataset): ids, labels and the places of the audio in, references to chosen members out.

The headers and the `.json` members are read; the audio stays where it is, and a clip's key names its shard and member
(`balance.data.media`). Every key of a shard is a clip: one whose audio is absent, or has a suffix that nobody knows,
counts as a clip that cannot be decoded. The price: a tar's headers are walked at every run, some 40 µs per member.
"""

from __future__ import annotations

import csv
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from balance.data import media
from balance.data.clip_ids import id_array, id_of_path, refuse_duplicates
from balance.data.containers import find, relative
from balance.data.vipant_index import labels_from_lists
from balance.errors import UserError
from balance.records import Index
from balance.runtime.files import atomic_text
from balance.runtime.remote import AnyPath
from balance.runtime.wording import listed

log = logging.getLogger(__name__)

# Keys of a clip's json that may hold its labels, where it has none of the name that was given; the likeliest first.
_LIKE_LABELS = (
    *("labels", "label", "tags", "tag", "human_labels", "positive_labels", "classes", "class"),
    *("categories", "category", "events", "event", "text", "captions", "caption"),
)


def read_tar(media_root: AnyPath, value: str, labels_key: str | None) -> Index:
    """Members of tar shards (webdataset: `key.flac|mp3|wav…` and `key.json`) as an index, in the order of the shards.

    The key is the audio's name up to the last dot, or an earlier one, that leaves a name with a `.json` beside it; it
    is the clip's id. labels_key: the key of the json whose value is a list of strings, or one string (absent: no
    labels; None: no clip has labels, nor needs a json). UserError names shard and member.
    """
    columns = _Columns(labels_key)
    for file in find(media_root, value, ".tar"):
        name = relative(media_root, file)
        try:
            with file.open("rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
                columns.add_shard(tar, opened, name)
                _check_end(opened, tar.offset)
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{name}: not a complete tar file ({error})") from None
    if not columns.num_with_audio:
        raise UserError(f"{value}: empty index: the tar shards hold no audio with a .json beside it")
    columns.say_what_is_odd(value)
    ids = id_array(columns.ids, lambda row: columns.paths[row])
    refuse_duplicates(value, ids)
    return Index(
        f"{value}.tar",
        ids,
        pa.array(columns.paths, type=pa.string()),
        labels_from_lists(pa.array(columns.labels, type=pa.list_(pa.string()))),
        offsets=np.array(columns.offsets, dtype=np.int64),
        sizes=np.array(columns.sizes, dtype=np.int64),
    )


def _check_end(file: BinaryIO, offset: int) -> None:
    """tarfile.ReadError where the blocks of zeros that end a tar file are absent, or are not its end.

    tarfile itself stops without a word at the first block that is no header. offset: bytes, where it stopped.
    """
    file.seek(offset)
    tail = file.read(tarfile.BLOCKSIZE)
    if len(tail) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without the empty blocks that end a tar file: cut off?")
    at = offset
    while tail:
        if tail.strip(b"\0"):
            raise tarfile.ReadError(f"data that are no member at byte {at}: damaged, or several tar files in one")
        at += len(tail)
        tail = file.read(1 << 20)


@dataclass(frozen=True, slots=True)
class _Member:
    """stem: the name without a leading `./`, up to its last dot; suffix: after it, in lower case; offset, size: in
    bytes."""

    name: str
    stem: str
    suffix: str
    offset: int
    size: int


class _Columns:
    """What is gathered from the shards, one entry per clip."""

    def __init__(self, labels_key: str | None) -> None:
        self.ids: list[str] = []
        self.paths: list[str] = []
        self.labels: list[list[str]] = []
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self.num_with_audio = 0
        self._labels_key = labels_key
        self._num_without_labels = 0  # clips whose json lacks the labels' key
        self._other_keys: Counter[str] = Counter()  # what it has instead
        self._without_audio: list[str] = []

    def add_shard(self, tar: tarfile.TarFile, file: BinaryIO, shard: str) -> None:
        members = list(_members(tar, shard))
        jsons = {member.stem: member for member in members if member.suffix == "json"}
        audio: dict[str, _Member] = {}
        for member in members:
            if member.suffix in media.ALL_AUDIO:
                key = next((key for key in _keys(member.stem) if key in jsons), member.stem)
                if key in audio and _is_for_ffmpeg(member) != _is_for_ffmpeg(audio[key]):  # a video and its sound
                    member = min(member, audio[key], key=_is_for_ffmpeg)
                elif key in audio:
                    raise UserError(
                        f"{shard}: {member.name}: a second audio file of the key {key!r}, beside {audio[key].name}"
                    )
                audio[key] = member
        for key, member in audio.items():
            where = media.tar_key(shard, member.name)
            if key in jsons:
                labels = self._read_labels(file, shard, jsons[key])
            elif self._labels_key is None:
                labels = []
            else:
                raise UserError(
                    f"{where}: no {member.stem}.json beside it in the shard. Where the clips have no labels, type "
                    "dataset.columns.labels=null"
                )
            self._add(key, where, labels, member.offset, member.size)
        self.num_with_audio += len(audio)
        self._add_keys_without_audio(shard, [m for m in members if not any(key in audio for key in _keys(m.stem))])

    def _add_keys_without_audio(self, shard: str, members: list[_Member]) -> None:
        first = {member.stem: member.name for member in reversed(members)}
        for member in members:
            if first[member.stem] == member.name:
                self._without_audio.append(media.tar_key(shard, member.name))
                self._add(member.stem, self._without_audio[-1], [], -1, -1)

    def _add(self, key: str, path: str, labels: list[str], offset: int, size: int) -> None:
        self.ids.append(id_of_path(key))
        self.paths.append(path)
        self.labels.append(labels)
        self.offsets.append(offset)
        self.sizes.append(size)

    def _read_labels(self, file: BinaryIO, shard: str, member: _Member) -> list[str]:
        where = media.tar_key(shard, member.name)
        file.seek(member.offset)
        try:
            record = json.loads(file.read(member.size))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: must be an object with the clip's labels, got a JSON {type(record).__name__}")
        if self._labels_key is None:
            return []
        if self._labels_key not in record:
            self._num_without_labels += 1
            self._other_keys.update(record.keys())
            return []
        return _labels(where, self._labels_key, record[self._labels_key])

    def say_what_is_odd(self, value: str) -> None:
        """Warnings; UserError where no clip has the labels' key and another may be meant."""
        if self._without_audio:
            log.warning(
                "%s: %d keys have no audio of a known suffix and count as undecodable: %s",
                value,
                len(self._without_audio),
                listed(self._without_audio, 3),
            )
        if not self._num_without_labels:
            return
        keys = [key for key, _ in self._other_keys.most_common()]
        likely = [key for name in _LIKE_LABELS for key in keys if key.lower() == name]
        if likely and self._num_without_labels == self.num_with_audio:
            raise UserError(
                f"{value}: no clip's json has {self._labels_key!r}; it has {listed(keys, 12)}. Type "
                f"dataset.columns.labels={likely[0]} if that holds the labels, or dataset.columns.labels=null for none"
            )
        log.warning(
            "%s: the json of %d of the %d clips has no %r, so they have no labels; other keys there: %s",
            value,
            self._num_without_labels,
            self.num_with_audio,
            self._labels_key,
            listed(keys, 12),
        )


def _is_for_ffmpeg(member: _Member) -> bool:
    return member.suffix in media.FFMPEG_SUFFIXES


def _members(tar: tarfile.TarFile, shard: str) -> Iterator[_Member]:
    """The members with content, a hard link with that of what it leads to. Hidden files are left out, as the
    webdataset library does."""
    places: dict[str, tuple[int, int]] = {}
    for info in tar:
        folder, slash, base = info.name.removeprefix("./").rpartition("/")
        if info.isdir() or base.startswith(".") or media.is_clutter(info.name):
            continue
        if not _is_text_utf8(info.name):
            raise UserError(f"{shard}: the member name {info.name!r} is not UTF-8")
        if info.isreg() and not info.issparse():
            places[info.name] = (info.offset_data, info.size)
        elif info.islnk() and info.linkname in places:
            places[info.name] = places[info.linkname]
        else:
            raise UserError(
                f"{media.tar_key(shard, info.name)}: no regular file, nor a hard link to one before it in the shard: "
                "pack the clip itself (tar --dereference --hard-dereference)"
            )
        stem, dot, suffix = base.rpartition(".")
        yield _Member(
            info.name, folder + slash + (stem if dot else base), suffix.lower() if dot else "", *places[info.name]
        )


def _keys(stem: str) -> Iterator[str]:
    """What may be the key of a member: its name up to each dot, the last one first."""
    folder, slash, base = stem.rpartition("/")
    while base:
        yield folder + slash + base
        base = base.rpartition(".")[0]


def _is_text_utf8(text: str) -> bool:
    """Whether it holds no half of a surrogate pair, nor what stands for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels(where: str, key: str, value: Any) -> list[str]:
    """A list of strings as it is; one string is one label, but not one that may be several, joined by commas."""
    labels = [value] if isinstance(value, str) and "," not in value else value
    if not isinstance(labels, list) or not all(isinstance(x, str) and _is_text_utf8(x) for x in labels):
        raise UserError(
            f"{where}: must be an object whose {key!r} is a list of strings, got {json.dumps(value)[:60]} "
            "(dataset.columns.labels says which key has the labels)"
        )
    return labels


def write_members(path: Path, chosen: Index) -> None:
    """References: shard (relative to the media root), member, and the place of its bytes."""
    assert chosen.offsets is not None, "webdataset keeps the places of its members"
    assert chosen.sizes is not None, "webdataset keeps the places of its members"
    with atomic_text(path) as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["id", "shard", "member", "offset", "size", "labels"])
        columns = (chosen.ids.to_pylist(), chosen.paths.to_pylist(), chosen.offsets.tolist(), chosen.sizes.tolist())
        for row, (id, key, offset, size) in enumerate(zip(*columns, strict=True)):
            shard = media.container("webdataset", key)
            out.writerow([id, shard, key[len(shard) + 2 :], offset, size, ";".join(chosen.labels[row])])
