"""`train_root/` of a run: one folder of links that VIP-ANT can train from although the data folder is read-only.

VIP-ANT reads index, weights, filter and media below a single `running.data_root`. So: links to the media's chunk
folders, to the lists and the ontology under `dataset.root`, and to this run's own files, which win where names meet.
Data are linked by absolute path (a run may be moved, the data rarely), the run's files relative to the folder.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from balance.runtime.remote import AnyPath, RemotePath

log = logging.getLogger(__name__)

RUN_FILES = ("src_", "ids_", "neighbours_")
LIST_SUFFIXES = (".csv", ".json")


def write_train_root(run_dir: Path, *, root: AnyPath, media: AnyPath, paths: Sequence[Any]) -> Path:
    """Makes `run_dir/train_root`; call it when the run's other files are written.

    root, media: `dataset.root`, `dataset.media`; paths: `Index.paths` of the splits (Arrow strings), whose first
    folders are linked, with `frame/` beside an `aclip/` that lies in the media root itself. What lies behind a URL
    cannot be linked: the run's own files are, and a warning names the rest.
    """
    links: dict[str, str] = {}
    for folder in sorted(_first_folders(paths)) if isinstance(media, Path) else ():
        names = (folder, "frame") if folder in ("aclip", "clip") else (folder,)
        links |= {name: str(media.absolute() / name) for name in names if (media / name).is_dir()}
    for file in sorted(root.iterdir()) if isinstance(root, Path) else ():
        if file.name.endswith(LIST_SUFFIXES) and file.is_file():
            links[file.name] = str(file.absolute())
    if isinstance(media, RemotePath):
        log.warning("train_root has no links to the media, which VIP-ANT reads from disk: they lie in %s", media)
    for file in sorted(run_dir.iterdir()):
        if file.name.startswith(RUN_FILES) and file.is_file():
            links[file.name] = os.path.join("..", file.name)
    made, final = run_dir / f"tmp-train_root-{secrets.token_hex(8)}", run_dir / "train_root"
    made.mkdir()
    try:
        for name, target in links.items():
            (made / name).symlink_to(target)
        if final.is_dir():
            shutil.rmtree(final)  # links, of an earlier end of this run
        made.rename(final)
    except BaseException:
        shutil.rmtree(made)
        raise
    return final


def _first_folders(paths: Sequence[Any]) -> set[str]:
    found: set[str] = set()
    for column in paths:
        found.update(pc.unique(pc.list_element(pc.split_pattern(column, "/", max_splits=1), 0)).to_pylist())
    return found
