"""balance.data.vipant_index against `json` on the same lines, and every mistake of an index against its message."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balance.data import json_lines, vipant_index
from balance.data.locate import index_file
from balance.data.vipant_index import index_weights, read_index
from balance.errors import UserError
from balance.records import Labels


def record(id: str, **more: object) -> dict[str, object]:
    return {"id": id, "dir": "all_0_5", "aclip": ["p0.mp3", "n0.mp3"], "labels": ["/m/b", "/m/a"]} | more


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


RECORDS = [
    record("--PJHxphWEs"),
    record("a_b-c", dir=""),
    record("naïve", labels=[], captions=["a dog, “barking”"], frame="p0.10_3.jpg"),
    record("nolabels", labels=None, extra={"x": [1, {"y": None}]}),
    record("twice", labels=["/m/c", "/m/a", "/m/c"]),
]


def reference_path(r: dict) -> str:
    """What the published loader joins."""
    key = "aclip" if "aclip" in r else "clip"
    return f"{r['dir']}/{key}/{r['id']}.{r[key][0]}" if r.get("dir") else f"{key}/{r['id']}.{r[key][0]}"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("block_bytes", [64 << 20, 1, 7, 100])
def test_columns_and_bytes(tmp_path, monkeypatch, end, last, block_bytes):
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", block_bytes)
    lines = [json.dumps(r, ensure_ascii=False) for r in RECORDS]
    path = tmp_path / "src_x.csv"
    path.write_bytes((end.join(lines) + (end if last else "")).encode())
    index = read_index(path)
    assert index.file == str(path)
    assert index.audio_key == "aclip"
    assert index.ids.to_pylist() == [r["id"] for r in RECORDS]
    assert index.paths.to_pylist() == [reference_path(r) for r in RECORDS]
    assert pa.types.is_large_string(index.paths.type)  # 50 M paths exceed the 2 GiB of a string array
    assert [line.decode() for line in index.lines.to_pylist()] == lines
    assert [index.labels[i] for i in range(5)] == [("/m/b", "/m/a"), ("/m/b", "/m/a"), (), (), ("/m/c", "/m/a")]
    picked = index.take(np.array([3, 0]))
    assert picked.lines.to_pylist() == [lines[3].encode(), lines[0].encode()]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (".", "aclip/b.p0.wav"),
        ("./x", "x/aclip/b.p0.wav"),
        ("x/", "x/aclip/b.p0.wav"),
        ("x//y/./z/..", "x/y/aclip/b.p0.wav"),
        ("/media/x", "x/aclip/b.p0.wav"),
        ("/media", "aclip/b.p0.wav"),
        ("..x/.y", "..x/.y/aclip/b.p0.wav"),
    ],
)
def test_folders_inside_the_media_root_are_written_plainly(tmp_path, folder, expected):
    path = write(tmp_path / "a.csv", [record("a"), record("b", dir=folder, aclip=["p0.wav"]), record("c")])
    index = read_index(path, Path("/media"))
    assert index.paths.to_pylist() == ["all_0_5/aclip/a.p0.mp3", expected, "all_0_5/aclip/c.p0.mp3"]
    assert [json.loads(line)["dir"] for line in index.lines.to_pylist()] == ["all_0_5", folder, "all_0_5"]


ODD = [
    "\u2028",
    "\x0b",
    "\x85",
    "\xa0",
    "\ufeff",
    "\r",
    "\t",
    " ",
    "NaN",
    "+1",
    "01",
    "'",
    "\\",
    "\x00",
    "//",
    ",",
    "{",
    "}",
    '"',
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ODD), st.floats(0, 1)), min_size=1, max_size=2))
def test_what_is_accepted_is_what_json_accepts(tmp_path_factory, additions):
    line = OTHER
    for odd, place in additions:
        at = round(place * len(line))
        line = line[:at] + odd + line[at:]
    path = tmp_path_factory.mktemp("lines") / "a.csv"
    path.write_bytes(f"{GOOD}\n{line}\n".encode())
    try:
        index = read_index(path)
    except UserError:
        return
    path.write_bytes(b"".join(kept + b"\n" for kept in index.lines.to_pylist()))
    with path.open() as file:
        assert [json.loads(kept)["id"] for kept in file] == index.ids.to_pylist()


def test_every_line_that_is_kept_is_json_of_its_own(tmp_path):
    """A trainer reads the index again with json.loads per line of text."""
    path = tmp_path / "a.csv"
    path.write_bytes(f"  {GOOD}\t\r\n{OTHER} \n".encode())
    kept = b"".join(line + b"\n" for line in read_index(path).lines.to_pylist())
    (tmp_path / "b.csv").write_bytes(kept)
    with (tmp_path / "b.csv").open() as file:
        assert [json.loads(line)["id"] for line in file] == ["good", "other"]


def test_old_key(tmp_path):
    old = [{"id": i, "dir": d, "clip": ["p0.flac"]} for i, d in [("x", ""), ("y", "d")]]
    index = read_index(write(tmp_path / "a.csv", old))
    assert index.audio_key == "clip"
    assert index.paths.to_pylist() == ["clip/x.p0.flac", "d/clip/y.p0.flac"]


def test_what_arrow_refuses_but_json_accepts_is_read(tmp_path):
    """A key named twice (json keeps the last) and blanks around a record."""
    path = tmp_path / "a.csv"
    path.write_text('{"id": "old", "id": "new", "aclip": ["p0.mp3"]}\n  {"id": "b", "aclip": ["p0.mp3"]} \n')
    assert read_index(path).ids.to_pylist() == ["new", "b"]


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
values = st.recursive(st.none() | st.booleans() | st.integers() | text, lambda inner: st.lists(inner, max_size=3))
loose = st.fixed_dictionaries(
    {"id": text, "aclip": st.lists(text, min_size=1, max_size=2)},
    optional={"dir": text, "labels": st.lists(text, max_size=3), "other": values},
)


@settings(max_examples=60, deadline=None)
@given(st.lists(loose, min_size=1, max_size=6, unique_by=lambda r: r["id"]), st.booleans())
def test_both_readings_agree(tmp_path_factory, records, ascii_only):
    lines = [json.dumps(r, ensure_ascii=ascii_only).encode() for r in records]
    fast = json_lines._parse_fast(np.frombuffer(b"\n".join(lines) + b"\n", dtype=np.uint8), vipant_index._SCHEMA)
    slow = json_lines._parse_line_by_line(Path("x"), lines, 1, vipant_index._SCHEMA)
    assert fast is not None
    assert fast.to_pydict() == slow.to_pydict()


GOOD = json.dumps(record("good"))
OTHER = json.dumps(record("other"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty index"]),
        ("# Segments csv created\n# x\n# YTID\n", ["segment list", "python -m balance.index"]),
        ('--PJHxphWEs, 30.000, 40.000, "/m/09x0r"\n', ["segment list", "python -m balance.index"]),
        (f"{GOOD}\nnot json\n", ["line 2", "not JSON", "not json"]),
        (f'{GOOD}\n{{"id": "b", "aclip": ["p0\n', ["line 2", "not JSON"]),
        (f"{GOOD}\n\n{GOOD}\n", ["line 2", "empty line"]),
        (f"{GOOD}\n[1]\n", ["line 2", "not an object"]),
        (GOOD + GOOD.replace("good", "b") + "\n", ["line 1", "two JSON objects in one line"]),
        (f'{GOOD}\n{GOOD}{GOOD}\n{{"id": \n"c"}}\n', ["line 2", "two JSON objects in one line"]),
        (f"{GOOD} x\n", ["line 1", "follows it"]),
        (f'{GOOD}\n{{"aclip": ["p0.mp3"]}}\n', ["line 2", "no 'id'"]),
        (f'{GOOD}\n{{"id": null, "aclip": ["p0.mp3"]}}\n', ["line 2", "no 'id'"]),
        (f'{GOOD}\n{{"id": "b"}}\n', ["line 2", "no 'aclip'"]),
        (f'{GOOD}\n{{"id": "b", "aclip": []}}\n', ["line 2", "empty list"]),
        (f'{GOOD}\n{{"id": "b", "aclip": "p0.mp3"}}\n', ["line 2", "'aclip'", "list of strings"]),
        (f'{GOOD}\n{{"id": "b", "aclip": [null]}}\n', ["line 2", "'aclip'", "list of strings"]),
        (f'{GOOD}\n{{"id": 7, "aclip": ["p0.mp3"]}}\n', ["line 2", "'id' must be a string, got 7"]),
        (f'{GOOD}\n{{"id": "b", "aclip": ["p"], "labels": "/m/a"}}\n', ["line 2", "'labels'", "list of strings"]),
        (f'{GOOD}\n{{"id": "b", "aclip": ["p"], "labels": ["a", null]}}\n', ["line 2", "'labels'", "null"]),
        (f'{GOOD}\n{{"id": "b", "aclip": ["p"], "dir": 3}}\n', ["line 2", "'dir' must be a string"]),
        (f'{GOOD}\n{{"id": "\\ud800", "aclip": ["p"]}}\n', ["line 2", "surrogate"]),
        (f'{GOOD}\n{{"id": "", "aclip": ["p"]}}\n', ["line 2", "is no id"]),
        (f'{GOOD}\n{{"id": "a\\nb", "aclip": ["p"]}}\n', ["line 2", "is no id"]),
        (f'{GOOD}\n{{"id": "b", "clip": ["p0.mp3"]}}\n', ["line 1 has 'aclip'", "line 2 has 'clip'"]),
        (f"{GOOD}\n{GOOD}\n", ["more than once", "good"]),
        (f"{GOOD}\n{OTHER}\u2028\n", ["line 2", "follows it"]),
        (f"{GOOD}\n\u2028{OTHER}\n", ["line 2", "not JSON"]),
        (f"{GOOD}\n{OTHER}\xa0\n", ["line 2", "follows it"]),
        (f"{GOOD}\n{OTHER}\r\r\n", ["line 2", "carriage return"]),
        (GOOD + "\n" + OTHER.replace(", ", ",\r", 1) + "\n", ["line 2", "carriage return"]),
        (f'{GOOD}\n{{"id": "b ", "aclip": ["p"]}}\n', ["line 2", "'b ' is no id", "blank"]),
        (f'{GOOD}\n{{"id": "e\u0301", "aclip": ["p"]}}\n', ["line 2", "NFC"]),
        (f'{GOOD}\n{{"id": "b", "aclip": ["p"], "dir": "../x"}}\n', ["line 2", "../x/aclip/b.p is outside"]),
        (f'{GOOD}\n{{"id": "b", "aclip": ["p"], "dir": "/x"}}\n', ["line 2", "/x/aclip/b.p is outside"]),
        (f'{GOOD}\n{{"id": "../../../b", "aclip": ["p"], "dir": "x"}}\n', ["line 2", "is outside"]),
        (f'{GOOD}\n{{"id": "b", "aclip": ["/../../../../p"], "dir": "x"}}\n', ["line 2", "is outside"]),
        (f'{GOOD}\n{{"id": "b", "aclip": ["p"], "dir": "x\\u0000y"}}\n', ["line 2", "control characters"]),
        (b'{"id": "\xff", "aclip": ["p"]}\n', ["line 1", "UTF-8"]),
        (b"\xef\xbb\xbf" + GOOD.encode(), ["byte order mark"]),
    ],
)
def test_mistakes(tmp_path, content, words):
    path = tmp_path / "src_bad.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_index(path)
    message = str(caught.value)
    assert "src_bad.csv" in message
    for word in words:
        assert word in message
    assert message.count("\n") <= 1


def test_many_duplicates_are_counted(tmp_path):
    path = write(tmp_path / "a.csv", [record(f"id{i % 9}") for i in range(18)])
    with pytest.raises(UserError, match="and 4 more"):
        read_index(path)


def test_missing_index_lists_those_there(tmp_path):
    for name in ("src_b.csv", "src_b_weight.csv", "c.csv", "ids_k10.csv"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"There are: src_b\.csv, c\.csv\.$"):
        read_index(tmp_path / "src_a.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_index(tmp_path)


def test_index_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    root.mkdir()
    for name in ("X.csv", "src_full_X.csv", "src_X.csv"):
        (root / name).touch()
        assert index_file(root, "X") == root / name
    (tmp_path / "mine.csv").touch()
    assert index_file(root, "mine.csv") == Path("mine.csv")
    assert index_file(root, "data/X.csv") == Path("data/X.csv")
    with pytest.raises(UserError, match=r"no index 'Y' under .* There are: src_X\.csv"):
        index_file(root, "Y")
    with pytest.raises(UserError, match="There is no folder"):
        index_file(root / "absent", "Y")
    with pytest.raises(UserError, match="no such index file"):
        index_file(root, "data/Y.csv")


def test_weights_against_the_formula():
    sets = [("a", "b"), (), ("a",), ("c", "a", "b")]
    counts = Counter(name for labels in sets for name in labels)
    want = [sum(1000 / (counts[name] + 1) for name in labels) for labels in sets]
    assert index_weights(Labels.of(sets)).tolist() == want
    assert index_weights(Labels.of([(), ()])).tolist() == [0.0, 0.0]
