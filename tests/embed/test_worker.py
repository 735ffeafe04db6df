"""One process's share of embedding: bytes that do not depend on who makes a part, and nothing lost."""

import dataclasses
import json
import os
import socket
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from balance.audio import decode
from balance.audio.decoder_process import DecodeSettings
from balance.audio.decoders import plan_slots
from balance.audio.fbank import LogMel
from balance.embed import batches, store_files, worker
from balance.embed.parts import ToEmbed, plan_parts
from balance.embed.progress import Progress
from balance.embed.store import Store
from balance.encoders import vipant
from balance.encoders.checkpoint import read_checkpoint
from balance.encoders.device import worker_devices
from balance.encoders.precision import Precision
from balance.encoders.vipant import build_encoder, read_vipant
from balance.errors import UserError
from balance.records import Index, Labels
from tests import simulated_cuda, worlds


def _index(root: Path, count: int) -> Index:
    paths = [f"d{i // 10}/aclip/c{i}.p0.{('wav', 'flac')[i % 2]}" for i in range(count)]
    for i, path in enumerate(paths):
        worlds.write_clip(root / path, i, seconds=0.3 + 0.1 * (i % 10))
    ids = pa.array([f"c{i}" for i in range(count)])
    return Index("test", ids, pa.array(paths), Labels.of([()] * count))


def _task(
    root: Path, index: Index, *, part_clips: int = 16, batch_size: int = 8, num_workers: int = 2
) -> worker.EmbedTask:
    checkpoint = root / "tiny.pth"
    if not checkpoint.exists():
        worlds.write_checkpoint(checkpoint)
    slot_bytes, num_slots = plan_slots(1 << 24, 100, num_workers)
    directory = root / f"store-{time.monotonic_ns()}"
    directory.mkdir()
    return worker.EmbedTask(
        directory=directory,
        plan=plan_parts([ToEmbed("pool", index, np.arange(len(index)))], part_clips),
        encoder=read_vipant(checkpoint),
        device="cpu",
        precision=Precision.float32,
        batch_size=batch_size,
        decode=DecodeSettings(
            media_root=str(root),
            format="vipant",
            columns={},
            max_frames=100,
            zero_mean=True,
            slot_bytes=slot_bytes,
            num_slots=num_slots,
        ),
        num_workers=num_workers,
        clip_timeout_s=60,
    )


def _bytes(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_embeddings_are_those_of_each_clip_alone(tmp_path: Path) -> None:
    index = _index(tmp_path, 37)
    task = _task(tmp_path, index)
    reports: list[Progress] = []
    worker.embed(task, reports.append)
    assert sum(r.num_clips for r in reports) == 37
    assert [r.part for r in reports if r.part is not None] == [0, 1, 2]
    store = Store(task.directory)
    vectors = store.vectors(store.rows(index.paths)).read(0, 37)
    checkpoint = read_checkpoint(task.encoder.checkpoint)
    encoder = build_encoder(checkpoint, torch.device("cpu"), Precision.float32, False)
    for row, path in enumerate(index.paths.to_pylist()):
        wave = decode.load(str(tmp_path / path), max_frames=100, zero_mean=True)
        samples = torch.from_numpy(wave.samples)[None]
        alone = encoder(LogMel(checkpoint.front_end)(samples, [samples.shape[1]], wave.sample_rate))[0].numpy()
        assert np.abs(vectors[row] - alone).max() <= 1e-5 * np.linalg.norm(alone)


def test_the_bytes_do_not_depend_on_workers_or_processes(tmp_path: Path) -> None:
    index = _index(tmp_path, 60)
    (tmp_path / index.paths[21].as_py()).write_bytes(b"not audio")
    made = []
    for num_workers, num_processes in ((1, 1), (3, 1), (2, 2)):
        task = _task(tmp_path, index, num_workers=num_workers)
        seen: list[Progress] = []
        worker.embed_on(task, worker_devices("cpu", "cpu", num_processes), seen.append)
        assert sum(r.num_clips for r in seen) == 60
        made.append(_bytes(task.directory))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 4


def test_a_clip_has_the_same_row_in_any_company(tmp_path: Path) -> None:
    """A superset, a subset or another order of clips changes batches, not rows."""
    index = _index(tmp_path, 40)
    first = _task(tmp_path, index)
    worker.embed(first, lambda _: None)
    order = np.random.default_rng(1).permutation(40)[:23].astype(np.int64)
    second = _task(tmp_path, index.take(order), part_clips=512)
    worker.embed(second, lambda _: None)
    a, b = Store(first.directory), Store(second.directory)
    paths = index.paths.take(pa.array(order))
    assert np.array_equal(a.vectors(a.rows(paths)).read(0, 23), b.vectors(b.rows(paths)).read(0, 23))


class _ForgetfulEncoder:
    """An encoder on a GPU that holds `capacity` clips: raises CUDA's own error for more."""

    def __init__(self, encoder: object, capacity: int) -> None:
        self._encoder, self._capacity = encoder, capacity

    def __call__(self, spectrograms: torch.Tensor) -> torch.Tensor:
        if len(spectrograms) > self._capacity:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self._encoder(spectrograms)  # type: ignore[operator, no-any-return]


def test_the_batch_is_halved_when_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = _index(tmp_path, 30)
    monkeypatch.setattr(batches, "_CPU_CLIPS", 16)
    whole = _task(tmp_path, index, batch_size=16)
    worker.embed(whole, lambda _: None)
    monkeypatch.setattr(vipant, "build_encoder", lambda *a: _ForgetfulEncoder(build_encoder(*a), 3))
    halved = dataclasses.replace(_task(tmp_path, index), batch_size=16)
    worker.embed(halved, lambda _: None)
    a, b = Store(whole.directory), Store(halved.directory)
    x, y = (s.vectors(s.rows(index.paths)).read(0, 30).astype(np.float64) for s in (a, b))
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert cosine.min() >= 1 - 1e-6
    with pa.memory_map(str(next(halved.directory.glob("part-*")))) as source:
        made_by = json.loads(pa.ipc.open_file(source).schema.metadata[b"balance.made_by"])
    assert made_by["batch_size"] == 2
    assert made_by["batch_size_halved_from"] == 16


def test_memory_that_holds_no_clip_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vipant, "build_encoder", lambda *a: _ForgetfulEncoder(build_encoder(*a), 0))
    with pytest.raises(UserError, match="does not hold a single clip"):
        worker.embed(_task(tmp_path, _index(tmp_path, 5)), lambda _: None)


def test_parts_of_a_dead_or_silent_job_are_taken_over(tmp_path: Path) -> None:
    index = _index(tmp_path, 40)
    task = _task(tmp_path, index)
    here, elsewhere = (task.directory / f"lock-{name}" for name in task.plan.names[:2])
    here.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 - 1, "start_time": "5", "job": ""}))
    elsewhere.write_text(json.dumps({"host": "node-7", "pid": 1, "start_time": "5", "job": "12"}))
    os.utime(elsewhere, (time.time() - 400, time.time() - 400))
    (task.directory / f"tmp-{task.plan.names[0]}-99.arrow").write_bytes(b"half a part")
    worker.embed(task, lambda _: None)
    store_files.remove_leftovers(task.directory)
    assert len(Store(task.directory)) == 40
    assert {p.name.split("-")[0] for p in task.directory.iterdir()} == {"part"}


def test_parts_are_cut_at_fixed_rows_whatever_is_left(tmp_path: Path) -> None:
    index = _index(tmp_path, 40)
    whole = plan_parts([ToEmbed("pool", index, np.arange(40))], 16)
    assert [int(b) for b in whole.bounds] == [0, 16, 32, 40]
    rest = plan_parts([ToEmbed("pool", index, np.arange(16, 40))], 16)
    assert rest.names == whole.names[1:]
    twice = plan_parts([ToEmbed("seeds", index, np.arange(5)), ToEmbed("pool", index, np.arange(40))], 16)
    assert len(twice) == 40
    assert twice.splits == ("seeds", "pool", "pool", "pool")


def test_an_encoder_that_gives_nan_is_a_failure_of_that_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = _index(tmp_path, 6)
    soundfile.write(tmp_path / index.paths[2].as_py(), np.zeros(20_000), 16_000)  # to be told by its flat spectrogram

    def spoiling(*a: object) -> object:
        encoder = build_encoder(*a)  # type: ignore[arg-type]

        def run(spectrograms: torch.Tensor) -> torch.Tensor:
            out = encoder(spectrograms).clone()
            out[spectrograms.std(dim=(1, 2)) < 0.01, 5] = float("nan")
            return out

        return run

    monkeypatch.setattr(vipant, "build_encoder", spoiling)
    task = _task(tmp_path, index)
    worker.embed(task, lambda _: None)
    store = Store(task.directory)
    assert len(store) == 5
    assert [(f.path, f.reason) for f in store.failures.values()] == [(index.paths[2].as_py(), "not_finite")]


def test_the_second_gpu_embeds_as_the_cpu_does(tmp_path: Path) -> None:
    """Its events and streams too: the simulated machine fails where they are another device's. Few slots, so that clips
    wait for each other's copies; the decoders' memory is let go at the end."""
    task = _task(tmp_path, _index(tmp_path, 20))
    worker.embed(task, lambda _: None)
    expected = Store(task.directory)
    task = dataclasses.replace(_task(tmp_path, _index(tmp_path, 20)), device="cuda:1")
    with simulated_cuda.simulated() as machine:
        worker.embed(task, lambda _: None)
        assert not machine.registered
        assert sum(pinned and contiguous for _, contiguous, pinned in machine.copies) >= 20
    found = Store(task.directory)
    assert found.paths == expected.paths
    rows = np.arange(len(found))
    np.testing.assert_allclose(
        found.vectors(rows).read(0, len(rows)), expected.vectors(rows).read(0, len(rows)), atol=1e-4
    )
