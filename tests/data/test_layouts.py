"""Other data sets' own list files -> indexes.

The lines are those of the releases: ESC-50 `meta/esc50.csv`, UrbanSound8K `metadata/UrbanSound8K.csv`, FSD50K
`FSD50K.ground_truth/dev.csv` (as in github.com/soundata/soundata), AudioCaps `dataset/val.csv` (github.com/cdjkim/
audiocaps), VGGSound `vggsound.csv` (its columns: README of github.com/hche11/VGGSound; two clips of one video: its
`data/test.csv`), AudioSet's strong labels as research.google.com/audioset/download_strong.html describes them. Only the
last line of these is made up, for an id that is hard to tell from its time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from balance.data.build_index import build
from balance.data.config import IndexConfig, Layout
from balance.data.ontology import read_ontology
from balance.data.vipant_index import read_index
from balance.errors import UserError
from tests.command import command

ESC50 = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
1-100038-A-14.wav,1,14,chirping_birds,False,100038,A
2-102581-A-29.wav,2,29,drinking_sipping,False,102581,A
"""
FSD50K = """fname,labels,mids,split
64760,"Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music","/m/02sgy,/m/0342h,/m/0fx80y,/m/04szw,/m/04rlf",train
86100,"Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music","/m/02sgy,/m/0342h,/m/0fx80y,/m/04szw,/m/04rlf",val
"""
GUITAR = {"/m/02sgy": "Electric guitar", "/m/0342h": "Guitar", "/m/0fx80y": "Plucked string instrument"} | {
    "/m/04szw": "Musical instrument",
    "/m/04rlf": "Music",
}
URBANSOUND8K = """slice_file_name,fsID,start,end,salience,fold,classID,class
100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark
100263-2-0-117.wav,100263,58.5,62.5,1,5,2,children_playing
101415-3-0-2.wav,101415,1.0,5.0,1,1,3,dog_bark
"""
VGGSOUND = """---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,waterfall burbling,train
0_8-g2rof7E,49,"heart sounds, heartbeat",test
B5KE79I2f-A,188,wind noise,test
B5KE79I2f-A,220,wind noise,test
"""
AUDIOCAPS = """audiocap_id,youtube_id,start_time,caption
107890,uYT5gxnyMWM,50,"A young female speaks, followed by spraying and a female screaming"
108945,tdWhHV3X25Q,60,An audience gives applause as a man yells and a group sings
109274,uYT5gxnyMWM,50,A girl speaks followed by a scream and more girls talking
"""
STRONG = """segment_id\tstart_time_seconds\tend_time_seconds\tlabel
b0RFKhbpFJA_30000\t0.000\t10.000\t/m/03m9d0z
b0RFKhbpFJA_30000\t4.753\t5.720\t/m/05zppz
b0RFKhbpFJA_30000\t0.000\t10.000\t/m/03m9d0z
a_b_30000_c_21500\t1.000\t2.000\t/m/05zppz
"""
# layout -> its list, where its media lie, the records of the index, the names that are not the labels' ids.
SETS: dict[Layout, tuple[str, dict[str, str], list[dict[str, Any]], dict[str, str]]] = {
    Layout.esc50: (
        ESC50,
        {"audio/1-100032-A-0.wav": "1-100032-A-0", "audio/2-102581-A-29.wav": "2-102581-A-29"},
        [
            {"id": "1-100032-A-0", "bos": "0.000", "eos": "5.000", "labels": ["dog"]},
            {"id": "2-102581-A-29", "bos": "0.000", "eos": "5.000", "labels": ["drinking_sipping"]},
        ],
        {"chirping_birds": "chirping birds", "dog": "dog", "drinking_sipping": "drinking sipping"},
    ),
    Layout.fsd50k: (
        FSD50K,
        {"FSD50K.dev_audio/64760.wav": "64760", "FSD50K.dev_audio/86100.wav": "86100"},
        [
            {"id": "64760", "labels": [*GUITAR]},
            {"id": "86100", "labels": [*GUITAR]},
        ],
        GUITAR,
    ),
    Layout.urbansound8k: (
        URBANSOUND8K,
        {"audio/fold5/100032-3-0-0.wav": "100032-3-0-0", "audio/fold1/101415-3-0-2.wav": "101415-3-0-2"},
        [
            {"id": "100032-3-0-0", "bos": "0.000", "eos": "0.318", "labels": ["dog_bark"]},
            {"id": "101415-3-0-2", "bos": "0.000", "eos": "4.000", "labels": ["dog_bark"]},
        ],
        {"children_playing": "children playing", "dog_bark": "dog bark"},
    ),
    Layout.vggsound: (
        VGGSOUND,
        {"---g-f_I2yQ_000001.wav": "---g-f_I2yQ", "train/--0PQM4-hqg_30000_40000.flac": "--0PQM4-hqg"}
        | {"0_8-g2rof7E.wav": "0_8-g2rof7E", "B5KE79I2f-A_000188.wav": "B5KE79I2f-A_000188"}
        | {"B5KE79I2f-A_220000_230000.flac": "B5KE79I2f-A_000220"},
        [
            {"id": "---g-f_I2yQ", "bos": "1.000", "eos": "11.000", "labels": ["people marching"]},
            {"id": "--0PQM4-hqg", "bos": "30.000", "eos": "40.000", "labels": ["waterfall burbling"]},
            {"id": "0_8-g2rof7E", "bos": "49.000", "eos": "59.000", "labels": ["heart sounds heartbeat"]},
            {"id": "B5KE79I2f-A_000188", "bos": "188.000", "eos": "198.000", "labels": ["wind noise"]},
            {"id": "B5KE79I2f-A_000220", "bos": "220.000", "eos": "230.000", "labels": ["wind noise"]},
        ],
        {id: id for id in ("people marching", "waterfall burbling", "wind noise")}
        | {"heart sounds heartbeat": "heart sounds, heartbeat"},
    ),
    Layout.audiocaps: (
        AUDIOCAPS,
        {"YuYT5gxnyMWM.wav": "uYT5gxnyMWM", "val/108945.wav": "tdWhHV3X25Q"},
        [
            {"id": "uYT5gxnyMWM", "bos": "50.000", "eos": "60.000", "labels": []},
            {"id": "tdWhHV3X25Q", "bos": "60.000", "eos": "70.000", "labels": []},
        ],
        {},
    ),
    Layout.audioset_strong: (
        STRONG,
        {"b0RFKhbpFJA_30000.wav": "b0RFKhbpFJA", "a_b_30000_c.flac": "a_b_30000_c"},
        [
            {"id": "b0RFKhbpFJA", "bos": "30.000", "eos": "40.000", "labels": ["/m/03m9d0z", "/m/05zppz"]},
            {"id": "a_b_30000_c", "bos": "21.500", "eos": "31.500", "labels": ["/m/05zppz"]},
        ],
        {},
    ),
}


def index(folder: Path, layout: Layout, text: str | None, **keys: Any) -> list[str]:
    given = [str(folder / "list.csv")] if text is not None else keys.pop("segments", None)
    if text is not None:
        (folder / "list.csv").write_text(text)
    places = {"media": str(folder / "media"), "out": str(folder / "out")}
    return list(build(IndexConfig(layout=layout, segments=given, **(places | keys))))


def touch(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / "media" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "media" / name).write_text(content)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("layout", SETS)
def test_lists_of_other_data_sets(tmp_path: Path, layout: Layout) -> None:
    text, files, want, names = SETS[layout]
    touch(tmp_path, files)
    said = index(tmp_path, layout, text)
    made = records(tmp_path / "out" / "src_list.csv")
    kept = [{key: value for key, value in record.items() if key not in ("dir", "aclip", "frame")} for record in made]
    assert kept == want
    read = read_index(tmp_path / "out" / "src_list.csv")
    assert [(tmp_path / "out" / path).read_text() for path in read.paths.to_pylist()] == [x["id"] for x in want]
    assert read_ontology(None, tmp_path / "out")[0] == names
    assert "dataset.balanced=list dataset.unbalanced=" in said[-1]


@pytest.mark.parametrize(
    ("layout", "splits", "name", "ids"),
    [
        (Layout.esc50, [1], "list_1", ["1-100032-A-0", "1-100038-A-14"]),
        (Layout.esc50, 2, "list_2", ["2-102581-A-29"]),
        (Layout.esc50, [1, 2], "list_1-2", ["1-100032-A-0", "1-100038-A-14", "2-102581-A-29"]),
        (Layout.urbansound8k, ["5"], "list_5", ["100032-3-0-0", "100263-2-0-117"]),
        (Layout.fsd50k, "val", "list_val", ["86100"]),
        (Layout.vggsound, "train", "list_train", ["--0PQM4-hqg"]),
    ],
)
def test_folds_and_splits(tmp_path: Path, layout: Layout, splits: Any, name: str, ids: list[str]) -> None:
    text, _, _, names = SETS[layout]
    touch(tmp_path, {f"{id}.wav": id for id in ids} | {"unlisted.wav": ""})
    index(tmp_path, layout, text, splits=splits)
    assert read_index(tmp_path / "out" / f"src_{name}.csv").ids.to_pylist() == ids
    assert read_ontology(None, tmp_path / "out")[0] == names  # of the whole list, for all of its splits


@pytest.mark.parametrize("times", ["000220", "220", "220000", "220_230", "220000_230000"])
def test_two_clips_of_one_video(tmp_path: Path, times: str) -> None:
    """595 videos of VGGSound's own data/test.csv have two clips; a file of the whole video is neither of them."""
    touch(tmp_path, {"B5KE79I2f-A.wav": "whole", f"B5KE79I2f-A_{times}.wav": "cut"})
    index(tmp_path, Layout.vggsound, VGGSOUND, splits="test")
    read = read_index(tmp_path / "out" / "src_list_test.csv")
    assert read.ids.to_pylist() == ["B5KE79I2f-A_000220"]
    assert (tmp_path / "out" / read.paths[0].as_py()).read_text() == "cut"


def test_folders_are_classes(tmp_path: Path) -> None:
    touch(tmp_path, {"train/dog/1.wav": "a", "train/cat/1.flac": "b", "train/cat/deep/2.wav": "c"})
    touch(tmp_path, {"test/dog/1.wav": "d", "test/none.mp3": "e", "test/hail, rain/3.wav": "f"})
    index(tmp_path, Layout.folders, None, segments=["train", "test"])
    for name, want in (
        ("train", [("train_cat_1", "b", ["cat"]), ("train_cat_deep_2", "c", ["cat"]), ("train_dog_1", "a", ["dog"])]),
        ("test", [("test_dog_1", "d", ["dog"]), ("test_hail, rain_3", "f", ["hail rain"]), ("test_none", "e", [])]),
    ):
        read = read_index(tmp_path / "out" / f"src_{name}.csv")
        heard = [(tmp_path / "out" / path).read_text() for path in read.paths.to_pylist()]
        labels = [list(read.labels[row]) for row in range(len(read))]
        assert list(zip(read.ids.to_pylist(), heard, labels, strict=True)) == want
        assert all("bos" not in record for record in records(tmp_path / "out" / f"src_{name}.csv"))
    assert read_ontology(None, tmp_path / "out")[0]["hail rain"] == "hail, rain"
    index(tmp_path, Layout.folders, None, out=str(tmp_path / "other"))
    assert len(read_index(tmp_path / "other" / "src_media.csv")) == 6
    assert records(tmp_path / "other" / "src_media.csv")[0]["labels"] == ["test"]


def test_an_ontology_of_others_stays(tmp_path: Path) -> None:
    text, files, _, _ = SETS[Layout.esc50]
    touch(tmp_path, files)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ontology.json").write_text('[{"id": "dog", "name": "Hound"}]')
    index(tmp_path, Layout.esc50, text)
    assert (tmp_path / "out" / "ontology.json").read_text() == '[{"id": "dog", "name": "Hound"}]'


@pytest.mark.parametrize(
    ("layout", "text", "keys", "words"),
    [
        (Layout.esc50, URBANSOUND8K, {}, "list.csv: no column filename, category: is it the list that index.layout"),
        (Layout.vggsound, ESC50, {}, "list.csv line 1: not id, start, label, split"),
        (Layout.fsd50k, FSD50K + '1,"A,B",/m/a,train\n', {}, "list.csv line 4: not fname, labels, mids"),
        (Layout.esc50, ESC50 + "3-1-A-0.wav,3\n", {}, "list.csv line 5: not filename, fold, category"),
        (Layout.esc50, ESC50 + "3-1-A-0.wav,3,0,dog,True,1,A,more\n", {}, "line 5: not filename, fold, category"),
        (Layout.esc50, ESC50 + ".wav/,3,0,dog,True,1,A\n" * 2, {}, "line 6: .wav is listed before, in line 5"),
        (Layout.urbansound8k, URBANSOUND8K.replace("58.5", "x"), {}, "list.csv line 3: not slice_file_name, start"),
        (Layout.audiocaps, AUDIOCAPS + "7,uYT5gxnyMWM,140,other\n", {}, "line 5: uYT5gxnyMWM is listed before, in"),
        (Layout.audioset_strong, STRONG + "abc\t0\t1\t/m/a\n", {}, "list.csv line 6: not segment_id, label"),
        (Layout.vggsound, VGGSOUND + "B5KE79I2f-A,220,thunder,train\n", {}, "B5KE79I2f-A_000220 is listed before, in"),
        (Layout.esc50, ESC50.splitlines()[0], {}, "empty list"),
        (Layout.esc50, ESC50, {"splits": [1, 7]}, "has no fold or split 7; it has 1, 2"),
        (Layout.esc50, None, {}, "index.segments is not given"),
        (Layout.folders, None, {"segments": ["absent"]}, "no folder 'absent'"),
        (Layout.folders, None, {"out": "media/out"}, "lies in index.media, where every folder is a class"),
        (Layout.folders, None, {"segments": ["a_b", "a"]}, "two of the folders hold clips with the same id"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout, text: str | None, keys: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, {"a_b/x/1.wav": "", "a/b_x/1.wav": ""})
    with pytest.raises(UserError) as caught:
        index(tmp_path, layout, text, **keys)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_names_that_lie_beside_audiosets_strong_labels(tmp_path: Path) -> None:
    """As in mid_to_display_name.tsv of research.google.com/audioset/download_strong.html."""
    text, files, _, _ = SETS[Layout.audioset_strong]
    touch(tmp_path, files)
    (tmp_path / "mid_to_display_name.tsv").write_text("/m/03m9d0z\tWind\n/m/05zppz\tMale speech, man speaking\n")
    index(tmp_path, Layout.audioset_strong, text)
    entries = json.loads((tmp_path / "out" / "ontology.json").read_text())
    names = {entry["id"]: entry["name"] for entry in entries}
    assert names == {"/m/03m9d0z": "Wind", "/m/05zppz": "Male speech, man speaking"}


def test_the_command(tmp_path: Path) -> None:
    text, files, _, _ = SETS[Layout.esc50]
    touch(tmp_path, files)
    (tmp_path / "esc50.csv").write_text(text)
    given = ("index.segments=esc50.csv", "index.media=media", "index.out=out", "index.splits=[1]")
    done = command(tmp_path, "index.layout=esc50", *given, module="balance.index")
    assert done.returncode == 0, done.stderr
    assert "src_esc50_1.csv: 1 of the 2 listed clips are there (50.0%)" in done.stderr
    assert "labels that lost most: chirping birds 1 of 1 (100%)" in done.stderr
    done = command(tmp_path, *given, module="balance.index")
    assert done.returncode == 1
    assert "index.splits=[1]: the lists of index.layout=audioset have none" in done.stderr
