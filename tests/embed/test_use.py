"""A store in use is not emptied, and what was planned is embedded, recorded, or made again: nothing goes missing."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balance import pipeline
from balance.embed import stage, use
from balance.embed.use import Use
from balance.errors import UserError
from tests.command import contents
from tests.paths import REPOSITORY
from tests.test_refusals import finished, refused, settings, shared, world  # noqa: F401
from tests.worlds import World

USER = """
import sys
from pathlib import Path
from balance.embed.use import Use
with Use(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for name in ("part-a-1.arrow", "confirmed-b-2.arrow", "meta.json", "notes.txt"):
        (tmp_path / name).write_text("kept")
    return tmp_path


@pytest.fixture
def user(store: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the store until its stdin ends."""
    process = subprocess.Popen([sys.executable, "-c", USER, str(store)], cwd=REPOSITORY, stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.communicate()


def test_refresh_empties_a_store_that_nobody_uses(store: Path) -> None:
    with Use(store) as mine, Use(store):  # marks of this process are its own affair
        mine.empty()
        assert sorted(p.name for p in store.iterdir() if not p.name.startswith("use-")) == ["notes.txt"]
        assert len(list(store.glob("use-*"))) == 2
    assert sorted(p.name for p in store.iterdir()) == ["notes.txt"]


@pytest.mark.parametrize("how", ["ends", "killed"])
def test_refresh_waits_for_others(
    store: Path, user: subprocess.Popen[str], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with Use(store) as mine:
        emptying = threading.Thread(target=mine.empty)
        emptying.start()
        while "waiting for other jobs" not in caplog.text:
            time.sleep(0.01)
        assert f"-{user.pid}" in caplog.text
        assert (store / "part-a-1.arrow").exists()
        if how == "killed":
            user.kill()
        else:
            user.communicate()
        emptying.join(30)
        assert not (store / "part-a-1.arrow").exists()


def test_two_that_refresh_do_not_wait_for_each_other(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Use(store), Use(store)
    first._process, second._process = "use-a-1-", "use-b-2-"  # as in two processes
    for one in (first, second):
        one.close()
        one.enter()
    threads = [threading.Thread(target=one.empty) for one in (first, second)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while not any(not thread.is_alive() for thread in threads):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    done = next(one for one, thread in zip((first, second), threads, strict=True) if not thread.is_alive())
    done.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    first.close()
    second.close()


def test_whoever_comes_while_a_store_is_emptied_waits(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use, "_LOOK_AGAIN_S", 0.01)
    lock = use.locks.acquire(store / "lock-emptying")
    assert lock is not None
    coming = threading.Thread(target=lambda: Use(store).close())
    coming.start()
    coming.join(0.3)
    assert coming.is_alive()
    lock.release()
    coming.join(30)
    assert not coming.is_alive()


def test_a_part_that_vanishes_is_made_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """As by another job that empties the store, or by hand; then the same bytes as undisturbed."""
    expected = contents(finished(world, cache="other"))
    embed_on = stage.embed_on
    calls: list[int] = []

    def embed_and_lose(task, *rest):  # type: ignore[no-untyped-def]
        embed_on(task, *rest)
        calls.append(len(task.plan))
        if len(calls) < 3:
            max(task.directory.glob("part-*"), key=lambda part: part.stat().st_size).unlink()

    monkeypatch.setattr(stage, "embed_on", embed_and_lose)
    assert contents(finished(world)) == expected
    assert calls == [19, 12, 12]


def test_parts_that_always_vanish_are_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    embed_on = stage.embed_on

    def embed_and_lose(task, *rest):  # type: ignore[no-untyped-def]
        embed_on(task, *rest)
        for part in task.directory.glob("part-*"):
            part.unlink()

    monkeypatch.setattr(stage, "embed_on", embed_and_lose)
    assert "19 clips were embedded 3 times and are gone each time" in refused(world)


def test_the_mark_lasts_as_long_as_the_vectors_are_read(world: World) -> None:  # noqa: F811
    with pipeline.Kept() as kept:
        pipeline.prepare(settings(world), kept)
        assert len(list((world.root.parent / "cache" / "embeddings").glob("*/use-*"))) == 1
    assert not list((world.root.parent / "cache" / "embeddings").glob("*/use-*"))
    with pytest.raises(UserError), pipeline.Kept() as kept:
        pipeline.prepare(settings(world, k=13), kept)
    assert not list((world.root.parent / "cache").rglob("use-*"))
