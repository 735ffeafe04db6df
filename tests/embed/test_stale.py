"""Media that change under a store: other files are embedded again, copied ones only decoded."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from balance.audio.decoders import DecoderPool
from balance.embed import checks, store_files, worker
from tests import worlds
from tests.command import contents
from tests.test_refusals import finished
from tests.worlds import World


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("world") / "data", seeds=4, pool=12, evaluation=3)


@pytest.fixture
def world(shared: World, tmp_path: Path) -> World:
    shutil.copytree(shared.root, tmp_path / "data")
    return World(tmp_path / "data", tmp_path / "data" / "tiny.pth")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO")
    return caplog


def fresh(world: World) -> dict[str, bytes]:
    """What a run with an empty cache gives."""
    return contents(finished(world, cache=f"fresh-{len(list(world.root.parent.iterdir()))}"))


def num_rows(world: World) -> int:
    """Rows in all parts of the store."""
    total = 0
    for part in (world.root.parent / "cache" / "embeddings").glob("*/part-*"):
        with pa.memory_map(str(part)) as source:
            total += pa.ipc.open_file(source).read_all().num_rows
    return total


def touch(path: Path, seconds: int = 100) -> None:
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + seconds * 10**9))


def play_backwards(path: Path) -> None:
    """Another sound in a file of the same size."""
    before = path.stat()
    samples, rate = soundfile.read(path, dtype="float32")
    soundfile.write(path, samples[::-1], rate, subtype="FLOAT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert path.stat().st_size == before.st_size


def wav(world: World, number: int = 0) -> Path:
    return [m for r in world.records("pool") if (m := world.media(r)).suffix == ".wav"][number]


def test_a_file_of_another_size_is_embedded_again(world: World, log: pytest.LogCaptureFixture) -> None:
    finished(world)
    worlds.write_clip(wav(world), 4711, seconds=0.9)
    log.clear()
    out = finished(world)
    assert "pool: 1 files have another size than when they were embedded: embedded again" in log.text
    assert "pool: 1 to embed, 0 missing, 11 known" in log.text
    assert num_rows(world) == 20
    assert contents(out) == fresh(world)
    log.clear()
    assert contents(finished(world)) == contents(out)
    assert "pool: 0 to embed" in log.text
    assert "files have another" not in log.text


def test_a_file_of_another_time_alone_is_decoded_and_compared_once(world: World, log: pytest.LogCaptureFixture) -> None:
    first = finished(world)
    touch(wav(world, 0))
    play_backwards(wav(world, 1))
    log.clear()
    out = finished(world)
    assert "pool: 2 files have another modification time" in log.text
    assert "pool: 1 of them have the samples that were embedded" in log.text
    assert num_rows(world) == 20
    assert contents(out) == fresh(world)
    assert contents(out) != contents(first)
    log.clear()
    assert contents(finished(world)) == contents(out)
    assert "files have another" not in log.text


def test_a_copied_data_set_costs_a_decoding_and_no_encoding(
    world: World, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished(world)
    for path in world.root.rglob("*.p0.*"):
        touch(path)
    monkeypatch.setattr(worker, "_batches", None)
    log.clear()
    assert contents(finished(world)) == contents(out)
    assert "pool: 12 of them have the samples that were embedded" in log.text
    assert num_rows(world) == 19
    log.clear()
    monkeypatch.setattr(checks, "_REUSED_CLIPS", 0)
    monkeypatch.setattr(checks, "DecoderPool", None)  # the comparison is remembered
    assert contents(finished(world)) == contents(out)


def test_what_a_read_only_store_cannot_write_down_is_compared_again(
    world: World, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished(world)
    touch(wav(world))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks, "write_confirmed", refuse)
    for _ in range(2):
        log.clear()
        assert contents(finished(world)) == contents(out)
        assert "pool: 1 of them have the samples" in log.text


def test_two_roots_under_one_name_are_told_apart(world: World, log: pytest.LogCaptureFixture) -> None:
    """A copy in which two files were replaced, one of them under the same size; then both by turns."""
    first = finished(world)
    other = World(world.root.parent / "other", world.checkpoint)
    shutil.copytree(world.root, other.root)
    play_backwards(wav(other, 0))
    worlds.write_clip(wav(other, 1), 99, seconds=0.8)
    second = finished(other)
    assert contents(second) == fresh(other)
    assert contents(second) != contents(first)
    for which, right in ((world, first), (other, second), (world, first)):
        log.clear()
        assert contents(finished(which)) == contents(right)
        assert "pool: 0 to embed" in log.text
        assert "files have another" not in log.text


def test_a_replaced_file_that_cannot_be_read_is_a_failure(world: World) -> None:
    finished(world)
    path = wav(world)
    good, stat = path.read_bytes(), path.stat()
    path.write_bytes(b"no sound")
    for _ in range(2):
        out = finished(world, max_failures=0.1)
        failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
        assert [(f["path"], f["reason"]) for f in failures] == [
            (str(path.relative_to(world.root)), "undecodable"),
        ]
        ids = pq.read_table(next(out.glob("neighbours_*.parquet")))["neighbour_id"].to_pylist()
        assert path.name.split(".")[0] not in ids
    path.write_bytes(good)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (finished(world) / "failures.jsonl").read_text() == ""


def test_parts_without_stamps_are_taken_as_they_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that earlier versions wrote: another time says nothing; the seeded sample is decoded as ever."""
    write = store_files.write_part
    monkeypatch.setattr(
        store_files,
        "write_part",
        lambda folder, plan, rows, *rest: write(
            folder, plan, store_files.PartRows(rows.ids, rows.paths, rows.embeddings, rows.facts), *rest
        ),
    )
    out = finished(world)
    touch(wav(world))
    assert contents(finished(world)) == contents(out)
    assert num_rows(world) == 19


def test_a_cache_without_media_stays_usable(world: World) -> None:
    out = finished(world)
    for path in world.root.rglob("*.p0.*"):
        path.unlink()
    again, before = contents(finished(world)), contents(out)
    del again["report.html"], before["report.html"]  # the page draws spectrograms of the media that are there
    assert again == before


def test_a_damaged_confirmation_is_compared_again(world: World, log: pytest.LogCaptureFixture) -> None:
    out = finished(world)
    touch(wav(world))
    finished(world)
    file = next((world.root.parent / "cache" / "embeddings").glob("*/confirmed-*"))
    for at in (0, file.stat().st_size // 2):
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        file.write_bytes(data)
        log.clear()
        assert contents(finished(world)) == contents(out)
        assert "is damaged" in log.text
        assert "pool: 1 of them have the samples" in log.text
        file = next((world.root.parent / "cache" / "embeddings").glob("*/confirmed-*"))


def test_the_clips_that_are_decoded_again_are_the_reused_ones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(world)
    decoded: list[str] = []

    class Spy(DecoderPool):
        def results(self):  # type: ignore[no-untyped-def]
            for tag, job, result in super().results():
                decoded.append(job.path)
                yield tag, job, result

    monkeypatch.setattr(checks, "DecoderPool", Spy)
    finished(world)
    everything = [str(world.media(r).relative_to(world.root)) for s in worlds.SPLITS for r in world.records(s)]
    assert sorted(decoded) == sorted(everything)
