"""Every mistake that a user can make gets one or two lines that say what was given, what is allowed, what to type."""

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from balance import pipeline
from balance.config import Settings
from balance.data.config import DatasetConfig, Format
from balance.encoders.config import EncoderConfig
from balance.errors import UserError
from tests import worlds
from tests.command import command
from tests.paths import REPOSITORY
from tests.worlds import World


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("world") / "data", seeds=4, pool=12, evaluation=3)


@pytest.fixture
def world(shared: World, tmp_path: Path) -> World:
    shutil.copytree(shared.root, tmp_path / "data")
    return World(tmp_path / "data", tmp_path / "data" / "tiny.pth")


def settings(world: World, **changes: object) -> Settings:
    dataset = DatasetConfig(**{"name": "test", "root": str(world.root), **changes.pop("dataset", {})})  # type: ignore[dict-item]
    encoder = EncoderConfig(checkpoint=str(changes.pop("checkpoint", world.checkpoint)), device="cpu")
    return Settings(
        dataset=dataset,
        encoder=encoder,
        num_workers=1,
        cache_dir=str(world.root.parent / str(changes.pop("cache", "cache"))),
        **{"k": 2, **changes},  # type: ignore[arg-type]
    )


def refused(world: World, **changes: object) -> str:
    """The message that a run is refused with; nothing is left under a final name."""
    out = world.root.parent / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(UserError) as caught:
        pipeline.run(settings(world, **changes), out)
    message = str(caught.value)
    assert message.count("\n") <= 1
    assert not list(out.iterdir())
    return message


def test_missing_index_lists_those_that_are_there(world: World) -> None:
    message = refused(world, dataset={"balanced": "balanced"})
    assert "'balanced'" in message
    assert "src_balanced_train_segments.csv" in message


def test_missing_eval_is_only_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.index("eval").unlink()
    with caplog.at_level("WARNING"):
        pipeline.prepare(settings(world), pipeline.Kept())
    assert "no guard against evaluation clips" in caplog.text


def _official(world: World) -> None:
    world.index("seeds").write_text(
        '# Segments csv\n# num_ytids=1\n# YTID, a\n--4gqARaEJE, 0.000, 10.000, "/m/068hy"\n'
    )


def _not_json(world: World) -> None:
    lines = world.index("pool").read_text().splitlines()
    world.index("pool").write_text("\n".join([*lines[:2], "{not json", *lines[2:]]) + "\n")


def _no_id(world: World) -> None:
    world.write("pool", [{k: v for k, v in r.items() if k != "id"} for r in world.records("pool")])


def _no_audio(world: World) -> None:
    world.write("pool", [{k: v for k, v in r.items() if k != "aclip"} for r in world.records("pool")])


def _other_key(world: World) -> None:
    world.write("seeds", [{"clip" if k == "aclip" else k: v for k, v in r.items()} for r in world.records("seeds")])


def _mixed_keys(world: World) -> None:
    records = world.records("pool")
    records[4] = {"clip" if k == "aclip" else k: v for k, v in records[4].items()}
    world.write("pool", records)


def _duplicates(world: World) -> None:
    world.write("pool", [*world.records("pool"), world.records("pool")[5]])


def _empty(world: World) -> None:
    world.index("pool").write_text("")


def _joined_lines(world: World) -> None:
    world.index("pool").write_text(world.index("pool").read_text().replace("}\n{", "}{", 1))


def _seed_in_eval(world: World) -> None:
    world.write("eval", [*world.records("eval"), world.records("seeds")[1]])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_official, ["python -m balance.index"]),
        (_not_json, ["line 3"]),
        (_no_id, ["'id'"]),
        (_no_audio, ["aclip"]),
        (_other_key, ["'clip'", "'aclip'"]),
        (_mixed_keys, ["clip", "aclip"]),
        (_duplicates, ["xp_00000009"]),
        (_empty, ["empty"]),
        (_joined_lines, ["line 1"]),
        (_seed_in_eval, ["xs_00000001", "dataset.eval=null"]),
    ],
)
def test_a_spoilt_index(world: World, spoil: Callable[[World], None], words: list[str]) -> None:
    spoil(world)
    message = refused(world)
    for word in words:
        assert word in message


def test_k_larger_than_the_pool_names_the_numbers(world: World) -> None:
    message = refused(world, k=13)
    assert "k=13" in message
    assert "12" in message
    # Enough listed, too few left after an exclusion.
    world.write("eval", [*world.records("eval"), world.records("pool")[0]])
    message = refused(world, k=12)
    assert "k=12" in message
    assert "11" in message


def test_media_that_are_not_there(world: World) -> None:
    for record in world.records("pool"):
        world.media(record).unlink()
    assert "dataset.media=" in refused(world)
    assert "no clip of the pool has an embedding" in refused(world, max_missing=1.0)


def test_every_seed_unreadable(world: World) -> None:
    for record in world.records("seeds"):
        world.media(record).write_bytes(b"nothing")
    message = refused(world, max_failures=1.0)
    assert "4 of the 4 seeds clips could not be read" in message
    assert "4 undecodable" in message


def test_what_no_decoder_reads_is_named(world: World) -> None:
    records = world.records("pool")
    for record in records:
        old = world.media(record)
        record["aclip"] = ["p0.m4a"]
        old.rename(world.media(record)).write_bytes(b"\0\0\0 ftypM4A isom" + bytes(200))
    world.write("pool", records)
    message = refused(world)
    assert ".m4a" in message
    assert "Invalid data found when processing input" in message
    assert "None could be read: look at the files" in message


def test_media_that_cannot_be_read_any_more_are_not_called_other_files(world: World) -> None:
    finish_folder = world.root.parent / "first"
    finish_folder.mkdir()
    pipeline.run(settings(world), finish_folder)
    file = world.media(world.records("pool")[0])
    before = file.stat()
    file.write_bytes(b"<html>".ljust(before.st_size))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    said = refused(world)
    assert "could be decoded when they were embedded, and cannot be now" in said
    assert f"{file.name}: an HTML page, not audio" in said
    assert "refresh" not in said


def test_media_replaced_under_the_same_size_and_time_are_noticed(world: World) -> None:
    finish_folder = world.root.parent / "first"
    finish_folder.mkdir()
    pipeline.run(settings(world), finish_folder)
    record = world.records("pool")[0]
    before = world.media(record).stat()
    data = bytearray(world.media(record).read_bytes())
    data[-5] ^= 1  # a sample of a wav
    world.media(record).write_bytes(data)
    os.utime(world.media(record), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "refresh=true" in refused(world)
    again = world.root.parent / "again"
    again.mkdir()
    pipeline.run(settings(world, refresh=True), again)


def finished(world: World, **changes: object) -> Path:
    """The folder of a run that succeeds."""
    out = world.root.parent / f"out-{len(list(world.root.parent.iterdir()))}"
    out.mkdir()
    pipeline.run(settings(world, **changes), out)
    return out


def test_every_retry_decodes_again(world: World) -> None:
    record = world.records("pool")[2]
    good = world.media(record).read_bytes()
    world.media(record).write_bytes(b"nothing")
    finished(world, max_failures=0.1)
    for _ in range(2):
        out = finished(world, max_failures=0.1, retry_failures=True)
        assert str(record["id"]) in (out / "failures.jsonl").read_text()
    world.media(record).write_bytes(good)
    out = finished(world, max_failures=0.1, retry_failures=True)
    assert (out / "failures.jsonl").read_text() == ""


def test_a_refused_refresh_loses_nothing(world: World) -> None:
    finished(world)
    cache = world.root.parent / "cache" / "embeddings"
    before = {p: p.read_bytes() for p in cache.glob("*/part-*")}
    assert "none of the" in refused(world, refresh=True, dataset={"media": str(world.root.parent)})
    assert before == {p: p.read_bytes() for p in cache.glob("*/part-*")}


def test_a_remembered_failure_whose_file_is_gone_is_missing(world: World) -> None:
    record = world.records("pool")[2]
    world.media(record).write_bytes(b"nothing")
    finished(world, max_failures=0.1)
    world.media(record).unlink()
    assert "max_missing=0.09" in refused(world)
    out = finished(world, max_missing=0.1)
    assert '"missing"' in (out / "failures.jsonl").read_text()


def test_the_limit_that_it_says_is_a_limit_that_it_takes(world: World) -> None:
    for record in world.records("pool")[:7]:  # 7 of 12: 0.58333
        world.media(record).write_bytes(b"nothing")
    assert "max_failures=0.59" in refused(world)
    finished(world, max_failures=0.59)


def test_unreadable_eval_clips_still_guard_by_their_ids(world: World) -> None:
    for record in world.records("eval"):
        world.media(record).write_bytes(b"nothing")
    finished(world, max_failures=1.0)


def test_a_header_that_promises_anything_is_a_failure_of_that_clip(world: World) -> None:
    record = world.records("pool")[4]
    world.media(record).unlink()
    soundfile.write(world.media(record), np.zeros(2_600_000), 100_000_000, format="WAV", subtype="PCM_U8")
    out = finished(world, max_failures=0.1)
    assert "100000000 Hz" in (out / "failures.jsonl").read_text()


def test_a_root_that_is_no_folder(world: World) -> None:
    message = refused(world, dataset={"root": "/nowhere"})
    assert "/nowhere" in message


def test_a_cache_that_cannot_be_written(world: World) -> None:
    (world.root.parent / "cache").write_text("a file where the folder should be")
    message = refused(world)
    assert "cache_dir=" in message


def test_checkpoint_not_given_and_root_not_given(world: World) -> None:
    without = settings(world)
    without.encoder.checkpoint = None
    with pytest.raises(UserError, match=r"encoder\.checkpoint=/path"):
        pipeline.prepare(without, pipeline.Kept())
    without.dataset.root = None
    with pytest.raises(UserError, match=r"dataset\.root=.*dataset=demo"):
        pipeline.prepare(without, pipeline.Kept())


@pytest.mark.parametrize(
    ("spoilt", "named"), [("unbalanced_train_segments", "unb2"), ("balanced_train_segments", "bal2")]
)
def test_vectors_that_are_not_finite(tmp_path: Path, spoilt: str, named: str) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("balanced_train_segments", 3), ("unbalanced_train_segments", 20)):
        vectors = rng.normal(size=(count, 8)).astype(np.float32)
        if name == spoilt:
            vectors[2, 3] = np.inf
        np.save(tmp_path / f"{name}.npy", vectors)
        (tmp_path / f"{name}.ids.txt").write_text("".join(f"{name[:3]}{i}\n" for i in range(count)))
    given = Settings(
        k=2,
        dataset=DatasetConfig(name="own", root=str(tmp_path), format=Format.embeddings, eval=None),
        cache_dir=str(tmp_path / "cache"),
        encoder=EncoderConfig(device="cpu"),
    )
    with pytest.raises(UserError) as caught:
        pipeline.prepare(given, pipeline.Kept())
    assert named in str(caught.value)
    assert spoilt in str(caught.value)


COMMANDS = {
    "k=0": "k=0",
    "k=-1": "k=-1",
    "k=abc": "k",
    "no_such_key=1": "no_such_key",
    "search.backend=annoy": "annoy",
    "max_missing=2": "max_missing=2",
    "seed=-1": "seed=-1",
    "clip_timeout_s=inf": "clip_timeout_s=inf",
    "+bogus=1": "bogus",
    "encoder.device=cuda": "cuda",
    "encoder.precision=tf32": "tf32",
}


@pytest.mark.parametrize("override", list(COMMANDS))
def test_the_command_says_it_without_a_traceback(tmp_path: Path, override: str) -> None:
    done = command(tmp_path, "dataset=demo", override, f"cache_dir={tmp_path}/cache", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert COMMANDS[override] in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_encoder_belongs_to_the_demo(tmp_path: Path) -> None:
    done = command(tmp_path, "encoder=demo", f"dataset.root={tmp_path}")
    assert done.returncode == 1
    assert "encoder=demo" in done.stderr
    done = command(tmp_path, "dataset=demo", f"dataset.root={tmp_path}")
    assert done.returncode == 1
    assert "dataset.root" in done.stderr


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command(tmp_path, "dataset=demo", BALANCE_OUTPUTS=str(tmp_path / "file" / "outputs"))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "file" in done.stderr


def test_a_disk_that_is_full(world: World, tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the same write fails, with the same kind of error."""
    limit = 20_000
    done = command(
        tmp_path,
        *world.overrides(),
        "k=2",
        preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "outputs").rglob("tmp-*"))


def test_paths_of_the_local_file_do_not_reach_the_demo(tmp_path: Path) -> None:
    for folder in ("balance", "conf"):  # a checkout of its own: this one's local file is its user's
        shutil.copytree(
            REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("default.yaml", "__pycache__")
        )
    shutil.copytree(REPOSITORY / "conf" / "augment", tmp_path / "conf" / "augment", dirs_exist_ok=True)
    (tmp_path / "conf" / "local" / "default.yaml").write_text(
        "defaults:\n  - override /dataset: audioset\nk: 7\ndataset:\n  root: /nowhere\n"
        "  balanced: mine\nencoder:\n  checkpoint: /nowhere/x.pth\n"
    )
    shown = command(tmp_path, "--cfg", "job", "dataset=demo", PYTHONPATH=str(tmp_path))
    assert "k: 7" in shown.stdout
    done = command(tmp_path, "k=3", f"cache_dir={tmp_path}/cache", PYTHONPATH=str(tmp_path))
    assert "/nowhere" in done.stderr
    # The demo itself would take half a minute: its generator refuses this folder first.
    (tmp_path / "cache" / "demo").mkdir(parents=True)
    (tmp_path / "cache" / "demo" / "precious.txt").write_text("keep me")
    done = command(tmp_path, "dataset=demo", f"cache_dir={tmp_path}/cache", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "holds files that are not the demo's" in done.stderr
    assert os.listdir(tmp_path / "cache" / "demo") == ["precious.txt"]


def test_cfg_and_help_can_be_read(tmp_path: Path) -> None:
    shown = command(tmp_path, "--help")
    assert shown.returncode == 0
    assert "python -m balance.run -m k=10,32,100,512" in shown.stdout
    job = command(tmp_path, "--cfg", "job", "k=32")
    assert "k: 32" in job.stdout
    assert job.returncode == 0
