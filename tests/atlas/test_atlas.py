"""The map's table against the run's own files, its sampling, its projections, and the page's data."""

from __future__ import annotations

import base64
import csv
import gzip
import importlib.util
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balance.atlas import clips, job, projection
from balance.atlas.config import AtlasConfig, Projection
from balance.config import AtlasSettings
from balance.errors import UserError
from balance.report.config import ReportConfig
from balance.results.explain import why
from tests import worlds
from tests.command import command, run
from tests.worlds import World


def make(folder: Path, **keys: Any) -> pa.Table:
    """The map of a run by principal components, which take no time; atlas.parquet."""
    config = AtlasConfig(**{"projection": Projection.pca, **keys})
    job.run(AtlasSettings(atlas=config, num_workers=2), str(folder))
    return pq.read_table(folder / "atlas" / "atlas.parquet")


def data_of(page: Path) -> dict[str, Any]:
    packed = re.search(r'id="data">([^<]*)<', page.read_text())
    assert packed
    content: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    return content


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path, pa.Table]:
    """A run in which a pool clip is an evaluation clip, one is broken, and a budget drops some."""
    world = worlds.make(tmp_path_factory.mktemp("atlas") / "data", pool=60)
    pool, evaluation = world.records("pool"), world.records("eval")
    pool[4] = evaluation[1]
    world.write("pool", pool)
    world.media(pool[9]).write_bytes(b"no sound")
    folder = run(world.root.parent, world, "augment.budget=18", "max_failures=0.1")
    return world, folder, make(folder)


def test_every_clip_is_shown_once_in_its_role(made: tuple[World, Path, pa.Table]) -> None:
    world, folder, table = made
    role = dict(zip(table["id"].to_pylist(), table["role"].to_pylist(), strict=True))
    assert len(role) == len(table)
    with (folder / "augmented_k5.csv").open() as file:
        source = {row["id"]: row["source"] for row in csv.DictReader(file)}
    dropped = {row["id"]: row["rule"] for row in pq.read_table(folder / "decisions.parquet").to_pylist()}
    failed = {json.loads(line)["id"] for line in (folder / "failures.jsonl").read_text().splitlines()}
    expected = {}
    for split, of_rest in (("eval", "eval"), ("pool", "pool"), ("seeds", "seed")):
        for record in world.records(split):
            expected[str(record["id"])] = of_rest
    expected |= dict.fromkeys(dropped, "dropped") | source
    assert role == {clip: role for clip, role in expected.items() if clip not in failed}
    assert {"seed", "neighbour", "dropped", "pool", "eval"} == set(role.values())
    rules = dict(zip(table["id"].to_pylist(), table["rule"].to_pylist(), strict=True))
    assert {clip: rule for clip, rule in rules.items() if rule is not None} == dropped
    about = json.loads((folder / "atlas" / "atlas.json").read_text())
    assert (about["method"], about["seed"]) == ("pca", 1213)
    assert sum(one["shown"] for one in about["clips"].values()) == len(table)


def test_columns_and_types_are_those_of_the_contract(made: tuple[World, Path, pa.Table]) -> None:
    _, folder, table = made
    names = "id role rule labels x y num_seeds best_seed_id best_similarity neighbours audio"
    assert table.schema.names == names.split()
    assert table.schema.field("neighbours").type == pa.list_(
        pa.struct([("id", pa.string()), ("similarity", pa.float32())])
    )
    exact = pq.read_table(folder / "neighbours_k5.parquet").to_pylist()
    with (folder / "augmented_k5.csv").open() as file:
        augmented = {row["id"]: row for row in csv.DictReader(file)}
    for row in table.to_pylist():
        if row["role"] == "seed":
            mine = [
                {"id": x["neighbour_id"], "similarity": x["similarity"]} for x in exact if x["seed_id"] == row["id"]
            ]
            assert row["neighbours"] == mine
            assert row["num_seeds"] is row["best_seed_id"] is row["best_similarity"] is None
            continue
        assert row["neighbours"] is None
        chosen = [x for x in exact if x["neighbour_id"] == row["id"]]
        assert row["num_seeds"] == (None if row["role"] == "eval" else len(chosen))
        if chosen:
            assert row["best_similarity"] == max(x["similarity"] for x in chosen)
        if row["role"] == "neighbour":
            said = augmented[row["id"]]
            assert (row["best_seed_id"], row["labels"], row["audio"]) == (
                said["best_seed_id"],
                said["labels"],
                said["audio"],
            )


def test_the_page_says_what_why_says_and_leads_to_the_sound(made: tuple[World, Path, pa.Table]) -> None:
    _, folder, table = made
    page = folder / "atlas" / "index.html"
    data = data_of(page)
    assert data["id"] == table["id"].to_pylist()
    for clip, sentence in list(zip(data["id"], data["why"], strict=True))[::3]:
        assert sentence == why(str(folder), clip)[0]
    for base in data["bases"]:
        links = [urlsplit(urljoin(page.resolve().as_uri(), base + audio)) for audio in data["audio"]]
        assert all(Path(unquote(link.path)).is_file() for link in links)
    assert len(data["pictured"]) == len(table)
    seed = table["neighbours"][0].as_py()
    assert [data["id"][at] for at in data["neighbours"][:5]] == [pair["id"] for pair in seed]
    np.testing.assert_allclose(data["similarities"][:5], [pair["similarity"] for pair in seed], atol=1e-6)


def test_a_small_map_shows_seeds_first_and_the_same_sample_again(
    made: tuple[World, Path, pa.Table], tmp_path: Path
) -> None:
    _, folder, whole = made
    first, again = (make(folder, max_clips=15, spectrograms=3, lines=12) for _ in range(2))
    data = data_of(folder / "atlas" / "index.html")
    make(folder)  # as the others expect it
    assert len(first) == 15
    assert first["id"].to_pylist() == again["id"].to_pylist()
    roles = first["role"].to_pylist()
    assert roles.count("seed") == whole["role"].to_pylist().count("seed")
    assert set(roles) == {"seed", "neighbour", "dropped"}
    assert len(data["pictured"]) == 3
    assert data["lines_per_seed"] == 2
    assert data["pictured"] == [0, 1, 2]


def test_who_is_shown_where_there_is_no_room() -> None:
    role = np.repeat(np.arange(5), (10, 40, 20, 300, 30))
    for room, expected in ((400, (10, 40, 20, 300, 30)), (100, (10, 40, 20)), (30, (10,)), (4, (4, 0, 0, 0, 0))):
        at = clips.choose(role, room, rng_seed=7)
        counts = np.bincount(role[at], minlength=5)
        assert len(at) == room == len(set(at.tolist()))
        assert counts[: len(expected)].tolist() == list(expected)
    assert set(clips.choose(role, 100, 1)) != set(clips.choose(role, 100, 2))


def test_principal_components_against_the_singular_values() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((50, 8)) * np.arange(8, 0, -1) + 5).astype(np.float32)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    u, s, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    found = projection.project(vectors, Projection.pca, 0)
    np.testing.assert_allclose(np.abs(found.points), np.abs(u[:, :2] * s[:2]), atol=1e-6)
    assert found.parameters["explained_variance"] == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), abs=1e-4)
    for odd in (vectors[:1], vectors[:3], vectors * 0, vectors[:, :1]):  # too few, alike, on a line
        found = projection.project(odd, Projection.umap, 0)
        assert found.method == "pca"
        assert np.isfinite(found.points).all()


def test_umap_is_seeded_and_keeps_groups_together() -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((3, 16)) * 4
    group = np.repeat(np.arange(3), 20)
    vectors = (centres[group] + 0.3 * rng.standard_normal((60, 16))).astype(np.float32)
    first, again = (projection.project(vectors, Projection.umap, 5) for _ in range(2))
    assert first.method == "umap"
    np.testing.assert_array_equal(first.points, again.points)
    far = np.linalg.norm(first.points[:, None] - first.points[None], axis=2)
    assert far[group[:, None] == group].max() < far[group[:, None] != group].min()


def test_without_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert projection.resolve(Projection.auto) is Projection.pca
    with pytest.raises(UserError, match=r"pip install 'audio-balance\[atlas\]'"):
        projection.resolve(Projection.umap)


def test_mistakes_are_one_line(made: tuple[World, Path, pa.Table], tmp_path: Path) -> None:
    world, folder, _ = made
    for typed, words in (
        (["atlas.max_clips=5"], "the folder of a run comes first"),
        ([str(tmp_path)], "no manifest.json"),
        ([str(folder), "atlas.max_clips=0"], "atlas.max_clips=0: at least 1"),
        ([str(folder), "atlas.max_clip=5"], "did you mean atlas.max_clips?"),
    ):
        done = command(tmp_path, *typed, module="balance.atlas")
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert words in line
    done = command(tmp_path, module="balance.atlas")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("python -m balance.atlas RUN_DIR [key=value …]\n")
    moved = world.index("pool").rename(world.root / "elsewhere.csv")
    lines = moved.read_text().splitlines(keepends=True)
    world.index("pool").write_text("".join(lines[30:]))
    try:
        with pytest.raises(UserError, match="it was changed since"):
            make(folder)
    finally:
        moved.rename(world.index("pool"))


def test_embedded_sound_and_another_place_of_the_media(made: tuple[World, Path, pa.Table]) -> None:
    _, folder, _ = made
    settings = AtlasSettings(
        atlas=AtlasConfig(projection=Projection.pca, spectrograms=0),
        report=ReportConfig(media_base="https://example.org/m", embed_audio=4),
        num_workers=2,
    )
    data = data_of(job.run(settings, str(folder)))
    assert data["bases"] == ["https://example.org/m/"]
    assert sorted(map(int, data["sounds"])) == [0, 1, 2, 3]
    assert all(sound.startswith("data:audio/mpeg;base64,") for sound in data["sounds"].values())
    assert not data["pictured"]
    make(folder)


def test_a_run_without_labels_that_dropped_nothing(tmp_path: Path) -> None:
    world = worlds.make(tmp_path / "data", pool=20)
    for split in ("seeds", "pool"):
        world.write(split, [record | {"labels": []} for record in world.records(split)])
    table = make(run(tmp_path, world, "dataset.eval=null"))
    assert set(table["role"].to_pylist()) == {"seed", "neighbour", "pool"}
    assert set(table["labels"].to_pylist()) == {""}
