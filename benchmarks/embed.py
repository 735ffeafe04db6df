"""Embedding: clips/s of each stage and end to end, beside the straightforward path in the same run.

    python benchmarks/embed.py            # full size: 88 M parameters, 10 s stereo mp3 at 44.1 kHz
    python benchmarks/embed.py --tiny     # a size for tests
    python benchmarks/embed.py --gpu      # on CUDA: fbank + forward in tf32 and bfloat16, end to end beside decoding
    python benchmarks/embed.py --gpu --compiled    # on CUDA: fbank + forward with torch.compile, which takes minutes

End to end is the product's own path (decoder processes, shared memory, fbank, forward, parts in a store), timed from
the first decoded clip, as the straightforward path is timed with its model loaded. Beside the times the bytes and
operations that each step needs for one clip (counts.py). Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import counts
import numpy as np
import pyarrow as pa
import soundfile
import straightforward
import torch
from omegaconf import OmegaConf

from balance.audio import decode
from balance.audio.decoder_process import DecodeSettings, Job
from balance.audio.decoders import DecoderPool, plan_slots
from balance.audio.fbank import FrontEnd, LogMel
from balance.embed import worker
from balance.embed.parts import PART_CLIPS, ToEmbed, plan_parts
from balance.embed.progress import Progress
from balance.encoders.checkpoint import Checkpoint, TowerConfig, read_checkpoint, write_random_checkpoint
from balance.encoders.precision import Precision
from balance.encoders.vipant import build_encoder, read_vipant
from balance.records import Index, Labels
from balance.runtime.threads import Cores

RELEASED = TowerConfig(
    width=768, num_layers=12, dim=512, patch=(32, 32), stride=(16, 24), max_frames=1000, num_mel_bins=128
)
TINY = TowerConfig(width=64, num_layers=2, dim=32, patch=(32, 32), stride=(16, 24), max_frames=200, num_mel_bins=64)
SAMPLE_RATE = 44_100
CPU = torch.device("cpu")


def write_world(root: Path, num_clips: int, config: TowerConfig) -> list[str]:
    """A checkpoint `model.pth` and that many stereo mp3 of full length; their names."""
    front_end = FrontEnd(
        max_frames=config.max_frames, num_mel_bins=config.num_mel_bins, mean=-4.9, std=5.8, zero_mean=True
    )
    write_random_checkpoint(root / "model.pth", seed=0, config=config, front_end=front_end, wrap=OmegaConf.create)
    names = [f"clip{i}.mp3" for i in range(num_clips)]
    seconds = np.arange(SAMPLE_RATE * config.max_frames // 100)[:, None] / SAMPLE_RATE
    for i, name in enumerate(names):
        generator = np.random.default_rng(i)
        noise = generator.standard_normal((len(seconds), 2)) * generator.uniform(0.01, 0.2)
        tone = 0.3 * np.sin(2 * np.pi * generator.uniform(100, 4000, 2) * seconds * (1 + 0.05 * seconds))
        soundfile.write(root / name, np.clip(tone + noise, -1, 1), SAMPLE_RATE)
    return names


def decode_settings(root: Path, front_end: FrontEnd, num_workers: int) -> DecodeSettings:
    slot_bytes, num_slots = plan_slots(1 << 30, front_end.max_frames, num_workers)
    return DecodeSettings(
        media_root=str(root),
        format="vipant",
        columns={},
        max_frames=front_end.max_frames,
        zero_mean=front_end.zero_mean,
        slot_bytes=slot_bytes,
        num_slots=num_slots,
    )


def decode_rate(root: Path, names: list[str], front_end: FrontEnd, num_workers: int) -> float:
    """Clips/s of decoder processes on all cores, from the first result on."""
    jobs = ((i, Job(name, name)) for i, name in enumerate(names * 4))
    settings = decode_settings(root, front_end, num_workers)
    with DecoderPool(settings, jobs, num_workers=num_workers, clip_timeout_s=60) as pool:
        results = pool.results()
        next(results)
        started = time.perf_counter()
        count = sum(1 for _ in results)
    return count / (time.perf_counter() - started)


def best_rate(run: Callable[[], Any], num_clips: int, repeats: int) -> float:
    """Clips/s of the fastest repeat, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return num_clips / min(times)


def fbank_ratio(wave: torch.Tensor, front_end: FrontEnd, repeats: int) -> float:
    """CPU time of torchaudio's algorithm / ours, one core each, by turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch, log_mel = wave.repeat(4, 1), LogMel(front_end)
    best = {"ours": float("inf"), "theirs": float("inf")}
    for _ in range(3 * repeats + 2):
        started = time.thread_time()
        log_mel(batch, [batch.shape[1]] * len(batch), SAMPLE_RATE)
        between = time.thread_time()
        straightforward.kaldi_fbank(wave, float(SAMPLE_RATE), front_end.num_mel_bins)
        best["ours"] = min(best["ours"], (between - started) / len(batch))
        best["theirs"] = min(best["theirs"], time.thread_time() - between)
    torch.set_num_threads(threads)
    return best["theirs"] / best["ours"]


class PeakMemory:
    """The largest memory of this process and its decoders together, looked at every 0.1 s; a shared page counts once.

    Not getrusage: a child's maximum there begins with what its parent had when it was started.
    """

    def __init__(self) -> None:
        self._peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self._peak_bytes = max(self._peak_bytes, sum(map(_memory_bytes, ["self", *_children()])))

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return max(self._peak_bytes, _memory_bytes("self"))


def _children() -> list[str]:
    """The processes that any thread of this one has started and that live."""
    found: list[str] = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += (thread / "children").read_text().split()
    return found


def _memory_bytes(pid: str) -> int:
    """A process's proportional share of resident memory; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def end_to_end(
    root: Path, names: list[str], precision: Precision, batch_size: int, threads: int, device: str, pipe: Any
) -> None:
    """In a process of its own, whose memory is measured: sends (clips/s, peak bytes with its decoders)."""
    torch.set_num_threads(threads)
    memory = PeakMemory()
    index = Index("benchmark", pa.array(names), pa.array(names), Labels.of([()] * len(names)))
    encoder = read_vipant(root / "model.pth")
    with tempfile.TemporaryDirectory() as directory:
        task = worker.EmbedTask(
            directory=Path(directory),
            plan=plan_parts([ToEmbed("pool", index, np.arange(len(names)))], PART_CLIPS["cpu"]),
            encoder=encoder,
            device=device,
            precision=precision,
            batch_size=batch_size,
            decode=decode_settings(root, encoder.front_end, threads),
            num_workers=threads,
            clip_timeout_s=60,
        )
        started = None
        done = 0

        def report(progress: Progress) -> None:
            nonlocal started, done
            started = started or time.perf_counter()
            done += progress.num_clips
            assert not progress.failures, progress.failures

        worker.embed(task, report)
        assert started is not None
        assert done == len(names)
        rate = len(names) / (time.perf_counter() - started)
    pipe.send((rate, memory.stop()))


def run_end_to_end(*arguments: Any) -> tuple[float, int]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=end_to_end, args=(*arguments, there))
    process.start()
    there.close()
    rate, peak_bytes = here.recv()
    process.join()
    return rate, peak_bytes


def straightforward_rate(root: Path, names: list[str], checkpoint: Checkpoint, repeats: int) -> float:
    tower = straightforward.PublishedTower(checkpoint)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)

        def run() -> None:
            for name in names:
                straightforward.embed_one(root / name, tower, checkpoint.front_end, out)

        run_one = best_rate(run, len(names), repeats)
    return run_one


def measure(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    config = TINY if args.tiny else RELEASED
    threads = torch.get_num_threads()
    names = write_world(root, args.clips, config)
    checkpoint = read_checkpoint(root / "model.pth")
    front_end = checkpoint.front_end
    log_mel = LogMel(front_end)
    rates: dict[str, float] = {}
    figures: dict[str, Any] = {"threads": threads, "clips": args.clips, "torch": torch.__version__}

    rates["straightforward"] = straightforward_rate(root, names[: args.straightforward_clips], checkpoint, args.repeats)
    rates["decode"] = decode_rate(root, names, front_end, threads)
    wave = torch.from_numpy(decode.load(root / names[0], max_frames=config.max_frames, zero_mean=True).samples)[None]
    figures["fbank_ratio"] = fbank_ratio(wave, front_end, args.repeats)
    pairs = [wave.repeat(2, 1)] * 16  # what the product gives a core at once
    lengths = [wave.shape[1]] * 2
    spectrograms = [log_mel(pair, lengths, SAMPLE_RATE) for pair in pairs]

    def on_all_cores(stage: Callable[[torch.Tensor], Any], items: list[torch.Tensor]) -> float:
        with Cores() as cores:
            return best_rate(lambda: cores.map(stage, items), 2 * len(items), args.repeats)

    rates["fbank"] = on_all_cores(lambda pair: log_mel(pair, lengths, SAMPLE_RATE), pairs)
    peak_bytes = 0
    for precision in (Precision.bfloat16, Precision.float32):
        name = precision.value
        rates[f"forward_{name}"] = on_all_cores(build_encoder(checkpoint, CPU, precision, compile=False), spectrograms)
        runs = [run_end_to_end(root, names, precision, args.batch_size, threads, "cpu") for _ in range(args.repeats)]
        rates[f"end_to_end_{name}"] = max(rate for rate, _ in runs)
        peak_bytes = max([peak_bytes, *(peak for _, peak in runs)])
        stages_s = 1 / rates["decode"] + 1 / rates["fbank"] + 1 / rates[f"forward_{name}"]
        figures[f"end_to_end_over_stages_{name}"] = 1 / rates[f"end_to_end_{name}"] / stages_s
        figures[f"end_to_end_ratio_{name}"] = rates[f"end_to_end_{name}"] / rates["straightforward"]
        figures[f"counts_{name}"] = count(config, front_end, precision, gpu=False)
    return {**figures, "clips_per_s": rates, "peak_rss_bytes": peak_bytes}


def count(config: TowerConfig, front_end: FrontEnd, precision: Precision, *, gpu: bool) -> dict[str, Any]:
    steps = counts.embedding_steps(config, front_end, SAMPLE_RATE, precision.value)
    counts.show(f"per clip, {precision.value}", steps, gpu=gpu)
    return counts.as_json(steps, gpu=gpu)


def measure_on_gpu(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """On CUDA there is no straightforward path to beat: the floor is what decoding alone reaches on these cores."""
    device = torch.device("cuda")
    workers = len(os.sched_getaffinity(0))
    files = write_world(root, 64, RELEASED)
    names = []
    for i in range(args.clips):  # other names for the same bytes: each is decoded
        names.append(f"link{i}.mp3")
        os.link(root / files[i % len(files)], root / names[-1])
    checkpoint = read_checkpoint(root / "model.pth")
    front_end = checkpoint.front_end
    wave = torch.from_numpy(decode.load(root / names[0], max_frames=1000, zero_mean=True).samples)[None]
    waves = wave.repeat(args.batch_size, 1).to(device)
    lengths = [waves.shape[1]] * len(waves)
    log_mel = LogMel(front_end)
    rates = {"decode": decode_rate(root, names[:1000], front_end, workers)}
    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "decoders": workers}

    def synchronised(run: Callable[[], Any]) -> Callable[[], Any]:
        def many() -> None:
            for _ in range(20):
                run()
            torch.cuda.synchronize()

        return many

    clips = 20 * len(waves)
    rates["fbank"] = best_rate(synchronised(lambda: log_mel(waves, lengths, SAMPLE_RATE)), clips, args.repeats)
    for precision in (Precision.tf32, Precision.bfloat16):
        encoder = build_encoder(checkpoint, device, precision, compile=args.compiled)

        def both(encoder: Any = encoder) -> None:
            encoder(log_mel(waves, lengths, SAMPLE_RATE))

        name = f"fbank_forward_{precision.value}{'_compiled' if args.compiled else ''}"
        figures[f"counts_{precision.value}"] = count(RELEASED, front_end, precision, gpu=True)
        rates[name] = best_rate(synchronised(both), clips, args.repeats)
        print(json.dumps(rates), flush=True)  # at once: a limit may end this process
        if args.compiled:
            continue
        rate, _ = run_end_to_end(root, names, precision, args.batch_size, workers, "cuda")
        rates[f"end_to_end_{precision.value}"] = rate
        figures[f"end_to_end_over_decode_{precision.value}"] = rate / rates["decode"]
    return {**figures, "clips_per_s": rates, "peak_rss_bytes": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, help="end to end; 128, on a GPU 20,000")
    parser.add_argument("--gpu", action="store_true", help="measure on CUDA")
    parser.add_argument("--compiled", action="store_true", help="with --gpu: the forward pass by torch.compile alone")
    parser.add_argument("--straightforward-clips", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this script")
    args = parser.parse_args()
    if args.tiny:
        args.clips, args.straightforward_clips, args.batch_size, args.repeats = 8, 2, 4, 1
    args.clips = args.clips or (20_000 if args.gpu else 128)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as root:
        figures = (measure_on_gpu if args.gpu else measure)(args, Path(root))
    for name, rate in figures["clips_per_s"].items():
        print(f"{name:24} {rate:9.2f} clips/s")
    for name, figure in figures.items():
        if isinstance(figure, float):
            print(f"{name:34} {figure:.2f}")
    if figures["peak_rss_bytes"]:
        print(f"peak memory {figures['peak_rss_bytes'] / 2**30:.2f} GiB with the decoders")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
