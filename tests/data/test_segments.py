"""Segment lists and the media walk -> indexes, against a plain re-reading of VIP-ANT's rules."""

from __future__ import annotations

import csv
import json
import os
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from balance.data.build_index import build
from balance.data.config import IndexConfig
from balance.data.media_scan import scan
from balance.data.segment_lists import read_list
from balance.data.segments import match, to_index, wanted
from balance.data.vipant_index import read_index
from balance.errors import UserError
from tests.paths import SHARED

REAL = SHARED / "data" / "audioset" / "balanced_train_segments.csv"
HEAD = "# Segments csv created\n# num_ytids=9\n# YTID, start_seconds, end_seconds, positive_labels\n"
ROWS = [
    ("--PJHxphWEs", "30.000", ["/m/b", "/m/a"]),
    ("a_b_30000_c", "130.000", ["/m/a"]),
    ("Yz345678901", "0.000", ["/m/c"]),
    ("-_-_-_-_-_1", "20.500", ["/m/a", "/m/c"]),
    ("nowhere_000", "10.000", ["/m/b"]),
]


def write_list(path: Path, rows=ROWS) -> Path:
    path.write_text(HEAD + "".join(f'{i}, {s}, {float(s) + 10:.3f}, "{",".join(labels)}"\n' for i, s, labels in rows))
    return path


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def run(**keys) -> list[str]:
    return list(build(IndexConfig(**{k: v if isinstance(v, list | bool) else str(v) for k, v in keys.items()})))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def reference(segments: Path, media: Path, require_frames: bool) -> list[dict]:
    """The rules of the index, one by one over sorted glob results."""
    audio, frames = defaultdict(lambda: defaultdict(list)), defaultdict(lambda: defaultdict(list))
    for kind, into in (("aclip", audio), ("frame", frames)):
        for path in sorted(media.rglob(f"{kind}/*")):
            id, _, rest = path.name.partition(".")
            if rest.split(".")[0] == "p0":
                chunk = path.parent.parent.relative_to(media).as_posix()
                into[id]["" if chunk == "." else chunk].append(rest)
    out = []
    for fields in csv.reader(segments.read_text().splitlines()[3:], skipinitialspace=True):
        id, bos, eos, labels = fields
        if id not in audio:
            continue
        chunk = min(audio[id])
        if require_frames and not frames[id][chunk]:
            continue
        record = {"id": id, "dir": chunk, "aclip": sorted(audio[id][chunk]), "frame": sorted(frames[id][chunk])}
        out.append(record | {"bos": bos, "eos": eos, "labels": labels.split(",")})
    return out


@pytest.fixture
def vipant(tmp_path) -> Path:
    media = tmp_path / "media"
    touch(
        media,
        "all_0_2/aclip/--PJHxphWEs.p0.mp3",
        "all_0_2/aclip/--PJHxphWEs.n0.mp3",
        "all_0_2/aclip/--PJHxphWEs.p0.flac",
        "all_0_2/frame/--PJHxphWEs.p0.10_9.jpg",
        "all_0_2/frame/--PJHxphWEs.p0.10_10.jpg",
        "all_0_2/frame/--PJHxphWEs.n0.10_10.jpg",
        "all_2_4/aclip/a_b_30000_c.p0.mp3",
        "all_2_4/aclip/unlisted_00.p0.mp3",
        "all_2_4/aclip/nowhere_000.n0.mp3",
        "all_2_4/aclip/notes.txt",
        "aclip/-_-_-_-_-_1.p0.wav",
        "frame/-_-_-_-_-_1.p0.3_0.jpg",
        "all_1_9/aclip/a_b_30000_c.p0.mp3",
    )
    return media


@pytest.mark.parametrize("require_frames", [None, True, False])
def test_vipant_layout(tmp_path, vipant, require_frames):
    segments = write_list(tmp_path / "eval_segments.csv")
    given = {} if require_frames is None else {"require_frames": require_frames}
    said = run(segments=segments, media=vipant, out=tmp_path / "out", **given)
    want = reference(segments, vipant, require_frames is not False)
    assert lines(tmp_path / "out" / "src_eval_segments.csv") == want
    assert len(want) == (3 if require_frames is False else 2)
    assert f"{len(want)} of the 5 listed clips" in said[0]
    if require_frames is False:
        assert want[1]["dir"] == "all_1_9"  # the first of its two folders
        assert "/m/c 1 of 2 (50%)" in said[1]
        assert "/m/b 1 of 2 (50%)" in said[1]
    index = read_index(tmp_path / "out" / "src_eval_segments.csv")
    assert all((vipant / path).exists() for path in index.paths.to_pylist())


def test_the_old_folder_name(tmp_path):
    touch(tmp_path / "m", "x/clip/--PJHxphWEs.p0.mp3")
    run(segments=write_list(tmp_path / "l.csv"), media=tmp_path / "m", out=tmp_path / "o")
    index = read_index(tmp_path / "o" / "src_l.csv")
    assert (index.audio_key, index.paths.to_pylist()) == ("clip", ["x/clip/--PJHxphWEs.p0.mp3"])


FLAT = {
    "plain": ["--PJHxphWEs.wav", "a_b_30000_c.flac", "Yz345678901.mp3", "-_-_-_-_-_1.ogg"],
    "prefix": ["Y--PJHxphWEs.wav", "Ya_b_30000_c.wav", "YYz345678901.wav", "Y-_-_-_-_-_1.WAV"],
    "start": ["--PJHxphWEs_30.flac", "a_b_30000_c_130.000.flac", "Yz345678901_0.flac", "-_-_-_-_-_1_20.flac"],
    "times": [
        "deep/er/--PJHxphWEs_30000_40000.flac",
        "a_b_30000_c_130000_140000.flac",
        "Yz345678901_0_10000.flac",
        "Y-_-_-_-_-_1_20.500_30.500.flac",
    ],
    "start-end in folders by label": [
        "Male speech, man speaking/--PJHxphWEs_30.0-40.0.ogg",
        "Male speech, man speaking/a_b_30000_c_130.0-140.0.ogg",
        "Bell/Yz345678901_0-10.wav",
        "Bell/-_-_-_-_-_1_20.5-30.5.ogg",
    ],
    "id_": ["id_--PJHxphWEs.wav", "000000/id_a_b_30000_c.wav", "id_Yz345678901.wav", "id_-_-_-_-_-_1_20_30.wav"],
    "titles": ["A title [--PJHxphWEs].wav", "b [a_b_30000_c].flac", "[x] [Yz345678901].wav", "t--_-_-_-_-_1.ogg"],
    "start in milliseconds": [
        "--PJHxphWEs_30000.wav",
        "a_b_30000_c_130000.wav",
        "Yz345678901_0.wav",
        "-_-_-_-_-_1_20500.wav",
    ],
    "gold files laid flat": ["--PJHxphWEs.p0.wav", "a_b_30000_c.p0.mp3", "Yz345678901.p0.flac", "-_-_-_-_-_1.p0.ogg"],
}


@pytest.mark.parametrize("layout", list(FLAT))
def test_flat_layouts_are_linked(tmp_path, layout):
    media, out = tmp_path / "media", tmp_path / "deep" / "out"
    touch(
        media,
        *FLAT[layout],
        "nowhere_000_77.flac",
        "nowhere_000_9000.flac",
        "nowhere_000_10_30.flac",
        "--PJHxphWEs_500_510.txt",
    )
    for name in FLAT[layout]:
        (media / name).write_text(name)
    segments = write_list(tmp_path / "eval_segments.csv")
    for _ in range(2):  # again over its own links
        said = run(segments=segments, media=media, out=out)
        index = read_index(out / "src_eval_segments.csv")
        assert index.ids.to_pylist() == [row[0] for row in ROWS[:4]]
        for path, name in zip(index.paths.to_pylist(), FLAT[layout], strict=True):
            assert path.startswith("eval_segments_0_5/aclip/")
            assert ".p0." in path
            assert not os.path.isabs(os.readlink(out / path))
            assert (out / path).read_text() == name
    assert f"dataset.root={out} encoder" in said[-1]
    listed = read_list(segments)
    sought = wanted([listed])
    in_place = to_index(match(listed, sought, scan(media, sought), require_frames=False))
    assert in_place.paths.to_pylist() == FLAT[layout]
    assert [line.decode() for line in in_place.entries.to_pylist()] == segments.read_text().splitlines()[3:7]


def test_a_file_with_the_listed_times_wins_over_the_whole_video(tmp_path):
    for whole, segment in [
        ("a/--PJHxphWEs.wav", "b/--PJHxphWEs_30_40.wav"),
        ("--PJHxphWEs.flac", "z/y/--PJHxphWEs_30000_40000.mp3"),
        ("A [--PJHxphWEs].wav", "Y--PJHxphWEs_30.wav"),
        ("Y--PJHxphWEs.wav", "--PJHxphWEs.p0.wav"),
    ]:
        media = tmp_path / str(len(list(tmp_path.iterdir())))
        touch(media, whole, segment, "--PJHxphWEs_50_60.wav")
        listed = read_list(write_list(tmp_path / "l.csv"))
        sought = wanted([listed])
        assert to_index(match(listed, sought, scan(media, sought), require_frames=False)).paths.to_pylist() == [segment]


def test_notes_of_macos_are_no_media(tmp_path):
    """`._NAME` beside NAME: whatever the name means."""
    touch(tmp_path / "m", "A [--PJHxphWEs].wav", "._A [--PJHxphWEs].wav", "aclip/._a_b_30000_c.p0.wav", "._x.wav")
    run(segments=write_list(tmp_path / "l.csv"), media=tmp_path / "m", out=tmp_path / "o")
    (place,) = (tmp_path / "o" / "l_0_5" / "aclip").iterdir()
    assert os.readlink(place) == "../../../m/A [--PJHxphWEs].wav"


def test_a_message_shows_what_was_seen_instead(tmp_path):
    """The first three audio files by name, wherever they lie, and the ids that they seem to hold."""
    touch(tmp_path / "m", "z/Ybbbbbbbbbbb.wav", "b/ccccccccccc_30_40.wav", "a/Title [ddddddddddd].mp3", "notes.txt")
    touch(tmp_path / "m", "a/aclip/eeeeeeeeeee.p0.wav", "x.mp3")
    os.mkdir(os.fsencode(tmp_path / "m") + b"/M\xfasica")
    with pytest.raises(UserError) as caught:
        run(segments=write_list(tmp_path / "l.csv"), media=tmp_path / "m", out=tmp_path / "o")
    assert str(caught.value).endswith(
        "and the like. It holds a/Title [ddddddddddd].mp3 (id ddddddddddd), a/aclip/eeeeeeeeeee.p0.wav (id "
        "eeeeeeeeeee), b/ccccccccccc_30_40.wav (id ccccccccccc)"
    )
    touch(tmp_path / "n", "--PJHxphWEs_50_60.wav", "notes.txt")
    (tmp_path / "n" / os.fsdecode(b"M\xfasica.mp3")).touch()
    with pytest.raises(UserError) as caught:
        run(segments=write_list(tmp_path / "l.csv"), media=tmp_path / "n", out=tmp_path / "o")
    assert str(caught.value).endswith(
        r"It holds --PJHxphWEs_50_60.wav (id --PJHxphWEs, listed with other times), M\xfasica.mp3 (id M\xfasica)"
    )
    touch(tmp_path / "p", "notes.txt")
    with pytest.raises(UserError, match="It holds no audio file"):
        run(segments=write_list(tmp_path / "l.csv"), media=tmp_path / "p", out=tmp_path / "o")


def test_a_folder_name_that_is_not_utf8(tmp_path):
    """An index of links reads its clips; what needs the name itself says so in one sentence."""
    folder = tmp_path / "m" / os.fsdecode(b"M\xfasica")
    touch(folder, "--PJHxphWEs.wav")
    (folder / "--PJHxphWEs.wav").write_text("a sound")
    run(segments=write_list(tmp_path / "l.csv"), media=tmp_path / "m", out=tmp_path / "o")
    (path,) = read_index(tmp_path / "o" / "src_l.csv").paths.to_pylist()
    assert (tmp_path / "o" / path).read_text() == "a sound"
    listed = read_list(tmp_path / "l.csv")
    sought = wanted([listed])
    with pytest.raises(UserError, match=r"^M\\xfasica/--PJHxphWEs\.wav: not UTF-8.*\bconvmv\b"):
        to_index(match(listed, sought, scan(tmp_path / "m", sought), require_frames=False))
    touch(tmp_path / "n" / os.fsdecode(b"M\xfasica"), "aclip/--PJHxphWEs.p0.wav")
    with pytest.raises(UserError, match=r"^M\\xfasica: not UTF-8.*index\.link=true"):
        run(segments=tmp_path / "l.csv", media=tmp_path / "n", out=tmp_path / "p")
    assert list((tmp_path / "p").iterdir()) == []  # no half-written index
    run(segments=tmp_path / "l.csv", media=tmp_path / "n", out=tmp_path / "p", link=True)
    assert len(read_index(tmp_path / "p" / "src_l.csv")) == 1


def test_media_inside_out_are_not_walked_twice(tmp_path):
    touch(tmp_path, "--PJHxphWEs.wav")
    for _ in range(2):
        run(segments=write_list(tmp_path / "l.csv"), media=tmp_path, out=tmp_path / "out")
        target = os.readlink(tmp_path / "out" / "l_0_5" / "aclip" / "--PJHxphWEs.p0.wav")
        assert target == "../../../--PJHxphWEs.wav"


def test_flat_media_indexed_in_place_again(tmp_path):
    """index.out=index.media: the second time the links of the first lie among the media."""
    touch(tmp_path, "--PJHxphWEs.wav")
    for more in ("a_b_30000_c.flac", "Yz345678901.mp3"):
        run(segments=write_list(tmp_path / "l.csv"), media=tmp_path, out=tmp_path)
        index = read_index(tmp_path / "src_l.csv")
        assert all((tmp_path / path).resolve().parent == tmp_path for path in index.paths.to_pylist())
        touch(tmp_path, more)
    assert len(index) == 2


def test_a_mixed_tree_is_linked_whole(tmp_path, vipant):
    touch(vipant, "Yz345678901.wav")
    out = tmp_path / "out"
    run(segments=write_list(tmp_path / "l.csv"), media=vipant, out=out, require_frames=False)
    records = lines(out / "src_l.csv")
    assert [r["id"] for r in records] == [row[0] for row in ROWS[:4]]
    for record in records:
        assert record["dir"] == "l_0_5"
        for kind in ("aclip", "frame"):
            for rest in record[kind]:
                assert (out / record["dir"] / kind / f"{record['id']}.{rest}").exists()


def test_a_replaced_file_gets_a_new_link(tmp_path):
    media, out = tmp_path / "m", tmp_path / "o"
    touch(media, "a/--PJHxphWEs.wav")
    run(segments=write_list(tmp_path / "l.csv"), media=media, out=out)
    (media / "a" / "--PJHxphWEs.wav").rename(media / "--PJHxphWEs.wav")
    run(segments=tmp_path / "l.csv", media=media, out=out)
    place = out / "l_0_5" / "aclip" / "--PJHxphWEs.p0.wav"
    assert os.readlink(place) == "../../../m/--PJHxphWEs.wav"
    assert sorted(p.name for p in place.parent.iterdir()) == [place.name]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "elsewhere", "aclip/--PJHxphWEs.p0.wav")
    media = tmp_path / "media"
    media.mkdir()
    (media / "chunk").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "elsewhere")
    (media / "up").symlink_to(tmp_path / "media")
    run(segments=write_list(tmp_path / "l.csv"), media=media, out=tmp_path / "o")
    assert read_index(tmp_path / "o" / "src_l.csv").paths.to_pylist() == ["chunk/aclip/--PJHxphWEs.p0.wav"]


def test_joint_index_weights_and_split_line(tmp_path, vipant):
    balanced = write_list(tmp_path / "balanced_train_segments.csv", ROWS[:1])
    unbalanced = write_list(tmp_path / "unbalanced_train_segments.csv", ROWS[1:])
    out = tmp_path / "out"
    said = run(segments=[str(balanced), str(unbalanced)], media=vipant, out=out, require_frames=False)
    parts = [(out / f"src_{stem}_train_segments.csv").read_bytes() for stem in ("unbalanced", "balanced")]
    assert (out / "src_train_segments.csv").read_bytes() == parts[0] + parts[1]
    assert json.loads((out / "index.json").read_text())["split_line"] == 2
    assert any("split line 2" in line for line in said)
    records = lines(out / "src_unbalanced_train_segments.csv")
    counts = Counter(label for r in records for label in r["labels"])
    want = [sum(1000 / (counts[label] + 1) for label in r["labels"]) for r in records]
    weights = (out / "src_unbalanced_train_segments_weight.csv").read_text().splitlines()
    assert [float(w) for w in weights] == want
    assert not (out / "src_balanced_train_segments_weight.csv").exists()


@pytest.mark.skipif(not REAL.exists(), reason="AudioSet's lists are not beside this repository")
def test_the_real_list_with_generated_files(tmp_path):
    """22,160 listed clips, a sixth of them absent, in chunk folders of VIP-ANT's kind."""
    ids = [line.split(",")[0] for line in REAL.read_text().splitlines() if line[0] != "#"]
    assert len(ids) == 22_160
    media, rng = tmp_path / "media", random.Random(5)
    present = [id for id in ids if rng.random() > 0.16]
    for chunk in range(3):
        (media / f"all_{chunk}" / "aclip").mkdir(parents=True)
    for i, id in enumerate(present):
        (media / f"all_{i % 3}" / "aclip" / f"{id}.p0.{('mp3', 'flac')[i % 2]}").touch()
    said = run(segments=REAL, media=media, out=tmp_path / "out")
    index = read_index(tmp_path / "out" / "src_balanced_train_segments.csv")
    assert index.ids.to_pylist() == present
    assert lines(tmp_path / "out" / "src_balanced_train_segments.csv") == reference(REAL, media, False)
    assert f"{len(present):,} of the 22,160 listed" in said[0]
    listed = read_list(REAL).label_sets()
    # The list's own header: num_unique_labels=527, num_positive_labels=52882.
    assert (len(listed.names), len(listed.codes)) == (527, 52_882)
    counts = Counter(
        label for r in lines(tmp_path / "out" / "src_balanced_train_segments.csv") for label in r["labels"]
    )
    kept = np.array([counts[name] for name in listed.names])
    np.testing.assert_array_equal(index.labels.counts()[[index.labels.names.index(n) for n in listed.names]], kept)


def test_files_for_ffmpeg_count_where_there_are_none_for_libsndfile(tmp_path):
    """Names of videos and phones beside audio: the list's first three clips."""
    first, second, third = read_list(write_list(tmp_path / "l.csv")).ids[:3]
    touch(tmp_path / "flat", f"{first}.m4a", f"{second}.mp4", f"{second}.wav", f"x/{third}.webm")
    run(segments=tmp_path / "l.csv", media=tmp_path / "flat", out=tmp_path / "o")
    assert {r["id"]: r["aclip"] for r in lines(tmp_path / "o" / "src_l.csv")} == {
        first: ["p0.m4a"],
        second: ["p0.wav"],
        third: ["p0.webm"],
    }
    gold = [f"a/aclip/{first}.p0.m4a", f"a/aclip/{second}.p0.m4a", f"b/aclip/{second}.p0.mp3", f"{third}.flac"]
    touch(tmp_path / "gold", *gold, f"a/aclip/{third}.p0.mp4")
    run(segments=tmp_path / "l.csv", media=tmp_path / "gold", out=tmp_path / "o2", link=True)
    assert {r["id"]: r["aclip"] for r in lines(tmp_path / "o2" / "src_l.csv")} == {
        first: ["p0.m4a"],
        second: ["p0.mp3"],
        third: ["p0.flac"],
    }


@pytest.mark.parametrize(
    ("files", "more", "words"),
    [
        (["other.wav"], {}, "none of the listed clips is under"),
        (["aclip/--PJHxphWEs.p0.wav", "frame/x.p0.1_0.jpg"], {}, "index.require_frames=false"),
        (["--PJHxphWEs.wav"], {"link": False}, "leave out index.link=false, or use dataset.format=segments"),
    ],
)
def test_mistakes(tmp_path, files, more, words):
    touch(tmp_path / "m", *files)
    with pytest.raises(UserError) as caught:
        run(segments=write_list(tmp_path / "l.csv"), media=tmp_path / "m", out=tmp_path / "o", **more)
    assert words in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_wrong_paths(tmp_path):
    segments = write_list(tmp_path / "l.csv")
    with pytest.raises(UserError, match="no such folder"):
        run(segments=segments, media=tmp_path / "absent", out=tmp_path / "o")
    with pytest.raises(UserError, match="cannot be read"):
        run(segments=tmp_path / "absent.csv", media=tmp_path, out=tmp_path / "o")
    with pytest.raises(ValueError, match="two lists named l"):
        IndexConfig(segments=["a/l.csv", "b/l.csv"], media="m", out="o")
    with pytest.raises(UserError, match=r"index\.media is not given: type index\.media="):
        run(segments=segments, out=tmp_path / "o")
