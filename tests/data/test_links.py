"""The tree of links: what lies in its way is never lost. Every media byte is compared before and after."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from balance.data import links
from balance.data.build_index import build
from balance.data.config import IndexConfig
from balance.data.vipant_index import read_index
from balance.errors import UserError

IDS = [f"aaaaaaaaaa{i}" for i in range(6)]


def index(folder: Path, media: Path, out: Path, **keys: bool) -> None:
    path = folder / "l.csv"
    path.write_text("".join(f'{id}, 30.000, 40.000, "/m/a"\n' for id in IDS))
    list(build(IndexConfig(segments=[str(path)], media=str(media), out=str(out), **keys)))


def flat_media(folder: Path, ids: list[str] = IDS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for id in ids:
        (folder / f"{id}.wav").write_bytes(f"sound of {id}".encode() * 9)
    return folder


def state(folder: Path) -> dict[str, bytes | str]:
    """Every file's bytes and every link's text, by path."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name != "l.csv" and (path.is_symlink() or path.is_file())
    }


def copied_tree(folder: Path) -> Path:
    """A link tree that was copied with its contents (`cp -rL`): six real files in `l_0_6/aclip`."""
    media = flat_media(folder / "first")
    index(folder, media, media)
    copy = folder / "copy"
    shutil.copytree(media, copy, symlinks=False)
    for id in IDS:
        (copy / f"{id}.wav").unlink()
    return copy


def whole_copy(folder: Path) -> tuple[Path, Path, dict[str, bool]]:
    copy = copied_tree(folder)
    return copy, copy, {"link": True}


def one_lies_flat(folder: Path) -> tuple[Path, Path, dict[str, bool]]:
    copy = copied_tree(folder)
    flat_media(copy, IDS[:1])
    (copy / "l_0_6" / "aclip" / f"{IDS[0]}.p0.wav").unlink()
    return copy, copy, {}


def out_inside_media(folder: Path) -> tuple[Path, Path, dict[str, bool]]:
    copy = copied_tree(folder)
    return folder, copy, {"link": True}


def chunk_is_a_link(folder: Path) -> tuple[Path, Path, dict[str, bool]]:
    copy = copied_tree(folder)
    media, out = flat_media(folder / "media"), folder / "out"
    out.mkdir()
    (out / "l_0_6").symlink_to(copy / "l_0_6")
    return media, out, {}


def audio_folder_is_a_link(folder: Path) -> tuple[Path, Path, dict[str, bool]]:
    copy = copied_tree(folder)
    media, out = flat_media(folder / "media"), folder / "out"
    (out / "l_0_6").mkdir(parents=True)
    (out / "l_0_6" / "aclip").symlink_to(copy / "l_0_6" / "aclip")
    return media, out, {}


def chunk_is_a_file(folder: Path) -> tuple[Path, Path, dict[str, bool]]:
    media, out = flat_media(folder / "media"), folder / "out"
    out.mkdir()
    (out / "l_0_6").write_text("the user's")
    return media, out, {}


def a_link_of_the_users(folder: Path) -> tuple[Path, Path, dict[str, bool]]:
    """To a better version of one clip, which lies elsewhere."""
    better = flat_media(folder / "better", IDS[:1])
    media, out = flat_media(folder / "media"), folder / "out"
    (out / "l_0_6" / "aclip").mkdir(parents=True)
    (out / "l_0_6" / "aclip" / f"{IDS[0]}.p0.wav").symlink_to(better / f"{IDS[0]}.wav")
    return media, out, {}


def media_are_the_links(folder: Path) -> tuple[Path, Path, dict[str, bool]]:
    media, out = flat_media(folder / "media"), folder / "out"
    index(folder, media, out)
    return out / "l_0_6", out, {"link": True}


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        (whole_copy, "l_0_6/aclip/aaaaaaaaaa"),
        (one_lies_flat, "l_0_6/aclip/aaaaaaaaaa"),
        (out_inside_media, "copy/l_0_6/aclip/aaaaaaaaaa"),
        (chunk_is_a_link, "out/l_0_6 is a link"),
        (audio_folder_is_a_link, "out/l_0_6/aclip is a link"),
        (chunk_is_a_file, "out/l_0_6 is a file"),
        (a_link_of_the_users, "out/l_0_6/aclip/aaaaaaaaaa0.p0.wav is a link to"),
        (media_are_the_links, "out/l_0_6 would hold the links and holds the media"),
    ],
)
def test_nothing_in_the_way_is_written_over(
    tmp_path: Path, setting: Callable[[Path], tuple[Path, Path, dict[str, bool]]], named: str
) -> None:
    media, out, keys = setting(tmp_path)
    before = state(tmp_path)
    with pytest.raises(UserError) as caught:
        index(tmp_path, media, out, **keys)
    assert named in str(caught.value)
    assert "index.out" in str(caught.value)
    assert state(tmp_path) == before


def test_the_folder_of_links_is_known_by_any_name(tmp_path: Path) -> None:
    """Real files in `index.out` are met through two links: they are no media, and stay as they are."""
    copy = copied_tree(tmp_path)
    media = flat_media(tmp_path / "media", IDS[:1])
    copy.rename(media / "out")
    (media / "out" / "l_0_6" / "aclip" / f"{IDS[0]}.p0.wav").unlink()
    (tmp_path / "other").symlink_to(media)
    (media / "around").symlink_to(media / "out")
    before = state(media)
    index(tmp_path, tmp_path / "other", media / "out")
    assert read_index(media / "out" / "src_l.csv").ids.to_pylist() == IDS[:1]
    for path in before:
        if "/src_" not in path and "index.json" not in path:
            assert state(media)[path] == before[path]


def test_own_links_follow_the_media_to_another_folder(tmp_path: Path) -> None:
    """Twice: from the folder of the last indexing, which its `index.json` names."""
    out = tmp_path / "out"
    for name in ("one", "two/deeper", "three"):
        media = flat_media(tmp_path / name)
        index(tmp_path, media, out)
        for path in read_index(out / "src_l.csv").paths.to_pylist():
            assert (out / path).is_symlink()
            assert (out / path).resolve().parent == media
        assert len(list((out / "l_0_6" / "aclip").iterdir())) == len(IDS)


def test_out_and_media_moved_together(tmp_path: Path) -> None:
    index(tmp_path, flat_media(tmp_path / "a" / "media"), tmp_path / "a" / "out")
    moved = (tmp_path / "a").rename(tmp_path / "b")
    index(tmp_path, moved / "media", moved / "out")
    for path in read_index(moved / "out" / "src_l.csv").paths.to_pylist():
        assert (moved / "out" / path).read_bytes() == (moved / "media" / f"{path[12:23]}.wav").read_bytes()


def test_links_are_made_under_the_real_path_of_out(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "deep" / "er")
    media = flat_media(tmp_path / "media")
    index(tmp_path, media, tmp_path / "out")
    for id in IDS:
        place = tmp_path / "deep" / "er" / "l_0_6" / "aclip" / f"{id}.p0.wav"
        assert place.read_bytes() == (media / f"{id}.wav").read_bytes()


def test_chunks_of_many_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "CHUNK_CLIPS", 4)
    media, out = flat_media(tmp_path / "media", IDS[:3] + IDS[5:]), tmp_path / "out"
    index(tmp_path, media, out)
    assert read_index(out / "src_l.csv").paths.to_pylist() == [
        *(f"l_0_4/aclip/{id}.p0.wav" for id in IDS[:3]),
        f"l_4_6/aclip/{IDS[5]}.p0.wav",
    ]
    for path in read_index(out / "src_l.csv").paths.to_pylist():
        assert (out / path).resolve().parent == media


@pytest.mark.parametrize("damage", ["", "[]", "null", '{"links_lead_to": 3}', "[" * 100_000])
def test_a_damaged_record_owns_nothing(tmp_path: Path, damage: str) -> None:
    index(tmp_path, flat_media(tmp_path / "one"), tmp_path / "out")
    (tmp_path / "out" / "index.json").write_text(damage)
    before = state(tmp_path)
    with pytest.raises(UserError, match="not one of this program's"):
        index(tmp_path, flat_media(tmp_path / "two"), tmp_path / "out")
    assert {path: state(tmp_path)[path] for path in before} == before


def test_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    """a/b -> b and b/a -> a: each folder is entered, the walk ends."""
    media = tmp_path / "media"
    for here, other in (("a", "b"), ("b", "a")):
        flat_media(media / here, IDS[:1])
        (media / here / other).symlink_to(media / other)
    flat_media(media / "b", IDS[1:2])
    index(tmp_path, media, tmp_path / "out")
    assert read_index(tmp_path / "out" / "src_l.csv").ids.to_pylist() == IDS[:2]
