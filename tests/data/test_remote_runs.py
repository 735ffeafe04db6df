"""Whole runs from a bucket and over http, sound and broken: the same bytes as from disk, or a clear end."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from balance import pipeline
from balance.config import Settings
from balance.data.config import ColumnsConfig, DatasetConfig, Format
from balance.data.formats import read_split
from balance.data.media import MediaReader
from balance.data.stamps import file_stamps
from balance.encoders.config import EncoderConfig
from balance.errors import UserError
from balance.results.explain import why
from balance.results.training_data import read_training_data
from balance.results.verification import verify
from balance.runtime import remote
from balance.runtime.remote import Unreachable, place
from balance.training.dataset import ClipDataset
from tests import object_store, worlds
from tests.command import command, contents, run_dir
from tests.data.test_format_runs import WRITERS
from tests.object_store import Bucket, Faulty

K = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> worlds.World:
    return worlds.make(tmp_path_factory.mktemp("world"), seeds=4, pool=15, evaluation=2)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory, world) -> Iterator[Bucket]:
    with object_store.s3() as server:
        server.upload(world.root, "vipant/")
        yield server


@pytest.fixture(autouse=True)
def _reach(monkeypatch, bucket) -> None:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def settings(world: worlds.World, cache: Path, root: str, media: str, **dataset) -> Settings:
    return Settings(
        k=K,
        dataset=DatasetConfig(root=root, media=media, **dataset),
        encoder=EncoderConfig(checkpoint=str(world.checkpoint)),
        num_workers=1,
        cache_dir=str(cache),
    )


def run(chosen: Settings, folder: Path) -> dict[str, bytes]:
    """All files that must be the same bytes; the page, which links to the media, is one of another test."""
    folder.mkdir(parents=True)
    pipeline.run(chosen, folder)
    return {name: data for name, data in contents(folder).items() if name != "report.html"}


@pytest.fixture(scope="module")
def from_disk(world, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("disk")
    return run(settings(world, folder / "cache", str(world.root), str(world.root)), folder / "run")


def stored(cache: Path) -> dict[str, bytes]:
    """The store's parts."""
    return {path.name: path.read_bytes() for path in sorted(cache.glob("embeddings/*/part-*.arrow"))}


def test_the_command_from_a_bucket_writes_the_bytes_of_a_run_from_disk(world, bucket, from_disk, tmp_path):
    done = command(
        tmp_path, "dataset.root=s3://bucket/vipant", f"encoder.checkpoint={world.checkpoint}", f"k={K}", "num_workers=1"
    )
    assert done.returncode == 0, done.stderr
    folder = run_dir(tmp_path)
    written = contents(folder)
    page = written.pop("report.html").decode()
    assert written == from_disk
    assert "<audio" not in page  # a browser cannot open s3://
    assert "data:image/png" in page  # but the sound was there to draw
    for file in folder.rglob("*"):
        if file.is_file():
            assert b"secret-testing" not in file.read_bytes(), file
    assert "botocore" not in done.stderr
    assert "credentials" not in done.stderr
    assert sorted(path.name for path in (folder / "train_root").iterdir()) == sorted(
        name for name in written if name.startswith(("src_", "ids_", "neighbours_"))
    )
    assert "train_root has no links to the media" in done.stderr
    assert "neighbour rows follow" in verify(str(folder))[0]
    assert "is a seed" in " ".join(why(str(folder), world.records("seeds")[0]["id"]))
    data = read_training_data(folder)
    from_bucket = ClipDataset(data.train[0], data.media)[0]
    here = ClipDataset(data.train[0], world.root)[0]
    np.testing.assert_array_equal(from_bucket.audio, here.audio)


def test_media_over_http_beside_lists_on_disk(world, from_disk, tmp_path):
    with object_store.files_over_http(world.root) as url:
        chosen = settings(world, tmp_path / "cache", str(world.root), url)
        assert run(chosen, tmp_path / "run") == from_disk
        assert f'src="{url}/all_seeds_0/aclip/' in (tmp_path / "run" / "report.html").read_text()


def lists_of(world: worlds.World, root: Path, format: Format) -> None:
    """The world's lists, and its sound where they hold it, in another form."""
    root.mkdir()
    for split, name in worlds.SPLITS.items():
        if format is not Format.folder:
            WRITERS[format](world, root, name, world.records(split))
            continue
        for number, record in enumerate(world.records(split)):
            file = root / name / f"class {number % 2}" / f"{number}{world.media(record).suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(world.media(record), file)
    for file in root.glob("*segments.json"):  # AST's paths, below the media folder
        file.write_text(file.read_text().replace(f"{world.root}/", ""))


@pytest.mark.parametrize("format", [*WRITERS, Format.folder])
def test_every_format_reads_from_a_bucket_what_it_reads_from_disk(world, bucket, tmp_path, format):
    root = tmp_path / "data"
    lists_of(world, root, format)
    bucket.upload(root, f"{format.value}/")
    apart = format in (Format.ast_json, Format.segments)
    for name in worlds.SPLITS.values():
        found = []
        for at, media in ((root, world.root if apart else root), (place(f"s3://bucket/{format.value}"), None)):
            media = media or (place("s3://bucket/vipant") if apart else at)
            index = read_split(format, name, root=at, media=media, columns=ColumnsConfig())
            stamps = file_stamps(media, format.value, index.paths)
            reader = MediaReader(str(media), format.value, {"audio": "audio"})
            offsets, sizes = index.places()
            sizes = np.where(offsets < 0, stamps[:, 0], sizes)
            sound = []
            for clip in zip(index.paths.to_pylist(), offsets.tolist(), sizes.tolist(), strict=True):
                source = reader.open(*clip)
                sound.append(Path(source).read_bytes() if isinstance(source, str) else source.read())
            reader.close()
            labels = [index.labels[row] for row in range(len(index))]
            found.append((index.ids, index.paths, labels, index.entries, stamps[:, 0].tolist(), sound))
        assert found[0] == found[1]
        assert len(found[0][-1]) in (4, 15, 2)


@pytest.mark.parametrize("format", [Format.parquet, Format.webdataset])
def test_runs_of_containers_in_a_bucket(world, bucket, tmp_path, format):
    lists_of(world, tmp_path / "data", format)
    bucket.upload(tmp_path / "data", f"run-{format.value}/")
    roots = (str(tmp_path / "data"), f"s3://bucket/run-{format.value}")
    runs = [
        run(settings(world, tmp_path / f"cache{i}", root, root, name="x", format=format), tmp_path / f"run{i}")
        for i, root in enumerate(roots)
    ]
    assert runs[0] == runs[1]


def test_broken_answers_cost_time_and_nothing_else(world, bucket, from_disk, tmp_path, monkeypatch):
    count = itertools.count()
    faults = ["500", *[None] * 6, "short", *[None] * 6, "hang", *[None] * 6]
    server = Faulty(bucket.address, lambda method, path: faults[next(count) % len(faults)], hang_s=0.2)
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.02)
    with server.serving() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        chosen = settings(world, tmp_path / "cache", "s3://bucket/vipant", "s3://bucket/vipant")
        assert run(chosen, tmp_path / "run") == from_disk
    assert len(server.seen) > 40


def test_a_bucket_that_vanishes_stops_the_run_and_what_is_done_stays(world, bucket, from_disk, tmp_path, monkeypatch):
    pool = itertools.count()

    def fault(method: str, path: str) -> str | None:
        is_gone = "all_pool" in path and method == "GET" and next(pool) > 3
        return "gone" if is_gone else None

    chosen = settings(world, tmp_path / "cache", "s3://bucket/vipant", "s3://bucket/vipant")
    with Faulty(bucket.address, fault).serving() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(Unreachable, match=r"s3://bucket/vipant/all_pool_0/aclip/.*is gone: run the same command"):
            run(chosen, tmp_path / "broken")
    parts = stored(tmp_path / "cache")
    assert len(parts) == 1  # the seeds'
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.env["AWS_ENDPOINT_URL"])
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert run(chosen, tmp_path / "run") == from_disk  # nothing was taken for a damaged clip
    assert parts.items() <= stored(tmp_path / "cache").items()


def test_one_object_replaced_is_embedded_again(world, bucket, tmp_path, caplog):
    bucket.upload(world.root, "other/")
    chosen = settings(world, tmp_path / "cache", "s3://bucket/other", "s3://bucket/other")
    run(chosen, tmp_path / "one")
    first, second = (world.media(record) for record in world.records("pool")[:2])
    key = f"other/{first.relative_to(world.root)}"
    worlds.write_clip(tmp_path / first.name, 77)
    bucket.client.put_object(Bucket="bucket", Key=key, Body=(tmp_path / first.name).read_bytes())
    bucket.client.delete_object(Bucket="bucket", Key=f"other/{second.relative_to(world.root)}")
    caplog.set_level("INFO")
    caplog.clear()
    run(chosen, tmp_path / "two")
    said = "\n".join(caplog.messages)
    assert "pool: 1 to embed, 0 missing, 14 known from earlier runs" in said
    assert "seeds: 0 to embed" in said


@pytest.mark.parametrize(
    ("root", "media", "dataset", "said"),
    [
        ("s3://no-such-bucket", None, {}, "There is no folder s3://no-such-bucket"),
        ("s3://bucket/vipant", None, {"balanced": "nothing"}, "There are: src_balanced_train_segments.csv, src_"),
        ("s3://bucket/vipant", "s3://bucket/empty", {}, "none of the 4 files that s3://bucket/vipant/src_bal"),
        ("s3://bucket", None, {"format": Format.embeddings}, "are read from disk: copy them there"),
        ("s3://bucket", None, {"format": Format.parquet}, "no .parquet files 'balanced_train_segments'"),
        ("gs://bucket", None, {}, r"pip install 'audio-balance\[gcs\]'"),
    ],
)
def test_mistakes_are_said(world, tmp_path, monkeypatch, root, media, dataset, said):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=said):
        run(settings(world, tmp_path / "cache", root, media or root, **dataset), tmp_path / "run")


def test_a_password_in_a_url_is_refused_and_not_said(tmp_path):
    done = command(tmp_path, "dataset.root=s3://me:w0rd@bucket")
    assert done.returncode == 1
    assert "error: dataset.root=s3://…@bucket: a URL must not hold a user or password" in done.stderr
    assert "Traceback" not in done.stderr
    assert "w0rd" not in done.stderr + done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
