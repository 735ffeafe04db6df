"""k-NN files and id lists as filters: against the values that were written."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balance.errors import UserError
from balance.training.knn_file import load_ids, load_neighbours

PAIRS = {"s1": [("a", 0.5), ("b", 0.25), ("--c", -0.125)], "s_2": [("b", 1.0), ("a", 0.0), ("d", -1.0)]}


def knn_line(seed: str, pairs) -> str:
    return json.dumps({seed: [list(pair) for pair in pairs]}) + "\n"


def test_neighbours_of_both_forms(tmp_path):
    (tmp_path / "n.jsonl").write_text("".join(knn_line(seed, pairs) for seed, pairs in PAIRS.items()))
    rows = [(s, r, i, x) for s, pairs in PAIRS.items() for r, (i, x) in enumerate(pairs, 1)]
    columns = dict(zip(("seed_id", "rank", "neighbour_id", "similarity"), zip(*rows, strict=True), strict=True))
    table = pa.table({name: list(values) for name, values in columns.items()})
    pq.write_table(table.set_column(1, "rank", table["rank"].cast(pa.int32())), tmp_path / "n.parquet")
    for name in ("n.jsonl", "n.parquet"):
        assert load_neighbours(tmp_path / name, top=3) == PAIRS
        assert load_neighbours(tmp_path / name, top=1) == {seed: pairs[:1] for seed, pairs in PAIRS.items()}
        with pytest.raises(UserError, match="'s1' has 3 neighbours, 4 are asked for"):
            load_neighbours(tmp_path / name, top=4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty k-NN file"),
        ("not json\n", "line 1: not"),
        (knn_line("s", [("a", 1.0)]) + "\n", "line 2: not"),
        ('["s"]\n', "line 1: not"),
        ('{"s": [["a"]]}\n', "line 1: not"),
        ('{"s": [[1, 0.5]]}\n', "line 1: not"),
        ('{"s": [["a", "x"]]}\n', "line 1: not"),
        ('{"s": [["a", 1]], "t": [["a", 1]]}\n', "line 1: not"),
        (knn_line("s", [("a", 1.0)]) * 2, "'s' occurs twice"),
    ],
)
def test_malformed_neighbours(tmp_path, content, words):
    (tmp_path / "n.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        load_neighbours(tmp_path / "n.jsonl", top=1)


def test_absent_filters(tmp_path):
    with pytest.raises(UserError, match="no such k-NN file"):
        load_neighbours(tmp_path / "n.jsonl", top=1)
    with pytest.raises(UserError, match="at least 1"):
        load_neighbours(tmp_path / "n.jsonl", top=0)
    with pytest.raises(UserError, match="no such file"):
        load_ids(tmp_path / "ids.csv")
    (tmp_path / "n.parquet").write_bytes(b"junk")
    with pytest.raises(UserError, match="not a neighbours"):
        load_neighbours(tmp_path / "n.parquet", top=1)
    (tmp_path / "ids.csv").touch()
    with pytest.raises(UserError, match="empty id list"):
        load_ids(tmp_path / "ids.csv")
