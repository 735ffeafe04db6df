"""Where a split lies: what the values of `dataset.balanced`, `dataset.unbalanced` and `dataset.eval` mean as paths.

A bare name lies under the root; a path (with a slash, or one of the format's suffixes) lies in the working directory,
else under the root. What is looked for there is the format's own business.
"""

from __future__ import annotations

import re
from pathlib import Path

from balance.data.media import is_clutter
from balance.errors import UserError
from balance.runtime.remote import AnyPath, RemotePath, is_url, place
from balance.runtime.wording import listed

_NOT_AN_INDEX = re.compile(r"_weight$|^ids_|^class_labels_indices$|^augmented_k\d+$")


class NoSuchIndex(UserError):
    """There is no file for a split: of the eval list this is only worth a warning."""


def candidates(root: AnyPath, value: str, suffixes: tuple[str, ...]) -> list[AnyPath]:
    """Where a split's value may lie, the first choice first."""
    if is_url(value):
        return [place(value)]
    places: list[AnyPath] = [root / value]
    if "/" in value or value.endswith(suffixes):
        places.insert(0, Path(value))
    return list(dict.fromkeys(places))


def one_file(root: AnyPath, value: str, suffix: str) -> AnyPath:
    """The file `value`, or `value` with the suffix. NoSuchIndex says where it was looked for and what is there."""
    places = [with_suffix(path, suffix) for path in candidates(root, value, (suffix,))]
    for path in places:
        if path.is_file():
            return path
    raise NoSuchIndex(f"{' and '.join(map(str, places))}: no such index file. {existing_indexes(root, suffix)}")


def with_suffix(path: AnyPath, suffix: str) -> AnyPath:
    """The path, its name ending in this suffix."""
    return path if path.name.endswith(suffix) else type(path)(f"{path}{suffix}")


def file_names(folder: AnyPath) -> list[str]:
    """The names of the files in a folder, unsorted; none where there is no such folder."""
    if isinstance(folder, RemotePath):
        return folder.names("file")
    return [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def folder_names(folder: AnyPath) -> list[str]:
    """The names of the folders in a folder, unsorted; none where there is no such folder."""
    if isinstance(folder, RemotePath):
        return folder.names("directory")
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def index_file(root: AnyPath, value: str) -> AnyPath:
    """The file of a VIP-ANT index: a bare name X means src_X.csv, else src_full_X.csv, else X.csv under the root.

    NoSuchIndex says where it was looked for and what is there.
    """
    if "/" in value or value.endswith(".csv"):
        return one_file(root, value, ".csv")
    for name in (f"src_{value}.csv", f"src_full_{value}.csv", f"{value}.csv"):
        if (root / name).is_file():
            return root / name
    raise NoSuchIndex(
        f"no index {value!r} under {root} (looked for src_{value}.csv, src_full_{value}.csv, {value}.csv). "
        f"{existing_indexes(root)}"
    )


def existing_indexes(root: AnyPath, suffix: str = ".csv") -> str:
    """One sentence that lists the index files in a folder, for messages."""
    if not root.is_dir():
        return f"There is no folder {root}."
    names = [
        name
        for name in file_names(root)
        if name.endswith(suffix) and not _NOT_AN_INDEX.search(name.removesuffix(suffix)) and not is_clutter(name)
    ]
    if not names:
        return f"There is no index in {root}: python -m balance.index makes one."
    names.sort(key=lambda name: (not name.startswith("src_"), name))
    return f"There are: {listed(names, 12)}."
