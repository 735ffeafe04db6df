"""Decoder processes: results in order, and what becomes of clips whose decoder dies or hangs (real processes)."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from balance.audio.decoder_process import DecodeSettings, Job
from balance.audio.decoders import Decoded, DecoderPool, Undecoded, plan_slots
from tests import worlds


def _settings(root: Path, *, slot_bytes: int = 1 << 20, num_slots: int = 4) -> DecodeSettings:
    return DecodeSettings(
        media_root=str(root),
        format="vipant",
        columns={},
        max_frames=100,
        zero_mean=False,
        slot_bytes=slot_bytes,
        num_slots=num_slots,
    )


def _jobs(paths: list[str]) -> Iterator[tuple[int, Job]]:
    return ((i, Job(f"id{i}", path)) for i, path in enumerate(paths))


def _run(settings: DecodeSettings, paths: list[str], *, limit_s: float = 60) -> list[np.ndarray | Undecoded]:
    found: list[np.ndarray | Undecoded] = []
    with DecoderPool(settings, _jobs(paths), num_workers=2, clip_timeout_s=limit_s) as decoders:
        for number, (tag, _, result) in enumerate(decoders.results()):
            assert tag == number
            found.append(result.samples.copy() if isinstance(result, Decoded) else result)
    return found


def test_samples_arrive_in_order_whatever_the_slots(tmp_path: Path) -> None:
    paths = [f"{i}.wav" for i in range(24)]
    for i, path in enumerate(paths):
        worlds.write_clip(tmp_path / path, i, seconds=0.2 + 0.05 * (i % 7))
    expected = [soundfile.read(tmp_path / p, dtype="float32", always_2d=True)[0][:, 0] for p in paths]
    # A slot too small for any clip: the samples come through the pipe.
    for settings in (_settings(tmp_path), _settings(tmp_path, slot_bytes=4096, num_slots=2)):
        found = _run(settings, paths)
        assert all(np.array_equal(a[: len(b)], b[: len(a)]) for a, b in zip(found, expected, strict=True))
        assert all(abs(len(a) - len(b)) < 500 for a, b in zip(found, expected, strict=True))


def test_a_decoder_that_hangs_costs_its_clip_only(tmp_path: Path) -> None:
    paths = [f"{i}.wav" for i in range(8)]
    for i, path in enumerate(paths):
        worlds.write_clip(tmp_path / path, i)
    (tmp_path / paths[3]).unlink()
    os.mkfifo(tmp_path / paths[3])  # opening it waits for a writer for ever
    found = _run(_settings(tmp_path), paths, limit_s=2.0)
    assert found[3] == Undecoded("undecodable", "the decoder gave no answer within its time limit")
    assert all(isinstance(x, np.ndarray) for i, x in enumerate(found) if i != 3)


def test_a_decoder_that_dies_costs_its_clip_only(tmp_path: Path) -> None:
    paths = [f"{i}.wav" for i in range(8)]
    for i, path in enumerate(paths):
        worlds.write_clip(tmp_path / path, i)
    (tmp_path / paths[2]).unlink()
    os.mkfifo(tmp_path / paths[2])
    with DecoderPool(_settings(tmp_path), _jobs(paths), num_workers=1, clip_timeout_s=60) as decoders:
        done = threading.Event()

        def kill_what_waits() -> None:
            while not done.wait(0.3):  # the fifo blocks the only decoder: whatever lives then is reading it
                for process in decoders.process_ids():
                    if _waits_on_fifo(process, tmp_path / paths[2]):
                        os.kill(process, signal.SIGKILL)

        killer = threading.Thread(target=kill_what_waits)
        killer.start()
        found = [(tag, isinstance(r, Decoded), getattr(r, "detail", "")) for tag, _, r in decoders.results()]
        done.set()
        killer.join()
    assert found[2] == (2, False, "the decoder process died")
    assert [x[1] for x in found] == [True, True, False, True, True, True, True, True]


def _waits_on_fifo(process: int, fifo: Path) -> bool:
    try:
        return "fifo" in Path(f"/proc/{process}/wchan").read_text() or "wait_for_partner" in (
            Path(f"/proc/{process}/stack").read_text()
        )
    except OSError:
        return False


def test_closing_leaves_no_process(tmp_path: Path) -> None:
    worlds.write_clip(tmp_path / "a.wav", 1)
    decoders = DecoderPool(_settings(tmp_path), _jobs(["a.wav"] * 50), num_workers=2, clip_timeout_s=60)
    results = decoders.results()
    next(results)
    processes = decoders.process_ids()
    results.close()
    decoders.close()
    time.sleep(0.1)
    assert processes
    assert not any(Path(f"/proc/{p}/cmdline").exists() for p in processes)


def test_the_queue_is_bounded_by_its_bytes() -> None:
    slot_bytes, num_slots = plan_slots(1 << 30, 1000, 16)
    assert slot_bytes >= 4 * 192_000 * 10
    assert slot_bytes * num_slots <= 1 << 30
    assert plan_slots(1 << 20, 1000, 16)[1] == 32


def _child_processes() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def test_a_pool_closed_while_its_decoders_start_leaves_none(tmp_path: Path) -> None:
    worlds.write_clip(tmp_path / "0.wav", 0)
    before = _child_processes()
    for delay_s in (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.1):
        pool = DecoderPool(_settings(tmp_path), _jobs(["0.wav"] * 50), num_workers=3, clip_timeout_s=60)
        time.sleep(delay_s)
        pool.close()
        assert not any(thread.name.startswith("decoder ") for thread in threading.enumerate())
        assert _child_processes() == before
