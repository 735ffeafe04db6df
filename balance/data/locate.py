"""Where a split lies: what the values of `dataset.balanced`, `dataset.unbalanced` and `dataset.eval` mean as paths.

A bare name lies under the root; a path (with a slash, or one of the format's suffixes) lies in the working directory,
else under the root. What is looked for there is the format's own business.
"""

from __future__ import annotations

import re
from pathlib import Path

from balance.data.media import is_clutter
from balance.errors import UserError
from balance.runtime.wording import listed

_NOT_AN_INDEX = re.compile(r"_weight$|^ids_|^class_labels_indices$|^augmented_k\d+$")


class NoSuchIndex(UserError):
    """There is no file for a split: of the eval list this is only worth a warning."""


def candidates(root: Path, value: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Where a split's value may lie, the first choice first."""
    places = [root / value]
    if "/" in value or value.endswith(suffixes):
        places.insert(0, Path(value))
    return list(dict.fromkeys(places))


def one_file(root: Path, value: str, suffix: str) -> Path:
    """The file `value`, or `value` with the suffix. NoSuchIndex says where it was looked for and what is there."""
    places = [p if p.name.endswith(suffix) else Path(f"{p}{suffix}") for p in candidates(root, value, (suffix,))]
    for path in places:
        if path.is_file():
            return path
    raise NoSuchIndex(f"{' and '.join(map(str, places))}: no such index file. {existing_indexes(root, suffix)}")


def index_file(root: Path, value: str) -> Path:
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


def existing_indexes(root: Path, suffix: str = ".csv") -> str:
    """One sentence that lists the index files in a folder, for messages."""
    if not root.is_dir():
        return f"There is no folder {root}."
    names = [
        p.name
        for p in root.iterdir()
        if p.suffix == suffix and not _NOT_AN_INDEX.search(p.stem) and not is_clutter(p.name)
    ]
    if not names:
        return f"There is no index in {root}: python -m balance.index makes one."
    names.sort(key=lambda name: (not name.startswith("src_"), name))
    return f"There are: {listed(names, 12)}."
