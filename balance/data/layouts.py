"""`index.layout`: the list files of other data sets -> lists of segments, and names for their labels.

In: a list in its data set's own form, and the folds or splits to take of it. Out: the list in AudioSet's columns. A
label id is the set's own (`/m/…`), else the label's name without the commas, quotes and semicolons that lists join by.
VGGSound takes two clips of some videos: these have the ids of its own file names, `{video}_{start:06d}`, since an index
names files by ids; every other id is the video's, which most downloaders' file names hold. Captions and the times of
single events have no place in an index and are left out. Sources: the data sets' own releases (ESC-50, FSD50K,
UrbanSound8K, VGGSound, AudioCaps, AudioSet's strong labels).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from balance.data.clip_ids import id_array, refuse_duplicates
from balance.data.config import Layout
from balance.data.folder_files import read_folder
from balance.data.segment_lists import SegmentList, read_list
from balance.errors import UserError
from balance.runtime.wording import listed

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clip:
    """What one row says. labels: (id, name); bos_s, eos_s: None where nobody says; aliases: other names of its file."""

    id: str
    bos_s: float | None = None
    eos_s: float | None = None
    labels: Sequence[tuple[str, str]] = ()
    split: str = ""
    aliases: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """How a list looks. columns: those that are read; header: false where the file has only rows, of these columns."""

    columns: tuple[str, ...]
    read: Callable[[Row], _Clip]
    header: bool = True
    delimiter: str = ","
    rows_per_clip: bool = False  # several rows may be one clip: its events, its captions
    clips_per_video: bool = False  # rows with one id and different starts are clips of one video


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Listed:
    """A list to look for. stem: of the index's name; names: label id -> name; aliases: another name of a clip's file ->
    its id; files: the clips' own paths relative to the media root, where the media folder itself is the list."""

    stem: str
    segments: SegmentList
    names: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] | None = None


def read_lists(
    layout: Layout, paths: Sequence[str], splits: Sequence[str] | None, media: Path, *, slices: bool = False
) -> list[Listed]:
    """The lists to look for. paths: list files; of `folders` names of folders under the media folder, none: itself;
    slices: an official list may hold several segments of one file.

    UserError names the file, the line and what is wrong with it.
    """
    if layout is Layout.folders:
        return [_read_classes(media, name) for name in paths or [str(media.absolute())]]
    if layout is Layout.audioset:
        return [Listed(stem=Path(path).stem, segments=read_list(Path(path), slices=slices)) for path in paths]
    return [_read_form(_FORMS[layout], Path(path), splits) for path in paths]


def _read_classes(media: Path, name: str) -> Listed:
    """A folder per class. A clip's id is its path with `_` for `/`, since an index names files by ids."""
    index = read_folder(media, media, name, with_labels=True)
    ids = [id.replace("/", "_") for id in index.ids.to_pylist()]
    refuse_duplicates(index.file, id_array(ids, lambda row: index.paths[row].as_py()))
    labels = [[_label_id(label) for label in index.labels[row]] for row in range(len(index))]
    return Listed(
        stem=PurePath(index.file).name,
        segments=SegmentList(index.file, ids, [""] * len(ids), [""] * len(ids), [",".join(row) for row in labels]),
        names={_label_id(label): label for label in index.labels.names},
        files=index.paths.to_pylist(),
    )


def _read_form(form: _Form, path: Path, splits: Sequence[str] | None) -> Listed:
    rows = list(_rows(form, path))
    if form.clips_per_video:
        rows = _tell_apart(rows)
    known = _display_names(path.with_name("mid_to_display_name.tsv"))
    existing = dict.fromkeys(clip.split for _, clip in rows)
    if absent := [split for split in splits or [] if split not in existing]:
        said = listed([split for split in existing if split], 12)
        raise UserError(f"index.splits: {path} has no fold or split {listed(absent)}; it has {said}")
    chosen = [(number, clip) for number, clip in rows if splits is None or clip.split in splits]
    if not chosen:
        raise UserError(f"{path}: empty list: no clip in it")
    numbers, clips = _merge(form, path, chosen)
    id_array([clip.id for clip in clips], lambda row: f"{path} line {numbers[row]}")
    return Listed(
        stem=path.stem if splits is None else f"{path.stem}_{'-'.join(splits)}",
        segments=SegmentList(
            str(path),
            [clip.id for clip in clips],
            [_seconds(clip.bos_s) for clip in clips],
            [_seconds(clip.eos_s) for clip in clips],
            [",".join(dict.fromkeys(id for id, _ in clip.labels)) for clip in clips],
        ),
        names={id: known.get(id, name) for _, clip in rows for id, name in clip.labels},
        aliases={alias: clip.id for _, clip in chosen for alias in clip.aliases},
    )


def _display_names(path: Path) -> dict[str, str]:
    """Label id -> name, of the file that AudioSet publishes beside its strong labels; none without it."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {id: name for id, tab, name in (line.partition("\t") for line in lines) if tab}


def _tell_apart(rows: Sequence[tuple[int, _Clip]]) -> list[tuple[int, _Clip]]:
    """The same rows; clips of one video are named by their start too, as the set and as downloaders name the files."""
    starts: dict[str, set[float | None]] = {}
    for _, clip in rows:
        starts.setdefault(clip.id, set()).add(clip.bos_s)
    return [(number, _by_start(clip) if len(starts[clip.id]) > 1 else clip) for number, clip in rows]


def _by_start(clip: _Clip) -> _Clip:
    start_s, end_s = int(clip.bos_s or 0), int(clip.eos_s or 0)
    times = (f"{start_s}", f"{start_s}000", f"{start_s}_{end_s}", f"{start_s}000_{end_s}000")
    return replace(clip, id=f"{clip.id}_{start_s:06d}", aliases=[f"{clip.id}_{text}" for text in times])


def _merge(form: _Form, path: Path, rows: Sequence[tuple[int, _Clip]]) -> tuple[list[int], list[_Clip]]:
    """(first line number, clip with the labels of all its rows), in the order of the list."""
    first: dict[str, tuple[int, _Clip]] = {}
    labels: dict[str, list[tuple[str, str]]] = {}
    for number, clip in rows:
        before, one = first.setdefault(clip.id, (number, clip))
        if one is not clip and (not form.rows_per_clip or one.bos_s != clip.bos_s):
            raise UserError(f"{path} line {number}: {clip.id} is listed before, in line {before}")
        labels.setdefault(clip.id, []).extend(clip.labels)
    numbers, clips = zip(*first.values(), strict=True)
    return list(numbers), [replace(clip, labels=labels[clip.id]) for clip in clips]


def _rows(form: _Form, path: Path) -> Iterator[tuple[int, _Clip]]:
    """(line number, clip) of each row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, None if form.header else form.columns, delimiter=form.delimiter, strict=True)
            if lacking := [name for name in form.columns if name not in (rows.fieldnames or ())]:
                raise UserError(f"{path}: no column {listed(lacking)}: is it the list that index.layout says?")
            for row in rows:
                try:
                    clip = form.read({name: value.strip() for name, value in row.items()})
                except (ValueError, AttributeError):  # the latter where a row is too short or too long
                    raise UserError(f"{path} line {rows.line_num}: not {', '.join(form.columns)}") from None
                if not clip.id or "/" in clip.id:
                    raise UserError(f"{path} line {rows.line_num}: {clip.id!r} is no id")
                yield rows.line_num, clip
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not CSV in UTF-8 ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read: {error.strerror}") from None


def _seconds(time_s: float | None) -> str:
    return "" if time_s is None else f"{time_s:.3f}"


def _label_id(name: str) -> str:
    return " ".join(re.sub(r'[,;"]', " ", name).split())


def _named(name: str) -> tuple[str, str]:
    return _label_id(name), name.replace("_", " ")


def _esc50(row: Row) -> _Clip:
    id = PurePath(row["filename"]).stem
    return _Clip(id=id, bos_s=0, eos_s=5, labels=[_named(row["category"])], split=row["fold"])


def _fsd50k(row: Row) -> _Clip:
    pairs = zip(row["mids"].split(","), row["labels"].split(","), strict=True)
    labels = [(mid.strip(), name.strip().replace("_", " ")) for mid, name in pairs]
    return _Clip(id=row["fname"], labels=labels, split=row.get("split", ""))


def _urbansound8k(row: Row) -> _Clip:
    duration_s = float(row["end"]) - float(row["start"])  # of the slice, which is a file of its own
    id = PurePath(row["slice_file_name"]).stem
    return _Clip(id=id, bos_s=0, eos_s=duration_s, labels=[_named(row["class"])], split=row["fold"])


def _vggsound(row: Row) -> _Clip:
    start_s = float(row["start"])
    return _Clip(id=row["id"], bos_s=start_s, eos_s=start_s + 10, labels=[_named(row["label"])], split=row["split"])


def _audiocaps(row: Row) -> _Clip:
    start_s = float(row["start_time"])
    return _Clip(id=row["youtube_id"], bos_s=start_s, eos_s=start_s + 10, aliases=[row["audiocap_id"]])


def _audioset_strong(row: Row) -> _Clip:
    id, _, start_ms = row["segment_id"].rpartition("_")
    start_s = int(start_ms) / 1000
    return _Clip(id=id, bos_s=start_s, eos_s=start_s + 10, labels=[(row["label"], row["label"])])


_FORMS = {
    Layout.esc50: _Form(columns=("filename", "fold", "category"), read=_esc50),
    Layout.fsd50k: _Form(columns=("fname", "labels", "mids"), read=_fsd50k),
    Layout.urbansound8k: _Form(columns=("slice_file_name", "start", "end", "fold", "class"), read=_urbansound8k),
    Layout.vggsound: _Form(
        columns=("id", "start", "label", "split"), read=_vggsound, header=False, clips_per_video=True
    ),
    Layout.audiocaps: _Form(
        columns=("audiocap_id", "youtube_id", "start_time", "caption"), read=_audiocaps, rows_per_clip=True
    ),
    Layout.audioset_strong: _Form(
        columns=("segment_id", "label"), read=_audioset_strong, delimiter="\t", rows_per_clip=True
    ),
}
