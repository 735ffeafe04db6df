"""Decoder processes: results in order, and what becomes of clips whose decoder dies or hangs (real processes)."""

import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from balance.audio.decoder_process import DecoderProcess, DecodeSettings, Job
from balance.audio.decoders import Decoded, DecoderPool, Undecoded, plan_slots
from balance.errors import UserError
from tests import worlds
from tests.paths import REPOSITORY


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


def _write_endless(path: Path) -> None:
    """A wav of 4.5 hours of silence that takes no room on the disk: whoever decodes it is busy for a while."""
    soundfile.write(path, np.zeros(16, np.int16), 48_000, format="RF64")
    data = bytearray(path.read_bytes())
    at = data.index(b"ds64") + 8
    data[at : at + 24] = struct.pack("<3Q", (1 << 31) + len(data), 1 << 31, 1 << 30)
    path.write_bytes(data)
    os.truncate(path, len(data) + (1 << 31))


class _Meddler:
    """Sends a signal to every decoder that has `path` open, `times` times, each to another process."""

    def __init__(self, decoders: DecoderPool, path: Path, number: int, times: int) -> None:
        self._thread = threading.Thread(target=self._run, args=(decoders, path, number, times))
        self._thread.start()

    def _run(self, decoders: DecoderPool, path: Path, number: int, times: int) -> None:
        met: set[int] = set()
        while len(met) < times:
            for process in set(decoders.process_ids()) - met:
                if _has_open(process, path):
                    os.kill(process, number)
                    met.add(process)
            time.sleep(0.005)

    def join(self) -> None:
        self._thread.join()


def _has_open(process: int, path: Path) -> bool:
    try:
        return any(os.readlink(f) == str(path) for f in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False


def _run_meddled(root: Path, number: int, times: int, *, limit_s: float) -> list[np.ndarray | Undecoded]:
    """Eight clips, the fourth endless, whose decoder gets a signal."""
    paths = [f"{i}.wav" for i in range(8)]
    for i, path in enumerate(paths):
        worlds.write_clip(root / path, i)
    _write_endless(root / paths[3])
    with DecoderPool(_settings(root), _jobs(paths), num_workers=2, clip_timeout_s=limit_s) as decoders:
        meddler = _Meddler(decoders, root / paths[3], number, times)
        found = [r.samples.copy() if isinstance(r, Decoded) else r for _, _, r in decoders.results()]
        meddler.join()
    return found


def test_a_decoder_that_hangs_costs_its_clip_only(tmp_path: Path) -> None:
    found = _run_meddled(tmp_path, signal.SIGSTOP, 1, limit_s=2.0)
    assert found[3] == Undecoded("undecodable", "the decoder gave no answer within its time limit")
    assert all(isinstance(x, np.ndarray) for i, x in enumerate(found) if i != 3)


def test_a_decoder_that_dies_costs_its_clip_only(tmp_path: Path) -> None:
    found = _run_meddled(tmp_path, signal.SIGKILL, 2, limit_s=60)
    assert found[3] == Undecoded("undecodable", "the decoder process died")
    assert all(isinstance(x, np.ndarray) for i, x in enumerate(found) if i != 3)


def test_a_decoder_that_is_killed_while_it_starts_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds.write_clip(tmp_path / "a.wav", 1)
    ready = DecoderProcess.wait_until_ready
    killed: list[int] = []

    def kill_twice(process: DecoderProcess) -> None:
        if len(killed) < 2:
            killed.append(process.pid)
            process.kill()
        ready(process)

    monkeypatch.setattr(DecoderProcess, "wait_until_ready", kill_twice)
    with DecoderPool(_settings(tmp_path), _jobs(["a.wav"]), num_workers=1, clip_timeout_s=60) as decoders:
        assert [isinstance(r, Decoded) for _, _, r in decoders.results()] == [True]
    assert len(killed) == 2


def test_decoders_that_cannot_start_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def results() -> None:
        with DecoderPool(_settings(tmp_path), _jobs(["a.wav"]), num_workers=1, clip_timeout_s=60) as decoders:
            list(decoders.results())

    (tmp_path / "soundfile.py").write_text("raise OSError('sndfile library not found')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPOSITORY}")
    with pytest.raises(UserError, match="decoder processes cannot start: OSError: sndfile library not found"):
        results()
    (tmp_path / "soundfile.py").write_text("import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match=r"killed while they start .*num_workers"):
        results()


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
