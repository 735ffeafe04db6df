"""A run whose cache lies in a bucket: the same bytes as from disk, whatever the server does and whoever dies."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from balance import pipeline
from balance.config import AuditSettings, Settings
from balance.data.config import DatasetConfig, Format
from balance.embed import parts, store, worker
from balance.embed.store import Store
from balance.encoders.config import EncoderConfig
from balance.engine.config import ExecutorConfig, Kind
from balance.engine.seam import Place, TaskList, Visible, Work
from balance.errors import UserError
from balance.results.read_run import Run
from balance.results.run_splits import open_splits
from balance.results.verification import verify
from balance.runtime import remote
from balance.runtime.remote import RemotePath, Unreachable
from balance.search import ranges
from tests import object_store, worlds
from tests.command import command, contents, run_dir
from tests.object_store import Bucket, Faulty
from tests.paths import REPOSITORY
from tests.worlds import World

K = 5


class Here:
    """An engine that hands out all tasks to one worker, this process."""

    device = "cpu"

    def __str__(self) -> str:
        return "this process"

    def must_see(self, visible: Sequence[Visible]) -> None:
        assert all(one.is_seen() for one in visible)

    def run(self, work: Work, setup: Any, tasks: TaskList[Any], on_message: Callable[[Any], None]) -> None:
        work(setup, Place(device="cpu", num_cores=1), _Given(tasks), on_message)


class _Given:
    is_shared = False

    def __init__(self, tasks: TaskList[Any]) -> None:
        self._tasks = tasks

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return ((number, self._tasks[number]) for number in range(len(self._tasks)))

    def finish(self, number: int) -> None:
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make_linked(tmp_path_factory.mktemp("world") / "data", pool=60)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with object_store.s3() as server:
        yield server


@pytest.fixture(autouse=True)
def _reach(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    """Several parts and slices; short pauses; nothing of another test in the bucket or a connection."""
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    fresh()
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setitem(parts.PART_CLIPS, "cpu", 16)
    monkeypatch.setattr(ranges, "SLICE_ROWS", 25)
    monkeypatch.setattr(pipeline, "_connect", connect)
    for key in keys(bucket):
        bucket.client.delete_object(Bucket="bucket", Key=key)


def fresh() -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def connect(settings: Settings, uses: contextlib.ExitStack) -> Any:
    here = Here()
    here.must_see(pipeline.preflight.visible_cache(uses.enter_context(pipeline.preflight.marker(settings.cache))))
    return contextlib.nullcontext(here)


def keys(bucket: Bucket) -> list[str]:
    return [found["Key"] for found in bucket.client.list_objects_v2(Bucket="bucket").get("Contents", [])]


def stored(bucket: Bucket, suffix: str = ".arrow") -> dict[str, bytes]:
    return {
        key.rpartition("/")[2]: bucket.client.get_object(Bucket="bucket", Key=key)["Body"].read()
        for key in keys(bucket)
        if key.endswith(suffix)
    }


def settings(world: World, cache: str, **keys: Any) -> Settings:
    return Settings(
        k=K,
        dataset=DatasetConfig(root=str(world.root), media=str(world.root)),
        encoder=EncoderConfig(checkpoint=str(world.checkpoint)),
        executor=ExecutorConfig(kind=Kind.ray if cache.startswith("s3:") else Kind.local),
        num_workers=1,
        cache_dir=cache,
        **keys,
    )


def run(chosen: Settings, folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    pipeline.run(chosen, folder)
    return contents(folder)


def searched(chosen: Settings) -> list[bytes]:
    """The first half of a run: what its files follow from."""
    with pipeline.Kept() as kept:
        found = pipeline.prepare(chosen, kept).neighbours
    return [found.seed_rows.tobytes(), found.pool_rows.tobytes(), found.similarities.tobytes()]


@dataclass(frozen=True)
class Alone:
    """A run of executor=local. outputs: its files; searched: as of `searched`; parts: of its store."""

    cache: Path
    outputs: dict[str, bytes]
    searched: list[bytes]

    @property
    def parts(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.cache.glob("embeddings/*/part-*")}


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parts.PART_CLIPS, "cpu", 16)
        chosen = settings(world, str(folder / "cache"))
        return Alone(folder / "cache", run(chosen, folder / "run"), searched(chosen))


def test_the_same_bytes_as_from_disk(world: World, bucket: Bucket, alone: Alone, tmp_path: Path) -> None:
    assert run(settings(world, "s3://bucket/cache"), tmp_path / "run") == alone.outputs
    assert stored(bucket) == alone.parts
    here = {f"cache/{path.relative_to(alone.cache)}" for path in alone.cache.rglob("*") if path.is_file()}
    assert set(keys(bucket)) == here  # no locks, marks, drafts, pieces of the search
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_cache_from_disk_is_one_in_a_bucket(
    world: World, bucket: Bucket, alone: Alone, caplog: pytest.LogCaptureFixture
) -> None:
    """So it is to a second driver: nothing is done again."""
    bucket.upload(alone.cache, "cache/")
    caplog.set_level("INFO")
    seen = Faulty(bucket.address)
    with seen.serving() as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        assert searched(settings(world, "s3://bucket/cache")) == alone.searched
    assert "pool: 0 to embed" in caplog.text
    assert "pool slices on" not in caplog.text
    assert [path.partition("seen-")[1] for method, path in seen.seen if method == "PUT"] == ["seen-"]


def test_a_store_in_a_bucket_gives_the_rows_of_one_on_disk(
    world: World, bucket: Bucket, alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any rows, in any order, from several threads, with a temporary file that holds two parts."""
    for name, data in alone.parts.items():
        (tmp_path / name).write_bytes(data)
    bucket.upload(tmp_path, "store/")
    here, there = Store(tmp_path), Store(RemotePath("s3://bucket/store"))
    assert there.ids == here.ids
    assert there.identity(np.arange(len(here))) == here.identity(np.arange(len(here)))
    monkeypatch.setattr(store, "AT_ONCE", 2)
    monkeypatch.setattr("balance.embed.part_copies.MOST_BYTES", 2 * 16 * 4 * here.dim)
    order = np.random.default_rng(1).permutation(len(here))
    ours, theirs = there.vectors(order), here.vectors(order)
    wanted = theirs.read(0, len(order))
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda a=a: found.append((a, ours.read(a, a + 40)))) for a in (0, 7, 20) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    assert all(rows.tobytes() == wanted[a : a + 40].tobytes() for a, rows in found)
    assert ours.portable(np.arange(3, 9)).take(np.array([4, 0])).tobytes() == wanted[[7, 3]].tobytes()
    assert ours.name(5) == theirs.name(5)
    assert ours.read(4, 4).shape == (0, here.dim)


def test_broken_answers_cost_time_and_nothing_else(
    world: World, bucket: Bucket, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = itertools.count()
    faults = ["500", *[None] * 4, "short", *[None] * 4, "half", *[None] * 3, "hang", *[None] * 4, "cut", *[None] * 3]
    server = Faulty(bucket.address, lambda method, path: faults[next(count) % len(faults)], hang_s=0.2)
    with server.serving() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert searched(settings(world, "s3://bucket/cache")) == alone.searched
    assert stored(bucket) == alone.parts
    assert len(server.seen) > 2 * len(faults)


def test_a_bucket_that_vanishes_ends_the_run_and_what_is_done_stays(
    world: World, bucket: Bucket, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it embeds, then while it searches."""
    chosen = settings(world, "s3://bucket/cache")
    sent: list[str] = []
    for what, kept in (("part-", 2), ("keys-", 1), ("nothing", 0)):
        begun = len(sent)

        def fault(method: str, path: str, what: str = what, most: int = begun + kept) -> str | None:
            if method == "PUT" and (what in path or "part-" in path):
                if what in path and len(sent) >= most:
                    return "gone"
                sent.append(path)
            return None

        fresh()
        with Faulty(bucket.address, fault).serving() as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            if kept:
                said = f"s3://bucket/cache/.*{what}.* no such bucket, or it is gone.*is kept"
                with pytest.raises(Unreachable, match=said):
                    searched(chosen)
            else:
                assert searched(chosen) == alone.searched
    assert len(set(sent)) == len(sent)  # nothing is made again
    assert stored(bucket) == alone.parts


def test_a_damaged_part_is_made_again(
    world: World, bucket: Bucket, alone: Alone, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.upload(alone.cache, "cache/")
    first = next(key for key in keys(bucket) if "/part-" in key)
    data = bytearray(bucket.client.get_object(Bucket="bucket", Key=first)["Body"].read())
    data[len(data) // 2] ^= 1
    bucket.client.put_object(Bucket="bucket", Key=first, Body=bytes(data))
    assert searched(settings(world, "s3://bucket/cache")) == alone.searched
    assert "is damaged (its checksum does not match): not used, made again" in caplog.text
    assert stored(bucket) == alone.parts


def test_two_drivers_embed_at_once(world: World, bucket: Bucket, alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other makes everything while this one is about to write its first part, which it then writes once more."""
    chosen = settings(world, "s3://bucket/cache")
    real = worker.store_files.write_part
    others: list[list[str]] = []

    def late(*args: Any) -> Any:
        monkeypatch.setattr(worker.store_files, "write_part", real)
        assert searched(chosen) == alone.searched
        others.append([key for key in keys(bucket) if "seen-" not in key])  # this one looks who sees it
        return real(*args)

    monkeypatch.setattr(worker.store_files, "write_part", late)
    assert searched(chosen) == alone.searched
    assert others == [keys(bucket)]
    assert stored(bucket) == alone.parts


def test_two_drivers_search_at_once_and_the_slower_takes_what_the_other_kept(
    world: World, bucket: Bucket, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other keeps its result and removes the keys while this one merges them."""
    chosen = settings(world, "s3://bucket/cache")
    real = ranges.merged

    def late(pieces: Any, k: int) -> Any:
        monkeypatch.setattr(ranges, "merged", real)
        assert searched(chosen) == alone.searched
        return real(pieces, k)

    monkeypatch.setattr(ranges, "merged", late)
    assert searched(chosen) == alone.searched
    assert len(stored(bucket, ".npz")) == 1


def test_refresh_empties_the_store(world: World, bucket: Bucket, alone: Alone) -> None:
    bucket.upload(alone.cache, "cache/")
    (folder,) = {key.rpartition("/")[0] for key in keys(bucket) if "/part-" in key}
    bucket.client.put_object(Bucket="bucket", Key=f"{folder}/part-0-0.arrow", Body=b"old")
    assert searched(settings(world, "s3://bucket/cache", refresh=True)) == alone.searched
    assert stored(bucket) == alone.parts


def test_a_bucket_that_is_not_there_is_said_first(world: World) -> None:
    with pytest.raises(UserError, match=r"s3://no-such-bucket/cache/seen-.* there is no such bucket"):
        searched(settings(world, "s3://no-such-bucket/cache"))


def test_a_finished_cache_that_may_only_be_read_will_do(
    world: World, bucket: Bucket, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload(alone.cache, "cache/")
    chosen = settings(world, "s3://bucket/cache")
    with Faulty(bucket.address, lambda method, path: "denied" if method == "PUT" else None).serving() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert searched(chosen) == alone.searched
        with pytest.raises(UserError, match=r"s3://bucket/cache/embeddings/.*: Access Denied\. Log in the way of the"):
            searched(replace(chosen, refresh=True))


def test_a_node_without_credentials_does_not_see_the_bucket(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    path = RemotePath("s3://bucket/seen-0")
    path.write_bytes(b"")
    assert Visible("cache_dir", path).is_seen()
    assert not Visible("cache_dir", RemotePath("s3://no-such-bucket/seen-0")).is_seen()
    with Faulty(bucket.address, lambda method, path: "denied").serving() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        fresh()
        assert not Visible("cache_dir", path).is_seen()


RAY = ExecutorConfig(kind=Kind.ray)


@pytest.mark.parametrize(
    ("cache", "given", "said"),
    [
        ("s3://b/x", {}, "cache_dir=s3://b/x: only executor=ray keeps its cache behind a URL: type executor=ray, or a"),
        ("https://b/x", {"executor": RAY}, "nothing can be written there"),
        ("s3://me:word@b/x", {"executor": RAY}, "cache_dir=s3://…@b/x: a URL must not hold a user or password"),
        ("s3://b/x", {"executor": RAY, "dataset": DatasetConfig(format=Format.embeddings)}, "type a folder that every"),
    ],
)
def test_what_cannot_be_is_said(cache: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(cache_dir=cache, **given)


def test_commands_that_need_a_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cache_dir=s3://b/x: a folder on disk is needed here, such as outputs/cache"):
        _ = AuditSettings(cache_dir="s3://b/x", executor=RAY).cache_folder
    done = command(tmp_path, "dataset=demo", "executor=ray", "cache_dir=s3://bucket/x")
    assert done.returncode == 1
    assert "error: dataset=demo makes its files in cache_dir, which must then be a folder" in done.stderr


@pytest.mark.timeout(200)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_command_is_killed_and_goes_on_and_its_run_is_read(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = worlds.make_linked(tmp_path / "data", pool=600)  # two parts
    overrides = [*linked.overrides(), f"k={K}", "executor=ray", "cache_dir=s3://bucket/killed"]
    first = subprocess.Popen(
        [sys.executable, "-m", "balance.run", *overrides],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not stored(bucket):
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    done = command(tmp_path, *overrides, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    assert "embedding 610 clips" not in done.stderr
    folder = run_dir(tmp_path)
    monkeypatch.setitem(parts.PART_CLIPS, "cpu", 512)
    assert contents(folder) == run(settings(linked, str(tmp_path / "cache")), folder.with_name("local"))
    assert stored(bucket) == {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("*/*/part-*")}
    for file in folder.rglob("*"):
        assert not file.is_file() or b"secret-testing" not in file.read_bytes(), file
    assert "neighbour rows follow" in verify(str(folder))[0]
    assert len(open_splits(Run.read(str(folder)))["pool"].embedded) == 600
