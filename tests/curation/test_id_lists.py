"""Id lists of the user's own: what a list names never enters, everything else is as it would be without these clips."""

import csv
import hashlib
import json

import pyarrow.parquet as pq
import pytest

from balance.results.comparison import compare
from balance.results.explain import why
from balance.results.verification import verify
from tests import worlds
from tests.command import command, run

K = 5  # as `tests.command.run` types it


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A world, a folder with its cache, and of each seed all pool clips, the most similar first, by a run of K = 40."""
    folder = tmp_path_factory.mktemp("lists")
    world = worlds.make(folder / "world")
    everything = run(folder, world, "k=40")
    ranked = {}
    for row in pq.read_table(everything / "neighbours_k40.parquet").to_pylist():
        ranked.setdefault(row["seed_id"], []).append(row["neighbour_id"])
    return world, folder, ranked, everything


def chosen(folder, k=K):
    rows = list(csv.DictReader((folder / f"augmented_k{k}.csv").read_text().splitlines()))
    return {row["id"]: row for row in rows if row["source"] == "neighbour"}


def test_excluded_clips_never_enter(base):
    world, folder, ranked, everything = base
    out = {clips[0] for clips in ranked.values()} | {next(iter(ranked.values()))[30]}
    seed = world.records("seeds")[0]["id"]
    ids = [*sorted(out), seed, "nobody"]
    (folder / "out.txt").write_text("\r\n".join([*ids[:2], "", *ids[2:], ids[0]]))
    found = run(folder, world, "augment.exclude=out.txt", "augment.controls=2")

    left = {seed: [clip for clip in clips if clip not in out][:K] for seed, clips in ranked.items()}
    table = pq.read_table(found / f"neighbours_k{K}.parquet").to_pylist()
    assert {s: [row["neighbour_id"] for row in table if row["seed_id"] == s] for s in ranked} == left
    assert set(chosen(found)) == {clip for clips in left.values() for clip in clips}
    for draw in found.glob("src_*_k5_?.csv"):
        assert not out & {json.loads(line)["id"] for line in draw.read_text().splitlines()}
    decisions = pq.read_table(found / "decisions.parquet").to_pylist()
    order = [record["id"] for record in world.records("pool")]
    assert decisions == [
        {"id": clip, "rule": "excluded", "by": None, "value": None} for clip in sorted(out, key=order.index)
    ]
    assert why(str(found), ids[0]) == [f"out: {ids[0]} is in the list of augment.exclude (rule excluded)"]
    summary = json.loads((found / "summary.json").read_text())
    assert (summary["curation"]["excluded"], summary["num_leaks"]) == (len(out), 0)
    assert summary["num_pool_eligible"] == 40 - len(out)

    page, log = (found / "report.html").read_text(), (found / "run.log").read_text()
    warning = f"augment.exclude=out.txt: of {len(ids)} ids 1 are seeds ({seed}), 1 are of no pool clip (nobody)"
    assert warning in page
    assert warning in log
    assert f"Excluded by hand: {len(out)}" in page
    manifest = json.loads((found / "manifest.json").read_text())
    path = str(folder / "out.txt")
    assert manifest["config"]["augment"]["exclude"] == path
    assert manifest["inputs"][path] == hashlib.sha256((folder / "out.txt").read_bytes()).hexdigest()
    assert verify(str(found))
    assert compare(str(everything), str(found))
    assert (found / "train_root").is_dir()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; it must hold ids of clips, one per line"),
        (b"\n \n", "holds no id"),
        (b"caf\xe9\n", "not UTF-8"),
        (b"\n\nblank at its end \n", "line 3: 'blank at its end ' is no id: a blank at its beginning or end"),
        (
            b"nobody\nno one\n",
            "of 2 ids 2 are of no pool clip (nobody, no one), so nothing is left: give ids of",
        ),
    ],
)
def test_lists_that_are_refused(base, content, said, tmp_path):
    world, folder, _, _ = base
    if content is not None:
        (tmp_path / "out.txt").write_bytes(content)
    done = command(folder, *world.overrides(), f"k={K}", f"augment.exclude={tmp_path / 'out.txt'}")
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_list_that_leaves_too_few(base):
    world, folder, ranked, _ = base
    (folder / "most.txt").write_text("\n".join(next(iter(ranked.values()))[: 40 - K + 1]))
    done = command(folder, *world.overrides(), f"k={K}", "augment.exclude=most.txt")
    assert done.returncode == 1
    assert f"k={K} is more than the {K - 1} pool clips that can be neighbours" in done.stderr
