"""Which container files (parquet, tar) a split's name means, and their names relative to the media root.

A name X means `X.parquet`, the shards `X-00000-of-00010.parquet` or `X-000000.parquet`, or all in the folder X
(likewise `.tar`), in the order of the names: under the media root, and for a path first in the working directory.
What is in them is read by `parquet_files` and `tar_shards`.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from balance.data.locate import NoSuchIndex, candidates
from balance.data.media import is_clutter, relative_path
from balance.errors import UserError
from balance.runtime.wording import listed

log = logging.getLogger(__name__)

_COMPRESSED = re.compile(r"\.(?:tar|parquet)\.(?:gz|bz2|xz|zst)$|\.tgz$")
# `-000012` (webdataset), `-00003-of-00010` and with a hash (Hugging Face). `train-clean-000000` is another split.
_SHARD = re.compile(r"-\d+(?:-of-(?P<total>\d+)(?:-[0-9a-f]+)?)?")


def find(media_root: Path, value: str, suffix: str) -> list[Path]:
    """The container files of a split, sorted by name. NoSuchIndex names those that exist; UserError where they are
    compressed as a whole, so that no clip can be read in place."""
    name = value.removesuffix(suffix)
    bases = [Path(str(path).removesuffix(suffix)) for path in candidates(media_root, value, (suffix,))]
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


def _files(base: Path, suffix: str) -> list[Path]:
    alone = Path(f"{base}{suffix}")
    if alone.is_file():
        return [alone]
    shards = [p for p in _with_suffix(base.parent, suffix) if _is_shard_of(base.name, p.name.removesuffix(suffix))]
    return shards or _with_suffix(base, suffix)


def _with_suffix(folder: Path, suffix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.endswith(suffix) and not is_clutter(p.name) and p.is_file())


def _is_shard_of(name: str, stem: str) -> bool:
    return stem.startswith(name) and _SHARD.fullmatch(stem.removeprefix(name)) is not None


def _warn_of_absent_shards(files: list[Path]) -> None:
    """Names of the form `-00003-of-00010` say how many shards there are."""
    totals = [int(found["total"]) for p in files if (found := _SHARD.search(p.stem)) and found["total"]]
    if totals and max(totals) > len(files):
        log.warning("%s: %d of the %d shards are there", files[0], len(files), max(totals))


def _refuse_compressed(base: Path, suffix: str) -> None:
    """Of `X.tar.gz` and the like: to be told rather than to be passed over."""
    for folder in (base.parent, base):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            stem = _COMPRESSED.sub("", path.name)
            is_meant = folder == base or stem == base.name or _is_shard_of(base.name, stem)
            if stem != path.name and is_meant and not path.with_name(stem + suffix).exists():
                raise UserError(
                    f"{path}: compressed as a whole, so no clip can be read in place: unpack it to {stem}{suffix}"
                )


def _existing(media_root: Path, suffix: str) -> str:
    if not media_root.is_dir():
        return f"There is no folder {media_root}."
    names = [p.name for p in _with_suffix(media_root, suffix)]
    names += sorted(f"{p.name}/" for p in media_root.iterdir() if p.is_dir() and _with_suffix(p, suffix))
    return f"There are: {listed(names, 12)}." if names else f"There is no {suffix} file."


def relative(media_root: Path, file: Path) -> str:
    """A container's path relative to the media root, with slashes. UserError where it lies elsewhere."""
    path = relative_path(os.path.abspath(file), media_root)
    if path is None:
        raise UserError(outside(media_root, file))
    return path


def outside(media_root: Path, file: str | os.PathLike[str]) -> str:
    """What to say of a file outside the media root: the folder to name that holds both, where there is one."""
    folder = os.path.dirname(os.path.abspath(file))
    both = os.path.commonpath([folder, os.path.abspath(media_root)])
    return (
        f"{file} is not under dataset.media={media_root}; say dataset.media={folder if both == '/' else both}, "
        "or put a link to its folder there: all splits must lie under one folder"
    )
