"""Ray's engine on real raylets of one machine: workers and nodes die, and every task is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster as Raylets

from balance.engine.config import ExecutorConfig
from balance.engine.ray import Cluster
from balance.engine.seam import DeadlyTask, Visible
from balance.errors import UserError
from balance.search import ranges
from balance.search.config import Backend, SearchConfig
from balance.search.top_k import ArrayVectors, search
from tests.engine.cluster_work import Setup, note
from tests.paths import REPOSITORY

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
STORE_BYTES = 80 << 20  # Ray's least is 75 MiB
BULK = bytes(300_000)  # a task of this size is sent in pieces


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    """A head that gets no work; nodes are added by the tests."""
    found = Raylets(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def nodes(raylets: Raylets) -> list[Any]:
    """Two nodes of one CPU; the last tests lose them."""
    return [raylets.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]


def connect(raylets: Raylets, **keys: Any) -> Cluster:
    return Cluster(ExecutorConfig(address=raylets.address, **keys), "auto")


def done(folder: Path) -> set[int]:
    return {int(file.name.split("-")[1]) for file in folder.glob("task-*")}


def test_tasks_are_done_by_all_nodes_and_twice_by_the_same_workers(
    raylets: Raylets, nodes: list[Any], tmp_path: Path
) -> None:
    """500 tasks of 300 kB, twice the object store, none of which stay in it."""
    with connect(raylets) as cluster:
        assert cluster.device == "cpu"
        assert str(cluster) == "2 workers on 2 nodes"
        for folder, sleep_s in ((tmp_path / "a", 0.0), (tmp_path / "b", 0.01)):
            folder.mkdir()
            told: list[Any] = []
            cluster.run(note, Setup(folder, sleep_s=sleep_s), [BULK] * 500, told.append)
            assert sorted(number for number, _, _ in told) == list(range(500))
            assert {size for _, size, _ in told} == {len(BULK)}
            assert done(folder) == set(range(500))
        pids = [sorted(file.name for file in folder.glob("pid-*")) for folder in (tmp_path / "a", tmp_path / "b")]
        assert pids[0] == pids[1]
        assert len(pids[0]) == 2
    assert not ray.is_initialized()


def test_a_task_that_kills_its_workers_is_named(raylets: Raylets, nodes: list[Any], tmp_path: Path) -> None:
    with connect(raylets) as cluster:
        with pytest.raises(DeadlyTask) as named:
            cluster.run(note, Setup(tmp_path, kills=3), [b"x"] * 10, lambda _: None)
        assert (named.value.number, named.value.deaths) == (3, 3)
        with pytest.raises(UserError, match="type something else"):  # it goes on with new workers
            cluster.run(note, Setup(tmp_path, fails=2), [b"x"] * 10, lambda _: None)


def test_a_node_that_does_not_see_a_file_is_named(raylets: Raylets, nodes: list[Any], tmp_path: Path) -> None:
    with connect(raylets) as cluster:
        cluster.must_see([Visible("dataset.media", tmp_path / "absent")])
        with pytest.raises(UserError, match=r"node \S+ .*does not see \S+absent \(dataset.media\)"):
            cluster.run(note, Setup(tmp_path), [b"x"], lambda _: None)


def test_what_cannot_be_is_said_at_once(raylets: Raylets, nodes: list[Any]) -> None:
    for config, device, words in (
        (ExecutorConfig(address="127.0.0.1:9"), "auto", "nothing answers there"),
        (ExecutorConfig(address=raylets.address, cpus=99), "auto", "has room for a worker"),
        (ExecutorConfig(address=raylets.address, gpus=1), "auto", "no node of the Ray cluster has a GPU"),
        (ExecutorConfig(address=raylets.address), "cuda", "no worker gets a GPU"),
        (ExecutorConfig(address=raylets.address), "cuda:1", "type encoder.device=cuda"),
    ):
        started = time.monotonic()
        with pytest.raises(UserError, match=words):
            Cluster(config, device)
        assert time.monotonic() - started < 30
        assert not ray.is_initialized()


def test_signal_handlers_are_ours_again(raylets: Raylets, nodes: list[Any]) -> None:
    def ours(number: int, frame: Any) -> None: ...

    before = signal.signal(signal.SIGTERM, ours)
    try:
        with connect(raylets):
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_node_that_is_lost_in_a_search_changes_no_byte(
    raylets: Raylets,
    nodes: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ranges, "SLICE_ROWS", 70)
    monkeypatch.setattr(ranges, "RANGE_SEEDS", 11)
    config = SearchConfig(backend=Backend.torch)
    rows = np.random.default_rng(5).standard_normal((2032, 24)).astype(np.float32)
    seeds, pool = ArrayVectors(rows[:32]), ArrayVectors(rows[32:])
    wanted = search(rows[:32], pool, 20, config, device=torch.device("cpu"))
    lost = raylets.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    folder, shares = tmp_path / "search", []
    with connect(raylets) as cluster:

        def progress(done: int, total: int) -> None:
            if not shares and done > total / 20:
                shares.append(done / total)
                raylets.remove_node(lost, allow_graceful=False)

        found = ranges.search_ranges(cluster, seeds, pool, 20, config, folder=folder, progress=progress)
    assert shares[0] < 0.9
    assert "a worker on " in caplog.text
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_a_killed_worker_and_a_lost_node_cost_nothing(
    raylets: Raylets, nodes: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(raylets) as cluster:

        def lose_a_node() -> None:
            while len(done(tmp_path)) < 12:
                time.sleep(0.05)
            raylets.remove_node(nodes[1], allow_graceful=False)

        losing = threading.Thread(target=lose_a_node)
        losing.start()
        told: list[Any] = []
        cluster.run(note, Setup(tmp_path, kills=7, once=True, sleep_s=0.15), [b"x"] * 60, told.append)
        losing.join()
        assert {number for number, _, _ in told} == set(range(60))
        assert done(tmp_path) == set(range(60))
    assert "died (killed, or crashed); its work is left to the others" in caplog.text


def test_a_lost_head_is_one_sentence(raylets: Raylets, nodes: list[Any], tmp_path: Path) -> None:
    job = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.ray_job", raylets.address, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(tmp_path.glob("pid-*")):
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.1)
    raylets.remove_node(raylets.head_node, allow_graceful=False)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 1, said
    assert said.splitlines()[-1].startswith("error: the head of the Ray cluster has not answered for ")
    assert all(line.startswith("a worker on ") for line in said.splitlines()[:-1])
