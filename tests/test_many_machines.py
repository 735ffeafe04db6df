"""`executor=ray` as a user types it: the same bytes as on one machine, whatever dies, and a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster as Raylets

from tests import worlds
from tests.command import command, contents, run_dir
from tests.paths import REPOSITORY
from tests.worlds import World

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
POOL = 1100  # three parts on a CPU
STORE_BYTES = 80 << 20  # Ray's least is 75 MiB: less than the clips' sound


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Few files under many names: parts enough to die between, made quickly."""
    return worlds.make_linked(tmp_path_factory.mktemp("world") / "data", pool=POOL)


Bytes = tuple[dict[str, bytes], dict[str, bytes]]


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    """(store, outputs) of executor=local."""
    folder = tmp_path_factory.mktemp("alone")
    done = command(folder, *world.overrides(), "k=5")
    assert done.returncode == 0, done.stderr
    return made(folder)


def made(folder: Path) -> Bytes:
    store = (folder / "outputs/cache/embeddings").glob("*/*")
    return {p.name: p.read_bytes() for p in store if p.is_file()}, contents(run_dir(folder))


def start(folder: Path, world: World, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "balance.run", *world.overrides(), "k=5", "executor=ray", *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_parts(process: subprocess.Popen[str], folder: Path, num_parts: int) -> None:
    deadline = time.monotonic() + 120
    while len(list((folder / "outputs/cache/embeddings").glob("*/part-*"))) < num_parts:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rays(parent: int) -> list[int]:
    """The processes of Ray that a driver started and that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if lives(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.fixture
def raylets() -> Iterator[Raylets]:
    """A head that gets no work, and two nodes of one CPU."""
    options: dict[str, Any] = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    found = Raylets(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    yield found
    found.shutdown()


def test_a_node_is_lost_and_the_driver_killed_and_the_bytes_are_the_same(
    world: World, alone: Bytes, raylets: Raylets, tmp_path: Path
) -> None:
    address = f"executor.address={raylets.address}"
    first = start(tmp_path, world, address)
    wait_for_parts(first, tmp_path, 1)
    first.kill()
    first.communicate()
    second = start(tmp_path, world, address)
    wait_for_parts(second, tmp_path, 2)
    raylets.remove_node(next(iter(raylets.worker_nodes)), allow_graceful=False)
    said, _ = second.communicate(timeout=200)
    assert second.returncode == 0, said
    assert "raylet" not in said  # Ray's own words are in Ray's own logs
    assert made(tmp_path) == alone


def test_a_sweep_on_this_machine_embeds_once_and_leaves_nothing(world: World, alone: Bytes, tmp_path: Path) -> None:
    """Ray is started for the run, and ends with it."""
    done = command(tmp_path, "-m", *world.overrides(), "k=3,5", "executor=ray", PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("embedding 1,1") == 1
    assert done.stderr.count("pool slices on") == 1
    (folder,) = (tmp_path / "outputs/sweeps").glob("*/*/1-k5")
    assert contents(folder) == alone[1]
    assert not list((tmp_path / "outputs/cache").glob("seen-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process(world: World, tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, world)
    wait_for_parts(process, tmp_path, 1)
    children = rays(process.pid)
    assert len(children) >= 2  # Ray's head and node
    workers = [pid for child in children for pid in rays(child)]
    if number == signal.SIGKILL:  # Ray's own agents take a raylet that nobody waits for, as in containers, for alive
        workers = [pid for pid in workers if b"Agent" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    process.send_signal(number)
    sent = time.monotonic()
    said, _ = process.communicate(timeout=30)
    assert time.monotonic() - sent < 12
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    if number == signal.SIGINT:
        assert "stopped by SIGINT" in said
        assert "Traceback" not in said
    wait_until_dead([*children, *workers])


def test_without_ray_the_pip_line_is_said(world: World, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')\n")
    done = command(tmp_path, *world.overrides(), "k=5", "executor=ray", PYTHONPATH=f"{blocked}:{REPOSITORY}")
    assert done.returncode == 1
    assert "pip install 'audio-balance[ray]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_that_submitit_requeues_loses_nothing(world: World, alone: Bytes, tmp_path: Path) -> None:
    """Its signal ends the job in order, with a checkpoint; the job that comes back goes on. As the cluster would, the
    checkpoint is started again here: Submitit's local executor only says that it should be."""
    overrides = ["-m", *world.overrides(), "k=5", "hydra/launcher=submitit_local"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "balance.run", *overrides],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_parts(launcher, tmp_path, 1)
    (controller,) = rays(launcher.pid)
    (job,) = rays(controller)
    os.kill(job, signal.SIGUSR2)
    launcher.communicate(timeout=60)
    (told,) = (tmp_path / "outputs/sweeps").glob("*/*/.submitit/*/*_log.out")
    assert "Requeued job" in told.read_text()
    folder = told.parent
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(("tmp-", "lock-", "use-"))]
    again = subprocess.run(
        [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_JOB_ID": folder.name,
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_GLOBALID": "0",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr
    (run,) = (tmp_path / "outputs/sweeps").glob("*/*/0-k5")
    store = (tmp_path / "outputs/cache/embeddings").glob("*/*")
    assert ({p.name: p.read_bytes() for p in store}, contents(run)) == alone
