"""Tar shards (webdataset): ids, labels and the places of the audio in, references to chosen members out.

The headers and the `.json` members are read; the audio stays where it is, and a clip's key names its shard and member
(`balance.data.media`). The price: a tar's headers are walked at every run, some 40 µs per member.
"""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from balance.data import media
from balance.data.clip_ids import check_ids, refuse_duplicates
from balance.data.containers import find, relative
from balance.data.vipant_index import labels_from_lists
from balance.errors import UserError
from balance.records import Index
from balance.runtime.files import atomic_text


def read_tar(media_root: Path, value: str) -> Index:
    """Members of tar shards (webdataset: `key.flac|mp3|wav…` and `key.json`) as an index, in the order of the shards.

    The key is the member's name up to the first dot of its last part; it is the clip's id. The json is an object whose
    `labels` is a list of strings (absent: none). UserError names shard and member.
    """
    columns = _TarColumns()
    for file in find(media_root, value, ".tar"):
        name = relative(media_root, file)
        try:
            with tarfile.open(file, "r:") as tar:
                columns.add_shard(tar, name)
                if tar.offset >= file.stat().st_size:
                    raise tarfile.ReadError("it ends without the empty blocks that end a tar file: cut off?")
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{name}: not a complete tar file ({error})") from None
    if not columns.ids:
        raise UserError(f"{value}: empty index: the tar shards hold no audio with a .json beside it")
    ids = pa.array(columns.ids, type=pa.string())
    check_ids(ids, lambda row: columns.paths[row])
    refuse_duplicates(value, ids)
    return Index(
        f"{value}.tar",
        ids,
        pa.array(columns.paths, type=pa.string()),
        labels_from_lists(pa.array(columns.labels, type=pa.list_(pa.string()))),
        offsets=np.array(columns.offsets, dtype=np.int64),
        sizes=np.array(columns.sizes, dtype=np.int64),
    )


class _TarColumns:
    """What is gathered from the shards, one entry a clip."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.paths: list[str] = []
        self.labels: list[list[str]] = []
        self.offsets: list[int] = []
        self.sizes: list[int] = []

    def add_shard(self, tar: tarfile.TarFile, shard: str) -> None:
        audio: dict[str, tuple[str, int, int]] = {}
        labels: dict[str, list[str]] = {}
        for member in tar:
            if not member.isreg():
                continue
            if not _is_text_utf8(member.name):
                raise UserError(f"{shard}: the member name {member.name!r} is not UTF-8")
            folder, _, base = member.name.removeprefix("./").rpartition("/")
            stem, _, suffix = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if suffix.lower() == "json":
                labels[key] = _json_labels(tar, member, shard)
            elif suffix.lower().rpartition(".")[2] in media.AUDIO_SUFFIXES:
                if key in audio:
                    raise UserError(f"{shard}: {member.name}: a second audio file of the key {key!r}")
                audio[key] = (member.name, member.offset_data, member.size)
        for key, (name, offset, size) in audio.items():
            if key not in labels:
                raise UserError(f"{media.tar_key(shard, name)}: no {key}.json beside it in the shard")
            self.ids.append(key)
            self.paths.append(media.tar_key(shard, name))
            self.labels.append(labels[key])
            self.offsets.append(offset)
            self.sizes.append(size)


def _is_text_utf8(text: str) -> bool:
    """Whether it holds no half of a surrogate pair, nor what stands for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_labels(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: str) -> list[str]:
    where = media.tar_key(shard, member.name)
    file = tar.extractfile(member)
    assert file is not None, "a regular member has content"
    try:
        record = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    labels = record.get("labels", []) if isinstance(record, dict) else None
    if not isinstance(labels, list) or not all(isinstance(x, str) and _is_text_utf8(x) for x in labels):
        raise UserError(f"{where}: must be an object whose 'labels' is a list of strings")
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
