"""From Python: a run as the command makes it, a finished run's tables, and the exact search alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import balance
from tests import worlds
from tests.command import contents, run
from tests.search_reference import crowded, reference
from tests.worlds import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("world") / "data", seeds=4, pool=12, evaluation=2)


def test_a_run_from_python_is_the_command_s(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(tmp_path, world, "k=3")
    monkeypatch.chdir(tmp_path)
    done = balance.run(*world.overrides(), "k=3")
    again = balance.run(*world.overrides(), "k=3")
    assert len({expected, done.path.absolute(), again.path.absolute()}) == 3
    assert contents(done.path) == contents(again.path) == contents(expected)
    assert (tmp_path / "outputs" / "latest").resolve() == again.path.resolve()
    opened = balance.open_run("outputs/latest")
    assert opened.summary["k"] == opened.manifest["config"]["k"] == 3
    assert opened.augmented["id"].to_pylist() == (done.path / "ids_k3.csv").read_text().split()
    assert opened.neighbours.num_rows == 4 * 3
    seed = opened.neighbours["seed_id"][0].as_py()
    assert opened.why(seed)[0] == f"in: {seed} is a seed"
    assert "k = 3" in repr(opened)


def test_a_notebook_shows_the_run_with_its_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = worlds.make(tmp_path / "data", seeds=4, pool=12, evaluation=2)
    monkeypatch.chdir(tmp_path)
    done = balance.run(*own.overrides(), "k=3")
    shown = done._repr_html_()
    assert "label agreement@3" in shown
    assert "<svg" in shown
    neighbours = done.neighbours
    for row in range(0, 12, 3):
        similarity = neighbours["similarity"][row].as_py()
        assert f"<b>{neighbours['neighbour_id'][row].as_py()}</b>" in shown
        assert f"rank 1, similarity {similarity:.4f}" in shown
    assert shown.count("data:audio/mpeg") == shown.count("data:image/png") == 8
    for folder in own.root.glob("all_*"):
        shutil.rmtree(folder)
    without = balance.open_run(done.path)._repr_html_()
    assert "data:audio" not in without
    assert without.count("no sound here") == 8


@pytest.mark.parametrize(
    ("overrides", "words"),
    [(["K=3"], "did you mean k?"), (["k=0"], "at least 1"), (["k=1000"], "k=1000"), (["dataset=x"], "no such choice")],
)
def test_a_mistake_is_an_exception_with_the_command_s_sentence(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(balance.UserError, match=words.replace("?", r"\?")):
        balance.run(*world.overrides(), *overrides)
    assert not list(tmp_path.rglob("outputs/runs/*/*"))
    with pytest.raises(balance.UserError, match="no such folder"):
        balance.open_run(tmp_path / "none")


def test_exact_top_k_of_arrays_and_tensors() -> None:
    seeds, pool = crowded(5, 24, 0.9, seed=1), crowded(60, 24, 0.9, seed=2)
    positions, similarities = reference(seeds, pool, 7)
    for convert in (np.asarray, torch.from_numpy, lambda x: x.astype(np.float64), np.asfortranarray):
        found = balance.exact_top_k(convert(seeds), convert(pool), 7, device="cpu")
        assert found[0].dtype == np.int32
        assert found[1].dtype == np.float32
        np.testing.assert_array_equal(found[0], positions)
        np.testing.assert_array_equal(found[1], similarities)
    with pytest.raises(balance.UserError, match="k=61"):
        balance.exact_top_k(seeds, pool, 61, device="cpu")
    with pytest.raises(balance.UserError, match=r"seeds: an array of shape \(24,\)"):
        balance.exact_top_k(seeds[0], pool, 1, device="cpu")
    pool[3, 3] = np.nan
    with pytest.raises(balance.UserError, match="pool, row 3"):
        balance.exact_top_k(seeds, pool, 1, device="cpu")
