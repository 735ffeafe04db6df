"""The user's own vectors (`dataset.format=embeddings`): files under `dataset.root` -> ids, labels and vectors.

`{name}.npy` with `{name}.ids.txt`, or `{name}.parquet` with `id` and `embedding`, or a folder `{name}/` of one
`{id}.npz` per clip (`vector_files`). Labels and lines come from an index `{name}.csv`, where it lies beside them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.data.clip_ids import read_id_file, refuse_duplicates
from balance.data.flat_vectors import FlatVectors
from balance.data.locate import NoSuchIndex, candidates
from balance.data.vector_files import open_npy, spool_folder, spool_parquet
from balance.data.vipant_index import read_index
from balance.errors import UserError
from balance.records import Index, Labels, Strings
from balance.runtime.remote import AnyPath, RemotePath, is_url
from balance.runtime.wording import listed

SUFFIXES = (".npy", ".parquet", ".csv")
_ANY_SUFFIX = r"(\.npy|\.parquet|\.csv)+$"


@dataclass(frozen=True, slots=True, eq=False)
class PrecomputedSplit:
    """A split whose vectors the user brought: every row of `index` has its vector, in the order of the vectors.

    index.lines is None where there is no `{name}.csv`; labels and paths are then empty. sha256: hex, of the vectors'
    float32 row-major bytes.
    """

    index: Index
    vectors: FlatVectors
    sha256: str


def read_vectors(root: AnyPath, value: str, *, scratch: Path | None = None) -> PrecomputedSplit:
    """One split. `value` is a bare name under `root`, or a path (with a slash or a known suffix).

    scratch: a folder for the temporary copy of what cannot be read in place (None: the system's). NoSuchIndex where
    there are no such vectors; UserError for everything wrong with them.
    """
    base = _base(root, value)
    if (path := Path(f"{base}.npy")).is_file():
        ids = read_id_file(Path(f"{base}.ids.txt"))
        vectors = open_npy(path, ids, scratch)
    elif (path := Path(f"{base}.parquet")).is_file():
        vectors, ids = spool_parquet(path, scratch)
    elif base.is_dir():
        path = base
        vectors, ids = spool_folder(path, scratch)
    else:
        raise NoSuchIndex(
            f"no vectors {value!r} under {base.parent} (looked for {base.name}.npy with {base.name}.ids.txt, "
            f"{base.name}.parquet, {base.name}/). {_existing_vectors(base.parent)}"
        )
    refuse_duplicates(str(path), ids)
    return PrecomputedSplit(_index(base, path.name, ids), vectors, vectors.sha256())


def read_ids(root: AnyPath, value: str) -> Index:
    """The ids of `dataset.eval`, which needs no vectors: from `{name}.ids.txt`, else `{name}.csv`, else the vectors."""
    base = _base(root, value)
    if (path := Path(f"{base}.ids.txt")).is_file():
        ids = read_id_file(path)
        if not len(ids):
            raise UserError(f"{path}: holds no id; type dataset.eval=null where there are no evaluation clips")
        refuse_duplicates(str(path), ids)
        return _index(base, path.name, ids)
    if (path := Path(f"{base}.csv")).is_file():
        return read_index(path)
    try:
        return read_vectors(root, value).index
    except NoSuchIndex:
        raise NoSuchIndex(
            f"no ids {value!r} under {base.parent} (looked for {base.name}.ids.txt, {base.name}.csv, "
            f"{base.name}.parquet, {base.name}/; their vectors are not needed). {_existing_vectors(base.parent)}"
        ) from None


def files_beside(root: AnyPath, value: str) -> list[Path]:
    """The files of a split's ids and index, those that exist."""
    base = _base(root, value)
    paths = (Path(f"{base}{suffix}") for suffix in (".ids.txt", ".csv"))
    return [path for path in paths if path.is_file()]


def refuse_other_dims(**splits: PrecomputedSplit) -> None:
    """UserError where two splits' vectors have different dimensions: they come from different models."""
    dims = {name: split.vectors.shape[1] for name, split in splits.items()}
    if len(set(dims.values())) > 1:
        said = ", ".join(f"{name} ({splits[name].index.file}) have {dim}" for name, dim in dims.items())
        raise UserError(f"vectors of different dimensions cannot be compared: {said}. Use one model for all")


def _base(root: AnyPath, value: str) -> Path:
    """The files' path without suffix: of the first place where there are any, else of the first place."""
    if isinstance(root, RemotePath) or is_url(value):
        raise UserError(
            f"{root}: {value}: vectors (dataset.format=embeddings) are read from disk: copy them there and name the "
            "folder as dataset.root"
        )
    bases = [re.sub(_ANY_SUFFIX, "", str(path)) for path in candidates(root, value, SUFFIXES)]
    forms = ("", *SUFFIXES, ".ids.txt")
    return Path(next((base for base in bases if any(os.path.exists(base + form) for form in forms)), bases[0]))


def _existing_vectors(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder}."
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".npy", ".parquet") or p.is_dir())
    return f"There are: {listed(names, 12)}."


def _index(base: Path, file: str, ids: Strings) -> Index:
    """The rows of the vectors: from `{name}.csv` where it exists."""
    csv = Path(f"{base}.csv")
    if not csv.is_file():
        nothing = np.zeros(len(ids) + 1, dtype=np.int64)
        paths = pa.array([""], type=pa.string()).take(pa.array(np.zeros(len(ids), dtype=np.int64)))
        return Index(file, ids, paths, Labels((), nothing, np.empty(0, dtype=np.int32)))
    index = read_index(csv)
    rows = pc.index_in(ids, value_set=index.ids)
    if rows.null_count:
        lost = ids.filter(pc.is_null(rows)).to_pylist()
        raise UserError(f"{csv}: lacks {len(lost)} of the {len(ids)} ids of {file}: {listed(lost)}")
    return index.take(rows.to_numpy().astype(np.int64))
