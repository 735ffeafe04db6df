"""Id lists of the user's own: what a list names never enters, everything else is as it would be without these clips."""

import csv
import hashlib
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from balance.curation.config import AugmentConfig
from balance.curation.id_lists import read_id_lists
from balance.data.config import Ids
from balance.data.vipant_index import read_index
from balance.errors import UserError
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


def test_included_clips_enter(base):
    world, folder, _, _ = base
    plain = run(folder, world, "hydra.run.dir=outputs/runs/include/plain")
    in_top = chosen(plain)
    order = [record["id"] for record in world.records("pool")]
    never = [clip for clip in order if clip not in in_top][:3]
    listed = {*never, next(iter(in_top))}
    seed = world.records("seeds")[1]["id"]
    (folder / "in.txt").write_text("".join(f"{clip}\n" for clip in [*listed, seed, "nobody"]))
    found = run(folder, world, "augment.include=in.txt", "hydra.run.dir=outputs/runs/include/found")

    rows = chosen(found)
    assert list(rows) == [clip for clip in order if clip in listed | in_top.keys()]
    assert {clip: row for clip, row in rows.items() if clip in in_top} == in_top
    for clip in never:
        assert [rows[clip][name] for name in rows[clip] if name.startswith(("num_", "best_"))] == ["0", "", "", ""]
        assert rows[clip]["audio"]
        assert why(str(found), clip) == [f"in: {clip} is in the list of augment.include (rule included)"]
    lines = why(str(found), next(iter(in_top)))
    assert "is a neighbour of" in lines[0]
    assert lines[1].endswith("(rule included)")
    index = [json.loads(line)["id"] for line in (found / "src_augmented_k5.csv").read_text().splitlines()]
    assert index == [record["id"] for record in world.records("seeds")] + list(rows)
    assert pq.read_table(found / "decisions.parquet").to_pylist() == [
        {"id": clip, "rule": "included", "by": None, "value": None} for clip in order if clip in listed
    ]
    for name in ("neighbours_k5.parquet", "neighbours_k5.jsonl"):
        assert (found / name).read_bytes() == (plain / name).read_bytes()
    summary = json.loads((found / "summary.json").read_text())
    assert (summary["curation"], summary["num_neighbours"]) == ({"included": 4}, len(rows))
    assert summary["num_neighbours"] == json.loads((plain / "summary.json").read_text())["num_neighbours"] + 3
    page = (found / "report.html").read_text()
    assert f"augment.include=in.txt: of 6 ids 1 are seeds ({seed}), 1 are of no pool clip (nobody)" in page
    assert "Included by hand: 4" in page
    assert verify(str(found))
    assert compare(str(plain), str(found))
    assert (found / "train_root").is_dir()
    shown = command(folder, str(found), "atlas.projection=pca", module="balance.atlas")
    assert shown.returncode == 0, shown.stderr
    of_clip = {row["id"]: row for row in pq.read_table(found / "atlas" / "atlas.parquet").to_pylist()}
    assert {of_clip[clip]["role"] for clip in listed} == {"neighbour"}


def test_included_clips_are_counted_like_seeds(base):
    world, folder, ranked, _ = base
    last = next(iter(ranked.values()))[-2:]
    (folder / "last.txt").write_text("\n".join(last))
    overrides = [*world.overrides(), f"k={K}", "augment.include=last.txt"]
    found = run(folder, world, "augment.include=last.txt", "augment.budget=8")  # 6 seeds and these two
    assert set(chosen(found)) == set(last)
    done = command(folder, *overrides, "augment.budget=7")
    assert done.returncode == 1
    assert "augment.budget=7 is below the 8 seeds and included clips, which always stay" in done.stderr


def test_inclusions_that_are_refused(base):
    world, folder, ranked, _ = base
    (folder / "both.txt").write_text(next(iter(ranked.values()))[0])
    evaluation = [record["id"] for record in world.records("eval")]
    (folder / "evaluation.txt").write_text("\n".join([next(iter(ranked.values()))[0], *evaluation]))
    for overrides, said in (
        (["augment.exclude=both.txt", "augment.include=both.txt"], "augment.exclude and augment.include both list"),
        (["augment.include=evaluation.txt"], f"lists 4 evaluation clips or copies of them ({', '.join(evaluation)})"),
    ):
        done = command(folder, *world.overrides(), f"k={K}", *overrides)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_copy_of_an_evaluation_clip_is_refused_and_a_clip_without_sound_stays_out(tmp_path):
    world = worlds.make(tmp_path / "world")
    pool = world.records("pool")
    shutil.copy(world.media(world.records("eval")[0]), world.media(pool[7]))
    world.media(pool[9]).write_bytes(b"no sound")
    (tmp_path / "in.txt").write_text(f"{pool[7]['id']}\n{pool[9]['id']}\n")
    overrides = ["augment.include=in.txt", "max_failures=0.1"]
    done = command(tmp_path, *world.overrides(), f"k={K}", *overrides, "augment.leaks=exact")
    assert done.returncode == 1
    assert f"augment.include lists 1 evaluation clips or copies of them ({pool[7]['id']})" in done.stderr
    found = run(tmp_path, world, *overrides)
    assert (
        f"1 clips have no embedding, or share sound with a seed, and do not enter ({pool[9]['id']})"
        in (found / "run.log").read_text()
    )
    assert pool[7]["id"] in chosen(found)
    assert pool[9]["id"] not in chosen(found)


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
    world, _, _, _ = base
    indexes = {split: read_index(world.index(split)) for split in worlds.SPLITS}
    if content is not None:
        (tmp_path / "out.txt").write_bytes(content)
    for name in ("exclude", "include"):
        with pytest.raises(UserError, match=re.escape(said)):
            read_id_lists(AugmentConfig(**{name: str(tmp_path / "out.txt")}), indexes, Ids.whole)


def test_a_list_that_leaves_too_few(base):
    world, folder, ranked, _ = base
    (folder / "most.txt").write_text("\n".join(next(iter(ranked.values()))[: 40 - K + 1]))
    done = command(folder, *world.overrides(), f"k={K}", "augment.exclude=most.txt")
    assert done.returncode == 1
    assert f"k={K} is more than the {K - 1} pool clips that can be neighbours" in done.stderr
