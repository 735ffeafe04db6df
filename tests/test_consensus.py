"""`search.also`: a run that hears with two encoders, against its parts; and the errors for people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from balance import pipeline
from balance.config import Settings
from balance.data.config import DatasetConfig
from balance.encoders.config import EncoderConfig, Kind
from balance.errors import UserError
from balance.results.verification import verify
from balance.search.config import SearchConfig
from tests import worlds

K = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    return worlds.make(tmp_path_factory.mktemp("world"), seeds=6, pool=30, evaluation=2)


def run(folder: Path, world: worlds.World, name: str, *, plugin: str | None = None, also: tuple[str, ...] = ()) -> Path:
    encoder = EncoderConfig(checkpoint=str(world.checkpoint), device="cpu")
    if plugin is not None:
        encoder = EncoderConfig(kind=Kind.plugin, target=f"tests.encoders.plugins:{plugin}", device="cpu")
    out = folder / name
    out.mkdir()
    settings = Settings(
        k=K,
        dataset=DatasetConfig(root=str(world.root)),
        encoder=encoder,
        search=SearchConfig(also=list(also)),
        num_workers=2,
        cache_dir=str(folder / "cache"),
    )
    pipeline.run(settings, out)
    return out


def ranks(folder: Path) -> dict[str, list[str]]:
    table = pq.read_table(folder / f"neighbours_k{K}.parquet").to_pylist()
    found: dict[str, list[str]] = {}
    for row in table:
        found.setdefault(row["seed_id"], []).append(row["neighbour_id"])
    return found


def test_what_both_have_comes_first(tmp_path: Path, world: worlds.World) -> None:
    second = run(tmp_path, world, "second", plugin="Spectrum")
    (store,) = (path.name for path in (tmp_path / "cache" / "embeddings").iterdir())
    first = run(tmp_path, world, "first")
    assert "consensus" not in json.loads((first / "summary.json").read_text())
    both = run(tmp_path, world, "both", also=(store,))
    mine, theirs, found = ranks(first), ranks(second), ranks(both)
    summary = json.loads((both / "summary.json").read_text())["consensus"]
    for seed, chosen in found.items():
        shared = set(mine[seed]) & set(theirs[seed])
        assert set(chosen[: len(shared)]) == shared
        sums = [mine[seed].index(clip) + theirs[seed].index(clip) for clip in chosen[: len(shared)]]
        assert sums == sorted(sums)
        assert set(chosen[len(shared) :]) <= set(mine[seed]) ^ set(theirs[seed])
        assert summary["by_seed"][seed] == len(shared) / K
    assert summary["agreement"] == pytest.approx(np.mean(list(summary["by_seed"].values())))
    assert summary["stores"] == [store]
    labels = {record["id"]: record["labels"] for record in world.records("seeds")}
    for label, value in summary["by_label"].items():
        assert value == pytest.approx(np.mean([summary["by_seed"][s] for s in found if label in labels[s]]))
    page = (both / "report.html").read_text()
    assert "Agreement between encoders" in page
    assert store in page
    verify(str(both))  # raises where a similarity is not the exact one
    again = run(tmp_path, world, "again", also=(str(tmp_path / "cache" / "embeddings" / store),))
    for name in (f"neighbours_k{K}.parquet", f"augmented_k{K}.csv", "summary.json"):
        assert (again / name).read_bytes() == (both / name).read_bytes()


def test_what_is_no_store_is_said(tmp_path: Path, world: worlds.World) -> None:
    with pytest.raises(UserError, match=r"search\.also names nothing-here, which is no store"):
        run(tmp_path, world, "a", also=("nothing-here",))
    other = worlds.make(tmp_path / "other", seeds=3, pool=8, evaluation=1)
    for split in worlds.SPLITS:
        records = [{**record, "dir": f"moved_{record['dir']}"} for record in other.records(split)]
        other.write(split, records)
    for folder in sorted((tmp_path / "other").glob("all_*")):
        folder.rename(folder.with_name(f"moved_{folder.name}"))
    run(tmp_path, other, "b")
    (store,) = (path.name for path in (tmp_path / "cache" / "embeddings").iterdir())
    with pytest.raises(UserError, match="has none of these clips' paths"):
        run(tmp_path, world, "c", plugin="Spectrum", also=(store,))
