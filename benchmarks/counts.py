"""What each step moves and computes, by counting, and how long an H100 needs for that at its published rates.

    python benchmarks/counts.py           # the search and the embedding at AudioSet's size

The other benchmarks print these counts beside their times, so that a step that takes much longer than it must stands
out at once. A count takes the code's own constants; it is the least that the step does (each array written once and
read once by each operation that needs it, caches not counted), so a time is a bound: kernels reach 50 to 90 % of it.
Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from balance.audio.fbank import VIPANT_FRONT_END, FrontEnd
from balance.audio.frames import shift_samples, window_samples
from balance.encoders.checkpoint import HEAD_WIDTH, TowerConfig
from balance.search import candidates, cosine_bound, sizes

# NVIDIA H100 SXM, from its data sheet (dense, without sparsity).
MEMORY_BYTES_S = 3.35e12
BUS_BYTES_S = 64e9  # PCIe 5, one way
FLOP_S = {"float16": 989e12, "bfloat16": 989e12, "tf32": 494e12, "float32": 67e12, "float64": 34e12}
WAIT_S = 20e-6  # of the host for the device, and of the device for new work: an estimate
KEY_SORT_BYTES = 8 * 2 * 16 + 4 * 2 * 12  # radix sort by 8 bytes, then by 4, a byte a pass, with an index


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step's arithmetic (in `kind`), bytes of the device's memory and of the bus, and waits of the host."""

    name: str
    flop: float = 0.0
    kind: str = "float32"
    memory_bytes: float = 0.0
    bus_bytes: float = 0.0
    waits: int = 0

    @property
    def least_s(self) -> float:
        """On an H100."""
        work_s = max(self.flop / FLOP_S[self.kind], self.memory_bytes / MEMORY_BYTES_S)
        return work_s + self.bus_bytes / BUS_BYTES_S + self.waits * WAIT_S


def search_steps(num_seeds: int, num_pool: int, dim: int, k: int, *, from_host: bool = False) -> list[Step]:
    """The exact search on a GPU (balance/search). from_host: the pool is read from the host, not from GPU memory."""
    columns = -(-(dim + cosine_bound.EXTRA_COLUMNS) // 8) * 8
    sample = min(num_pool, sizes.SAMPLE_ROWS_GPU)
    at_once = min(num_seeds, sizes.SEED_ROWS_GPU)
    rows = min(num_pool, candidates.BLOCK_BYTES_GPU // (4 * dim), sizes.BLOCK_PAIRS_GPU // at_once)
    products = math.ceil(num_pool / rows) * math.ceil(num_seeds / at_once)
    all_pairs, group = num_seeds * num_pool, candidates.GROUP
    pairs = num_seeds * min(num_pool, candidates_per_seed(num_pool, sample, k))
    merges = max(1, math.ceil(pairs / sizes.NEW_PAIRS_GPU))
    merged = merges * num_seeds * k + pairs
    unsure = 1e-4 * pairs  # of cosines spread evenly: 2 · 10⁻¹² of every 6 · 10⁻⁸, and a margin
    return [
        Step(
            name="guess", flop=2.0 * num_seeds * sample * columns, kind="float16", memory_bytes=4.0 * num_seeds * sample
        ),
        Step(
            name="pool in low precision",
            memory_bytes=56.0 * num_pool * dim,  # as it came, in float64 three times, the residual six times
            bus_bytes=4.0 * num_pool * dim * from_host,
            waits=math.ceil(num_pool / rows),
        ),
        Step(name="product", flop=2.0 * all_pairs * columns, kind="float16", memory_bytes=2.0 * all_pairs),
        Step(name="largest of each group", memory_bytes=all_pairs * (2 + 7 / group), waits=products),
        # A score of a group lies alone in a sector of 32 bytes; then copied, compared, and found.
        Step(name="groups that reach", memory_bytes=pairs * (group * (32 + 7) + 40), waits=products),
        Step(name="float64 products", flop=2.0 * dim * pairs, kind="float64", memory_bytes=8.0 * dim * pairs),
        Step(name="similarities and keys", memory_bytes=150.0 * pairs, waits=products),
        Step(
            name="exact sums",
            flop=30.0 * dim * unsure,
            kind="float64",
            memory_bytes=720.0 * dim * unsure,
            waits=2 * products,
        ),
        Step(name="running top K", memory_bytes=float(KEY_SORT_BYTES * merged)),
        Step(name="result to the host", memory_bytes=32.0 * num_seeds * k, bus_bytes=8.0 * num_seeds * k, waits=4),
    ]


def search_steps_on_cpu(num_seeds: int, num_pool: int, dim: int, k: int, number_bytes: int) -> list[Step]:
    """The exact search by torch on a CPU, whose first pass has numbers of so many bytes; scores stay in its caches."""
    columns = -(-(dim + cosine_bound.EXTRA_COLUMNS) // 8) * 8
    sample = min(num_pool, sizes.SAMPLE_ROWS_CPU)
    pairs = num_seeds * min(num_pool, candidates_per_seed(num_pool, sample, k))
    return [
        Step(
            name="guess", flop=2.0 * num_seeds * sample * columns, memory_bytes=2.0 * number_bytes * num_seeds * sample
        ),
        Step(name="pool in low precision", memory_bytes=56.0 * num_pool * dim),
        Step(name="product", flop=2.0 * num_seeds * num_pool * columns, memory_bytes=number_bytes * num_pool * columns),
        Step(name="comparison", memory_bytes=(number_bytes + 3.0) * num_seeds * num_pool),
        Step(name="float64 products", flop=2.0 * dim * pairs, kind="float64", memory_bytes=8.0 * dim * pairs),
        Step(name="similarities, keys, top K", memory_bytes=250.0 * pairs),
    ]


def candidates_per_seed(num_pool: int, sample: int, k: int) -> int:
    """How many pairs reach the guess, about, before the running K-th lets fewer through (`Search._guess`)."""
    expected = k * sample / num_pool
    spread = math.sqrt(expected * (1 - sample / num_pool))
    return math.ceil((expected + 5 * spread + 4 + expected / 8 * sample / num_pool) * num_pool / sample)


def embedding_steps(config: TowerConfig, front_end: FrontEnd, sample_rate: int, precision: str) -> list[Step]:
    """One clip of full length, once it is decoded: bus, fbank and forward pass, without the weights, which a batch
    shares."""
    window, shift = window_samples(sample_rate), shift_samples(sample_rate)
    samples = window + (front_end.max_frames - 1) * shift
    fft = 1 << (window - 1).bit_length()
    frames, mels = front_end.max_frames, front_end.num_mel_bins
    width, tokens = config.width, config.num_tokens
    number = 2 if precision in ("float16", "bfloat16") else 4
    patch = config.patch[0] * config.patch[1]
    # The last block needs the keys and values of all tokens, and all else of the class token alone.
    linear = 2.0 * width * ((tokens - 1) * patch + ((config.num_layers - 1) * 12 * tokens + 2 * tokens + 10) * width)
    head = 2.0 * width * config.dim
    attention = 4.0 * ((config.num_layers - 1) * tokens + 1) * tokens * width
    # Per block and token: norms and residuals in float32; 15 numbers of the width in `precision`, written and read.
    block_bytes = tokens * width * (4 * 8 + number * 2 * 15)
    assert width % HEAD_WIDTH == 0
    return [
        Step(name="waveform to the device", bus_bytes=4.0 * samples, memory_bytes=4.0 * samples),
        Step(
            name="fbank",
            flop=frames * (2.5 * fft * math.log2(fft) + 4 * window + 2 * fft * mels / 5),
            # Frames copied into the padded buffer and windowed, its spectrum, the squares' product.
            memory_bytes=4.0 * frames * (8 * window + 5 * fft + 2 * mels),
        ),
        Step(
            name=f"forward, {precision}",
            flop=linear + attention + head,
            kind=precision,
            memory_bytes=float(config.num_layers * block_bytes),
        ),
    ]


def as_json(steps: Sequence[Step], *, gpu: bool = True) -> dict[str, dict[str, float]]:
    """name -> its counts, of a step on a GPU with the least milliseconds on an H100."""
    return {
        step.name: {
            "flop": float(f"{step.flop:.3g}"),
            "memory_bytes": float(f"{step.memory_bytes:.3g}"),
            **(_on_gpu(step) if gpu else {}),
        }
        for step in steps
    }


def _on_gpu(step: Step) -> dict[str, float]:
    return {
        "bus_bytes": float(f"{step.bus_bytes:.3g}"),
        "waits": step.waits,
        "h100_least_ms": float(f"{1e3 * step.least_s:.3g}"),
    }


def show(title: str, steps: Sequence[Step], *, gpu: bool = True) -> None:
    """A table, a line per step."""
    more = f" {'bus MB':>10} {'waits':>6} {'H100, least ms':>15}" if gpu else ""
    print(f"{title:36} {'GFLOP':>12} {'memory MB':>12}{more}")
    for step in steps:
        more = f" {step.bus_bytes / 1e6:10,.1f} {step.waits:6} {1e3 * step.least_s:15.3f}" if gpu else ""
        print(f"  {step.name:34} {step.flop / 1e9:12,.2f} {step.memory_bytes / 1e6:12,.1f}{more}")
    if gpu:
        print(f"  {'all':70} {sum(step.waits for step in steps):6} {1e3 * total_s(steps):15.3f}")


def total_s(steps: Sequence[Step]) -> float:
    """One after the other."""
    return sum(step.least_s for step in steps)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    released = TowerConfig(
        width=768, num_layers=12, dim=512, patch=(32, 32), stride=(16, 24), max_frames=1000, num_mel_bins=128
    )
    tables = {
        "search, 22,160 x 2,041,789 x 512": search_steps(22_160, 2_041_789, 512, 512),
        **{
            f"embedding, per clip, {precision}": embedding_steps(released, VIPANT_FRONT_END, 44_100, precision)
            for precision in ("tf32", "bfloat16")
        },
    }
    for title, steps in tables.items():
        show(title, steps)
    figures = {title: {"steps": as_json(steps), "h100_least_s": total_s(steps)} for title, steps in tables.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
