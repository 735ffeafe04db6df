"""Which container files (parquet, tar) a split's name means, and their names relative to the media root.

A name X means `X.parquet`, the shards `X-00000-of-00010.parquet` or `X-000000.parquet`, or all in the folder X
(likewise `.tar`), in the order of the names: under the media root, and for a path first in the working directory.
What is in them is read by `parquet_files` and `tar_shards`.
"""

from __future__ import annotations

import logging
import os
import re

from balance.data.locate import NoSuchIndex, candidates, file_names, folder_names
from balance.data.media import is_clutter, relative_path
from balance.errors import UserError
from balance.runtime.remote import AnyPath, RemotePath
from balance.runtime.wording import listed

log = logging.getLogger(__name__)

_COMPRESSED = re.compile(r"\.(?:tar|parquet)\.(?:gz|bz2|xz|zst)$|\.tgz$")
# `-000012` (webdataset), `-00003-of-00010` and with a hash (Hugging Face). `train-clean-000000` is another split.
_SHARD = re.compile(r"-\d+(?:-of-(?P<total>\d+)(?:-[0-9a-f]+)?)?")


def find(media_root: AnyPath, value: str, suffix: str) -> list[AnyPath]:
    """The container files of a split, sorted by name. NoSuchIndex names those that exist; UserError where they are
    compressed as a whole, so that no clip can be read in place."""
    name = value.removesuffix(suffix)
    bases = [type(path)(str(path).removesuffix(suffix)) for path in candidates(media_root, value, (suffix,))]
    for base in bases:
        _refuse_compressed(base, suffix)
        if files := _files(base, suffix):
            _warn_of_absent_shards(files)
            return files
    folders = " and ".join(["in the working directory", f"under {media_root}"][-len(bases) :])
    raise NoSuchIndex(
        f"no {suffix} files {value!r} (looked {folders} for {name}{suffix}, {name}-00000-of-00001{suffix}, "
        f"{name}-000000{suffix} and {name}/*{suffix}). {_existing(media_root, suffix)}"
    )


def _files(base: AnyPath, suffix: str) -> list[AnyPath]:
    alone = type(base)(f"{base}{suffix}")
    if alone.is_file():
        return [alone]
    shards = [p for p in _with_suffix(base.parent, suffix) if _is_shard_of(base.name, p.name.removesuffix(suffix))]
    return shards or _with_suffix(base, suffix)


def _with_suffix(folder: AnyPath, suffix: str) -> list[AnyPath]:
    names = sorted(name for name in file_names(folder) if name.endswith(suffix) and not is_clutter(name))
    return [folder / name for name in names]


def _is_shard_of(name: str, stem: str) -> bool:
    return stem.startswith(name) and _SHARD.fullmatch(stem.removeprefix(name)) is not None


def _warn_of_absent_shards(files: list[AnyPath]) -> None:
    """Names of the form `-00003-of-00010` say how many shards there are."""
    totals = [int(found["total"]) for p in files if (found := _SHARD.search(p.stem)) and found["total"]]
    if totals and max(totals) > len(files):
        log.warning("%s: %d of the %d shards are there", files[0], len(files), max(totals))


def _refuse_compressed(base: AnyPath, suffix: str) -> None:
    """Of `X.tar.gz` and the like: to be told rather than to be passed over."""
    for folder in (base.parent, base):
        names = sorted(file_names(folder))
        for name in names:
            stem = _COMPRESSED.sub("", name)
            is_meant = folder == base or stem == base.name or _is_shard_of(base.name, stem)
            if stem != name and is_meant and stem + suffix not in names:
                raise UserError(
                    f"{folder / name}: compressed as a whole, so no clip can be read in place: unpack it to "
                    f"{stem}{suffix}"
                )


def _existing(media_root: AnyPath, suffix: str) -> str:
    if not media_root.is_dir():
        return f"There is no folder {media_root}."
    names = [path.name for path in _with_suffix(media_root, suffix)]
    names += [f"{name}/" for name in sorted(folder_names(media_root)) if _with_suffix(media_root / name, suffix)]
    return f"There are: {listed(names, 12)}." if names else f"There is no {suffix} file."


def relative(media_root: AnyPath, file: AnyPath) -> str:
    """A container's path relative to the media root, with slashes. UserError where it lies elsewhere."""
    if isinstance(file, RemotePath):
        path = file.relative_to(media_root) if isinstance(media_root, RemotePath) else None
    else:
        path = relative_path(os.path.abspath(file), media_root)
    if path is None:
        raise UserError(outside(media_root, file))
    return path


def outside(media_root: AnyPath, file: str | AnyPath) -> str:
    """What to say of a file outside the media root: the folder to name that holds both, where there is one."""
    if isinstance(media_root, RemotePath) or isinstance(file, RemotePath):
        return f"{file} is not under dataset.media={media_root}: all splits must lie under one folder or URL"
    folder = os.path.dirname(os.path.abspath(file))
    both = os.path.commonpath([folder, os.path.abspath(media_root)])
    return (
        f"{file} is not under dataset.media={media_root}; say dataset.media={folder if both == '/' else both}, "
        "or put a link to its folder there: all splits must lie under one folder"
    )
