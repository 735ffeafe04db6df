"""K per seed by a probe's evidence: a case worked out by hand, what is refused, and a run through the command."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from balance.curation import per_seed
from balance.curation.config import AugmentConfig
from balance.curation.curate import PerSeedFigures, curate
from balance.errors import UserError
from balance.records import Labels, Neighbours
from tests import worlds
from tests.command import command, run_dir
from tests.curation.test_curate import split

LABELS = {"a": 1, "b": 3, "c": 2, "d": 2}  # a and b have a K of their own


def probe(folder, k=2, labels=LABELS, **changes):
    """A probe.json as far as it is read; its path."""
    each = [{"id": name, "k": own, "gain": [], "low": [], "high": []} for name, own in labels.items()]
    value = {"ks": [0, 1, 2, 3], "steps": [], "k": k, "labels": each}
    content = {
        "same_space": False,
        "recommended_k": k,
        "sentences": [],
        "conclusions": [],
        "value_of_neighbours": value,
    }
    content |= changes
    path = folder / "probe.json"
    path.write_text(json.dumps(content))
    return str(path)


def curated(file, **config):
    """Five seeds, of K 1, 3, 3, 2, 2, and their three neighbours."""
    seeds = split([f"s{i}" for i in range(5)], [["a"], ["b"], ["a", "b"], ["c", "d"], []])
    pool = split([f"p{i}" for i in range(9)], [["a"]] * 9)
    rows = np.array([[0, 1, 2], [1, 3, 2], [3, 4, 1], [5, 6, 7], [5, 1, 8]], dtype=np.int32)
    similarities = np.array(
        [[0.9, 0.8, 0.7], [0.5, 0.4, 0.3], [0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [0.95, 0.6, 0.5]], dtype=np.float32
    )
    neighbours = Neighbours(np.arange(5), rows, similarities)
    return curate(
        AugmentConfig(per_seed_k=file, **config),
        rng_seed=1,
        seeds=seeds,
        pool=pool,
        eligible=pool.embedded,
        neighbours=neighbours,
    )


def test_a_case_by_hand(tmp_path):
    got = curated(probe(tmp_path))
    union = got.union
    assert union.pool_rows.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert union.num_seeds.tolist() == [1, 3, 1, 2, 1, 2, 1]
    assert union.best_seed.tolist() == [0, 2, 1, 2, 2, 4, 3]  # s0 would take p1 and p2 as more similar, but takes one
    assert union.best_rank.tolist() == [1, 3, 3, 1, 2, 1, 2]
    assert union.best_similarity.tolist() == np.float32([0.9, 0.7, 0.3, 0.9, 0.8, 0.95, 0.8]).tolist()
    assert got.removals.rows.tolist() == [7, 8]
    assert got.removals.rule.to_pylist() == ["per_seed_k", "per_seed_k"]
    assert got.removals.value.to_pylist() == [3.0, 3.0]
    assert got.num_found == 9
    assert got.figures.per_seed_k == PerSeedFigures({"1": 1, "2": 2, "3": 2}, 2)
    assert got.notes[0] == "K per seed: 1 for 1 seeds, 2 for 2 seeds, 3 for 2 seeds; 2 of 9 neighbours lie beyond"
    assert got.warnings == ()


def test_the_budget_goes_by_the_ranks_that_seeds_take(tmp_path):
    got = curated(probe(tmp_path), budget=5 + 4)
    assert got.union.pool_rows.tolist()[:1] == [0]
    assert {0, 1, 3, 5} == set(got.union.pool_rows.tolist())  # the first ranks; p2 at 3 and not at s0's 3
    out = dict(zip(got.removals.rows.tolist(), got.removals.value.to_pylist(), strict=True))
    assert out == {7: 3.0, 8: 3.0, 2: 3.0, 4: 2.0, 6: 2.0}


def test_one_k_for_all_is_the_run_at_that_k(tmp_path):
    got = curated(probe(tmp_path, labels=dict.fromkeys("abcd", 2)))
    assert got.union.pool_rows.tolist() == [0, 1, 3, 4, 5, 6]
    assert got.union.num_seeds.tolist() == [1, 3, 2, 1, 2, 1]
    assert got.figures.per_seed_k == PerSeedFigures({"2": 5}, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": LABELS | {"b": 8}}, r"takes up to 8 neighbours, but k=3: type k=8 or more"),
        ({"labels": {"x": 1, "y": 2}}, r"none of its 2 labels is a label of a seed.*other data"),
        (
            {"recommended_k": None, "sentences": ["x.", "no K beats random here."]},
            r"no gain: no K beats random here\. ",
        ),
        ({"value_of_neighbours": None}, r"a fit was not finished; probe again with more probe\.steps"),
        ({"value_of_neighbours": {"k": 2}}, r"damaged"),
        ({"labels": LABELS | {"b": "3"}}, r"damaged"),
        ({"k": 0}, r"damaged"),
    ],
)
def test_refusals(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        curated(probe(tmp_path, **changes))
    assert str(caught.value).startswith(f"augment.per_seed_k={tmp_path / 'probe.json'}: ")


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{}", b'{"k": 3', b"\xff\xfe\x00"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "probe.json").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged one; run python -m balance\.probe again"):
        per_seed.read(str(tmp_path / "probe.json"))


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"No such file or directory; type the path of a probe\.json"):
        per_seed.read(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"Is a directory; type the path of a probe\.json"):
        per_seed.read(str(tmp_path))


def test_warnings(tmp_path):
    said = {"arm": "neighbours k=2", "words": "loss of 0.1 by all 4 readings"}
    conclusions = [
        {**said, "against_rule": "seeds", "verdict": "loss"},
        {**said, "against_rule": "seeds", "verdict": None},
        {**said, "against_rule": "pool", "verdict": "loss"},
    ]
    file = probe(tmp_path, labels={"a": 1}, same_space=True, conclusions=conclusions)
    each, warnings = per_seed.choose(file, 2, Labels.of([["a"], ["z"], ["a", "y"]]))
    assert each.tolist() == [1, 2, 1]
    space, loss, labels = warnings
    assert "no evidence" in space
    assert loss.endswith(": the probe says of neighbours k=2 against the seeds alone: loss of 0.1 by all 4 readings")
    assert "2 of the seeds' 3 labels are not among those of the probe" in labels


def test_through_the_command(tmp_path):
    world = worlds.make(tmp_path / "data", seeds=6, pool=30, evaluation=2)
    file = probe(tmp_path, k=1, labels={"/m/a": 4, "/m/b": 2, "/m/c": 1, "/m/d": 1})
    refused = command(tmp_path, *world.overrides(), "k=3", f"augment.per_seed_k={file}")
    assert refused.returncode == 1
    assert "a seed takes up to 4 neighbours, but k=3: type k=4 or more" in refused.stderr
    assert not (tmp_path / "outputs" / "cache" / "embeddings").exists()  # before work
    done = command(tmp_path, *world.overrides(), "k=5", "augment.per_seed_k=probe.json")
    assert done.returncode == 0, done.stderr

    own = {"/m/a": 4, "/m/b": 2}
    ks = {
        record["id"]: max((own[label] for label in record["labels"] if label in own), default=1)
        for record in world.records("seeds")
    }
    out = run_dir(tmp_path)
    pairs = pq.read_table(out / "neighbours_k5.parquet").to_pylist()
    assert len(pairs) == 6 * 5  # the search's result
    taken = [pair for pair in pairs if pair["rank"] <= ks[pair["seed_id"]]]
    num_seeds = {
        clip: sum(pair["neighbour_id"] == clip for pair in taken) for clip in {pair["neighbour_id"] for pair in taken}
    }
    with (out / "augmented_k5.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["source"] == "neighbour"]
    assert {row["id"]: int(row["num_seeds"]) for row in rows} == num_seeds
    decisions = pq.read_table(out / "decisions.parquet").to_pylist()
    beyond = {pair["neighbour_id"] for pair in pairs} - set(num_seeds)
    assert {row["id"] for row in decisions if row["rule"] == "per_seed_k"} == beyond != set()
    figures = json.loads((out / "summary.json").read_text())["curation"]["per_seed_k"]
    assert figures == {
        "seeds_by_k": {str(k): list(ks.values()).count(k) for k in sorted(set(ks.values()))},
        "num_beyond": len(beyond),
    }
    assert "K per seed: " in (out / "report.html").read_text()
    assert file in json.loads((out / "manifest.json").read_text())["inputs"]
    why = command(tmp_path, str(out), min(beyond), module="balance.why")
    assert "beyond the K of each seed that has it among its neighbours (rule per_seed_k)" in why.stdout
