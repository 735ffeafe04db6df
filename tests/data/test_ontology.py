"""Ontologies as they are and as they should not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from balance.data.ontology import read_ontology, read_parents
from balance.errors import UserError
from balance.records import Labels
from balance.stats.run_stats import with_ancestors
from tests.paths import SHARED

AUDIOSET = SHARED / "data" / "audioset" / "ontology.json"


def write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(content))
    return path


def entry(id: str, *children: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "name": f"name of {id}", "child_ids": list(children), **more}


def chain(length: int) -> list[dict[str, Any]]:
    return [entry(f"/{i}", f"/{i + 1}") for i in range(length)]


def test_names_and_parents(tmp_path: Path) -> None:
    path = write(tmp_path / "ontology.json", [entry("/a", "/b", "/c"), entry("/b", "/c"), {"id": "/c", "name": "C"}])
    assert read_ontology(None, tmp_path) == ({"/a": "name of /a", "/b": "name of /b", "/c": "C"}, path)
    assert read_ontology(str(path), tmp_path / "elsewhere")[1] == path
    assert read_parents(path) == {"/b": ["/a"], "/c": ["/a", "/b"]}
    assert read_ontology(None, tmp_path / "elsewhere") == ({}, None)
    assert read_parents(tmp_path / "none.json") == {}
    write(path, b"\xef\xbb\xbf" + json.dumps([entry("/a")]).encode())
    assert read_ontology(None, tmp_path)[0] == {"/a": "name of /a"}
    with pytest.raises(UserError, match="no such file; leave it out"):
        read_ontology("none.json", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"[{]", "not JSON"),
        (b'[{"id": "\xff", "name": "x"}]', "not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'[{"id": "/a", "name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "nested too deep"),
        ({"/a": "A"}, "is a JSON dict"),
        (None, "is a JSON NoneType"),
        ([entry("/a"), "/b"], "[1] has no id and name"),
        ([entry("/a"), {"id": "/b"}], "[1] has no id and name"),
        ([entry("/a", child_ids=None)], "[0]: child_ids must be a list of label ids, got null"),
        ([entry("/a", child_ids=7)], "[0]: child_ids must be a list of label ids, got 7"),
        ([entry("/a", child_ids="/b")], '[0]: child_ids must be a list of label ids, got "/b"'),
        ([entry("/a", child_ids=[["/b"]])], '[0]: child_ids must be a list of label ids, got [["/b"]]'),
        ([entry("/a", child_ids={"/b": 1})], '[0]: child_ids must be a list of label ids, got {"/b": 1}'),
        ([entry("/a", name="\ud800")], "[0] holds half a surrogate pair, which is no text: '\\ud800'"),
        ([entry("\udfff")], "[0] holds half a surrogate pair"),
        ([entry("/a", "\ud800")], "[0] holds half a surrogate pair"),
        (chain(100_000), "more than 1,000 levels of child_ids, for instance below /0"),
        ([*chain(100_000), entry("/100000", "/0")], "more than 1,000 levels"),
    ],
)
def test_what_is_no_ontology_is_one_sentence(tmp_path: Path, content: Any, words: str) -> None:
    """When the names are read: before any work."""
    write(tmp_path / "ontology.json", content)
    with pytest.raises(UserError) as caught:
        read_ontology(None, tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path / "ontology.json") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_circles_end(tmp_path: Path) -> None:
    """A label that is its own ancestor: alone, through others, and below a root."""
    path = write(
        tmp_path / "ontology.json",
        [
            entry("/a", "/a"),
            entry("/b", "/c"),
            entry("/c", "/b"),
            entry("/r", "/s"),
            entry("/s", "/t"),
            entry("/t", "/s"),
        ],
    )
    assert len(read_ontology(None, tmp_path)[0]) == 6
    full = with_ancestors(Labels.of([["/a"], ["/c"], ["/t"]]), read_parents(path))
    assert [set(full[row]) for row in range(3)] == [{"/a"}, {"/b", "/c"}, {"/r", "/s", "/t"}]


@pytest.mark.skipif(not AUDIOSET.is_file(), reason="AudioSet's ontology is not beside this checkout")
def test_the_real_ontology() -> None:
    entries = json.loads(AUDIOSET.read_text())
    assert read_ontology(str(AUDIOSET), AUDIOSET.parent)[0] == {x["id"]: x["name"] for x in entries}
    parents = read_parents(AUDIOSET)
    pairs = {(child, x["id"]) for x in entries for child in x["child_ids"]}
    assert {(child, parent) for child, above in parents.items() for parent in above} == pairs
