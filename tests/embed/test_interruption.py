"""Nothing is lost when a run stops: real processes, real signals, real kills at any moment."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import worlds
from tests.command import command, contents, on_terminal, run_dir
from tests.worlds import World

POOL = 1100  # three parts on a CPU


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Few files under many names: parts enough to be interrupted between, made quickly."""
    return worlds.make_linked(tmp_path_factory.mktemp("world") / "data", pool=POOL)


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(store, outputs) of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = command(folder, *world.overrides(), "k=5")
    assert done.returncode == 0, done.stderr
    return store_of(folder), contents(run_dir(folder))


def store_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "outputs/cache/embeddings").glob("*/*") if p.is_file()}


def start(folder: Path, world: World, *overrides: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "balance.run", *world.overrides(), "k=5", *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_work(process: subprocess.Popen[str], folder: Path, num_parts: int) -> None:
    deadline = time.monotonic() + 120
    while len(list((folder / "outputs/cache/embeddings").glob("*/part-*"))) < num_parts:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(
    world: World, undisturbed: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    moments = random.Random(5)
    for num_parts in (0, 1, 2, 3):
        process = start(tmp_path, world, "num_processes=2" if num_parts == 2 else "num_processes=1")
        wait_for_work(process, tmp_path, num_parts)
        time.sleep(moments.uniform(0, 1.5) if num_parts else 2.0)
        process.kill()
        process.communicate()
    done = command(tmp_path, *world.overrides(), "k=5")
    assert done.returncode == 0, done.stderr
    assert (store_of(tmp_path), contents(run_dir(tmp_path))) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_it_in_order_within_ten_seconds(world: World, tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, world)
    wait_for_work(process, tmp_path, 1)
    process.send_signal(number)
    sent = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - sent < 10
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in said
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(("tmp-", "lock-", "use-"))]


def test_two_jobs_on_one_cache_share_the_work(
    world: World, undisturbed: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    cache = f"cache_dir={tmp_path}/a/outputs/cache"
    jobs = [start(tmp_path / name, world, cache) for name in ("a", "b")]
    said = [job.communicate(timeout=200)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert store_of(tmp_path / "a") == undisturbed[0]
    assert contents(run_dir(tmp_path / "a")) == contents(run_dir(tmp_path / "b")) == undisturbed[1]


def encoder_workers(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"balance.engine.local" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_an_encoder_worker_that_is_killed_leaves_its_parts_to_the_other(
    world: World, undisturbed: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    process = start(tmp_path, world, "num_processes=2")
    wait_for_work(process, tmp_path, 1)
    os.kill(encoder_workers(process)[0], signal.SIGKILL)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 0, said
    assert "a worker process died (SIGKILL)" in said
    assert (store_of(tmp_path), contents(run_dir(tmp_path))) == undisturbed


def test_all_encoder_workers_killed_is_one_sentence(world: World, tmp_path: Path) -> None:
    process = start(tmp_path, world, "num_processes=2")
    wait_for_work(process, tmp_path, 1)
    for pid in encoder_workers(process):
        os.kill(pid, signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "error: all encoder workers died (SIGKILL)" in said
    assert "Traceback" not in said
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(("tmp-", "lock-", "use-"))]


def test_a_job_that_starts_the_store_anew_takes_nothing_from_another(
    world: World, undisturbed: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    cache = f"cache_dir={tmp_path}/a/outputs/cache"
    first = start(tmp_path / "a", world, cache)
    wait_for_work(first, tmp_path / "a", 1)
    first.send_signal(signal.SIGSTOP)
    second = start(tmp_path / "b", world, cache, "refresh=true")
    assert second.stderr is not None
    while "waiting for other jobs that use the store" not in (line := second.stderr.readline()):
        assert line
    first.send_signal(signal.SIGCONT)
    said = [job.communicate(timeout=200)[1] for job in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert store_of(tmp_path / "a") == undisturbed[0]
    assert contents(run_dir(tmp_path / "a")) == contents(run_dir(tmp_path / "b")) == undisturbed[1]


def test_a_damaged_part_is_made_again(
    world: World, undisturbed: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    assert command(tmp_path, *world.overrides(), "k=5").returncode == 0
    part = max((tmp_path / "outputs/cache/embeddings").glob("*/part-*"), key=lambda p: p.stat().st_size)
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 64
    part.write_bytes(damaged)
    done = command(tmp_path, *world.overrides(), "k=5")
    assert "is damaged" in done.stderr
    assert (store_of(tmp_path), contents(run_dir(tmp_path))) == undisturbed


def test_a_cache_that_vanishes_is_one_clear_error(world: World, tmp_path: Path) -> None:
    process = start(tmp_path, world)
    wait_for_work(process, tmp_path, 1)
    store = next((tmp_path / "outputs/cache/embeddings").iterdir())
    store.rename(tmp_path / "unplugged")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert said.count("error:") == 1
    assert list((tmp_path / "unplugged").glob("part-*"))


def test_progress_for_a_log_and_for_a_terminal(world: World, tmp_path: Path) -> None:
    done = command(tmp_path, *world.overrides(), "k=5")
    assert "embedding 1,110 clips in 5 parts" in done.stderr
    assert " KB of store" in done.stderr
    assert "first part done: 6 of 1,110 clips" in done.stderr
    assert "\r" not in done.stderr
    typed = [sys.executable, "-m", "balance.run", *world.overrides(), "k=5", "refresh=true"]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    shown = on_terminal(typed, columns=120, cwd=tmp_path, env=given)
    assert "\rembedding:" in shown
    assert "clips/s" in shown
    assert "/1110" in shown
