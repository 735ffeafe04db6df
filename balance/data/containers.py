"""Which container files (parquet, tar) a split's name means, and their names relative to the media root.

A name X means `X.parquet`, `X-*.parquet` or `X/*.parquet` under the media root (likewise `.tar`), in the order of the
names. What is in them is read by `parquet_files` and `tar_shards`.
"""

from __future__ import annotations

import os
from pathlib import Path

from balance.data.media import relative_path
from balance.data.vipant_index import NoSuchIndex
from balance.errors import UserError
from balance.runtime.wording import listed


def find(media_root: Path, value: str, suffix: str) -> list[Path]:
    """The container files of a split, sorted by name. NoSuchIndex names those that exist."""
    if "/" in value or value.endswith(suffix):
        given = Path(value)
        files = sorted(given.glob(f"*{suffix}")) if given.is_dir() else [given] if given.is_file() else []
        looked_for = str(given)
    else:
        files = [p for p in [media_root / f"{value}{suffix}"] if p.is_file()]
        files = files or sorted(media_root.glob(f"{value}-*{suffix}")) or sorted(media_root.glob(f"{value}/*{suffix}"))
        looked_for = f"{value}{suffix}, {value}-*{suffix}, {value}/*{suffix} under {media_root}"
    if not files:
        existing = sorted(p.relative_to(media_root).as_posix() for p in media_root.glob(f"*{suffix}"))
        existing += sorted(f"{p.name}/" for p in media_root.glob("*/") if any(p.glob(f"*{suffix}")))
        said = f"There are: {listed(existing, 12)}." if existing else f"There is no {suffix} file."
        raise NoSuchIndex(f"no {suffix} files {value!r} (looked for {looked_for}). {said}")
    return files


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
