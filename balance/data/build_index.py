"""Lists of clips + a media folder -> VIP-ANT index files, and what the walk did not find.

`X.csv` gives `src_X.csv`; the unbalanced list also its weights, and with the balanced one the joint
`src_train_segments.csv`, whose split line goes into `index.json`. Flat media, which the published path rule cannot
express, get a tree of relative symbolic links under `index.out` instead of copies; then the links are the media.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from balance.data.config import INDEX_EXAMPLES, IndexConfig, Layout
from balance.data.layouts import Listed, read_lists
from balance.data.links import LinkTree, chunk_folders, last_leads_to
from balance.data.media_names import Wanted
from balance.data.media_scan import Found, flat_found, scan
from balance.data.missing import label_losses
from balance.data.ontology import write_names
from balance.data.segment_lists import SegmentList
from balance.data.segments import Matched, lines, looked_for, match, wanted
from balance.data.vipant_index import index_weights
from balance.errors import UserError
from balance.records import Index
from balance.runtime.files import atomic_text, write_json
from balance.runtime.remote import is_url, redacted

JOINT = "train_segments"


def build(config: IndexConfig, *, ontology: dict[str, str] | None = None) -> Iterator[str]:
    """Write the indexes; yields what to tell the user, line by line. ontology: label id -> name, for the inventory.

    UserError where no listed clip is present, or where flat media may not be linked.
    """
    media, out = _folders(config)
    lists = read_lists(config.layout, config.segments or [], config.splits, media, slices=config.slices)
    stems = [one.stem for one in lists]
    sought, found = _search(lists, media, out, whole=config.slices)
    require_frames = found.has_frames if config.require_frames is None else config.require_frames
    link = _is_linked(config, found, require_frames)
    matches = [match(one.segments, sought, found, require_frames=require_frames) for one in lists]
    if not any(len(matched.rows) for matched in matches):
        raise UserError(_nothing_found(media, lists[0].segments, sought, found, require_frames))
    _make_folder(out)
    summary: dict[str, Any] = {"lists": {}, "require_frames": require_frames, "link": link}
    if link:
        summary["links_lead_to"] = _link(media, out, stems, matches)
    names = {id: name for one in lists for id, name in one.names.items()} | (ontology or {})
    for stem, matched in zip(stems, matches, strict=True):
        _write_index(out, stem, matched, chunk_folders(matched, stem) if link else None)
        summary["lists"][stem] = {"listed": len(matched.segments), "found": len(matched.rows)}
        yield from _inventory(stem, matched, names, require_frames)
    split_line = _write_joint(out, stems, matches)
    if split_line is not None:
        summary["split_line"] = split_line
        yield f"src_{JOINT}.csv: the unbalanced clips, then the balanced ones; split line {split_line}"
    for one in lists:
        write_names(out, one.names)
    write_json(out / "index.json", summary)
    where = "" if link or out.resolve() == media.resolve() else f" dataset.media={media}"
    seeds = "" if config.layout is Layout.audioset else f" dataset.balanced={stems[0]} dataset.unbalanced=…"
    slices = " dataset.slices=true" if config.slices else ""
    yield f"Next: python -m balance.run dataset.root={out}{where}{seeds}{slices} encoder.checkpoint=…"


def _folders(config: IndexConfig) -> tuple[Path, Path]:
    """(the media folder, the folder for the indexes); UserError for a key that was not given."""
    for key, example in INDEX_EXAMPLES.items():
        if not getattr(config, key) and (key, config.layout) != ("segments", Layout.folders):
            raise UserError(f"index.{key} is not given: type index.{key}={example}")
    for key in ("media", "out"):
        if is_url(str(getattr(config, key))):
            raise UserError(
                f"index.{key}={redacted(str(getattr(config, key)))}: folders on disk are walked and written. Media "
                "behind a URL need no index: name the list itself in dataset.balanced= with dataset.format=segments"
            )
    media, out = Path(str(config.media)).expanduser(), Path(str(config.out)).expanduser()
    if not media.is_dir():
        raise UserError(f"index.media={media}: no such folder")
    if config.layout is Layout.folders and out.resolve().is_relative_to(media.resolve()):
        raise UserError(f"index.out={out} lies in index.media, where every folder is a class: name one outside")
    return media, out


def _search(lists: Sequence[Listed], media: Path, out: Path, *, whole: bool) -> tuple[Wanted, Found]:
    """The clips of all lists, and where they lie: as the lists say, else by a walk, for whole files if so asked."""
    aliases = {alias: id for one in lists for alias, id in one.aliases.items()}
    sought = wanted([one.segments for one in lists], aliases)
    files = {
        sought.number[id]: file
        for one in lists
        if one.files is not None
        for id, file in zip(one.segments.ids, one.files, strict=True)
    }
    if not files:
        return sought, scan(media, sought, skip=out, whole=whole)
    if len(files) < sum(len(one.segments) for one in lists):
        raise UserError("two of the folders hold clips with the same id (their path with _ for /): rename one folder")
    return sought, flat_found(files, len(files))


def _is_linked(config: IndexConfig, found: Found, require_frames: bool) -> bool:
    link = bool(found.flat) if config.link is None else config.link
    if found.flat and not link and not require_frames:
        raise UserError(
            f"{len(found.flat)} clips lie in a flat layout ({min(found.flat.values())}), which the path rule of an "
            "index cannot express: leave out index.link=false, or use dataset.format=segments"
        )
    return link


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"index.out={out} is a file, or lies below one: name a folder") from None


def _inventory(stem: str, matched: Matched, names: Mapping[str, str], require_frames: bool) -> Iterator[str]:
    segments, present = matched.segments, len(matched.rows)
    share = present / len(segments)
    yield f"src_{stem}.csv: {present:,} of the {len(segments):,} listed clips are there ({share:.1%})"
    if present < len(segments):
        if require_frames:
            yield "  clips without a frame are left out and count as not there; index.require_frames=false keeps them"
        whole = Index(segments.file, pa.array(segments.ids), None, segments.label_sets())
        yield f"  labels that lost most: {label_losses(whole, matched.lost(), names)}"


def _nothing_found(media: Path, segments: SegmentList, sought: Wanted, found: Found, require_frames: bool) -> str:
    if require_frames and ((found.folder >= 0).any() or found.flat):
        return f"no listed clip under {media} has a frame: type index.require_frames=false to do without"
    return f"none of the listed clips is under {media}: {looked_for(segments, sought, found)}"


def _write_index(out: Path, stem: str, matched: Matched, folders: list[str] | None) -> None:
    """`src_{stem}.csv`; folders: the folder of each clip's links, where there are links."""
    with atomic_text(out / f"src_{stem}.csv") as file:
        file.writelines(lines(matched, folders))
    if "unbalanced" in stem:
        labels = matched.segments.label_sets().take(matched.rows)
        with atomic_text(out / f"src_{stem}_weight.csv") as file:
            file.writelines(f"{weight!r}\n" for weight in index_weights(labels).tolist())


def _write_joint(out: Path, stems: list[str], matches: list[Matched]) -> int | None:
    """`src_train_segments.csv` where both lists were given; the number of its unbalanced lines."""
    unbalanced = [i for i, stem in enumerate(stems) if "unbalanced" in stem]
    balanced = [i for i, stem in enumerate(stems) if "balanced" in stem and "unbalanced" not in stem]
    if len(unbalanced) != 1 or len(balanced) != 1 or JOINT in stems:
        return None
    with atomic_text(out / f"src_{JOINT}.csv") as file:
        for i in (unbalanced[0], balanced[0]):
            with (out / f"src_{stems[i]}.csv").open(encoding="utf-8", newline="") as part:
                while text := part.read(1 << 20):
                    file.write(text)
    return len(matches[unbalanced[0]].rows)


def _link(media: Path, out: Path, stems: list[str], matches: list[Matched]) -> str:
    """Links to the gold files of all lists' clips under `out`; returns where they lead."""
    tree = LinkTree(media, out, last=last_leads_to(out))
    for stem, matched in zip(stems, matches, strict=True):
        tree.refuse_obstacles(matched, stem)
    for stem, matched in zip(stems, matches, strict=True):
        tree.make(matched, stem)
    return tree.leads_to
