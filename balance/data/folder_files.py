"""Folders of audio and nothing else (`dataset.format=folder`): the files are the clips, class folders their labels.

A folder is walked in the order of the names. A clip's id is its path under the media root without suffix, so that
equal names in seeds and pool stay two clips; its label is the folder directly under the split's, where it lies in one.
Links to folders are followed, hidden files are left out. Nothing is opened: what cannot be read fails later, counted.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from balance.data.clip_ids import id_array, id_of_path, refuse_duplicates
from balance.data.containers import relative
from balance.data.locate import NoSuchIndex, candidates, folder_names
from balance.data.media import ALL_AUDIO, FFMPEG_SUFFIXES, is_clutter
from balance.errors import UserError
from balance.records import Index, Labels
from balance.runtime.files import atomic_text
from balance.runtime.remote import AnyPath, RemotePath
from balance.runtime.wording import listed

log = logging.getLogger(__name__)


def read_folder(root: AnyPath, media: AnyPath, value: str, *, with_labels: bool) -> Index:
    """The audio files under a folder as an index; NoSuchIndex where there is no such folder.

    value: a name under the root or the media root, or a path; with_labels: whether class folders are labels.
    """
    places = list(dict.fromkeys([*candidates(root.absolute(), value, ()), media / value]))
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise NoSuchIndex(f"no folder {value!r} (looked for {' and '.join(map(str, places))}). {_existing(root)}")
    prefix = relative(media, folder)
    others: Counter[str] = Counter()
    names = _walk_remote(folder, others) if isinstance(folder, RemotePath) else list(_walk(str(folder), "", (), others))
    if others:
        said = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in sorted(others.items())]
        log.info("%s: left out, for their suffixes are not of audio: %s", folder, listed(said, 12))
    if not names:
        raise UserError(f"{folder}: no audio file in it; files are known by their suffixes, such as .wav, .flac, .mp3")
    names = _without_twins(names)
    paths = [os.path.normpath(os.path.join(prefix, name)) for name in names]
    ids = id_array([id_of_path(os.path.splitext(path)[0]) for path in paths], lambda row: paths[row])
    refuse_duplicates(str(folder), ids)
    labels = [[name.partition("/")[0]] if with_labels and "/" in name else [] for name in names]
    return Index(str(folder), ids, pa.array(paths, type=pa.string()), Labels.of(labels))


def _walk(folder: str, prefix: str, above: tuple[str, ...], others: Counter[str]) -> Iterator[str]:
    """Paths of the audio files, relative to where the walk began; others: counts the suffixes of other files.

    above: the real folders that the walk is inside of. A link to one of them, or to a folder around it, would not end,
    and would bring in the other splits.
    """
    here = os.path.realpath(folder)
    if any(f"{inside}/".startswith(f"{here.rstrip('/')}/") for inside in above):
        log.warning("%s: leads to a folder that it is in; not followed", folder)
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith(".") or is_clutter(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here), others)
        elif suffix[1:] in ALL_AUDIO:
            yield prefix + entry.name
        else:
            others[suffix] += 1


def _without_twins(names: list[str]) -> list[str]:
    """The files without those for FFmpeg that lie beside one of the same name for libsndfile: a video and its sound."""
    known = {stem for stem, suffix in map(os.path.splitext, names) if suffix[1:].lower() not in FFMPEG_SUFFIXES}
    kept = [
        name
        for name in names
        if os.path.splitext(name)[0] not in known or os.path.splitext(name)[1][1:].lower() not in FFMPEG_SUFFIXES
    ]
    if len(kept) < len(names):
        log.info(
            "%d videos are left out, for their sound lies beside them as a file of its own", len(names) - len(kept)
        )
    return kept


def _walk_remote(folder: RemotePath, others: Counter[str]) -> list[str]:
    """What `_walk` would give of the same files on disk, in its order."""
    found = []
    for parts in sorted(path.split("/") for path in folder.walk()):
        suffix = os.path.splitext(parts[-1])[1].lower()
        if any(name.startswith(".") or is_clutter(name) for name in parts):
            continue
        if suffix[1:] in ALL_AUDIO:
            found.append("/".join(parts))
        else:
            others[suffix] += 1
    return found


def _existing(root: AnyPath) -> str:
    if not root.is_dir():
        return f"There is no folder {root}."
    names = sorted(f"{name}/" for name in folder_names(root) if not name.startswith("."))
    return f"There are: {listed(names, 12)}."


def write_files(path: Path, parts: Sequence[Index]) -> None:
    """The paths of these clips' files, relative to the media root, one per line."""
    with atomic_text(path) as file:
        for part in parts:
            file.writelines(f"{name}\n" for name in part.paths.to_pylist())
