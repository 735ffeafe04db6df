"""What many machines cost on one: Ray beside this machine's own processes, and how fast a driver hands out parts.

    python benchmarks/scale.py [--repeats N] [--parts N] [--growth [SIZE …]]

The demo-sized job, executor=local and executor=ray in turns on the same cores, both with an empty store; then parts of
4,096 clips that workers take and finish at once (stubs of decoders and encoder), on 1, 2, 4 and 8 Ray nodes of one slot
each, real raylets. `--growth` measures instead how the stages around the embedding grow with the pool (growth.py). The
last line is JSON. The driver and all nodes share the cores: with more nodes the rate says less of the driver.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import growth
import numpy as np
import pyarrow as pa

from balance.embed.parts import Parts, ToEmbed, plan_parts
from balance.engine.config import ExecutorConfig
from balance.engine.seam import Place, Tasks
from balance.records import Index, Labels

PART_CLIPS = 4096
NODES = (1, 2, 4, 8)
SECONDS_PER_PART = 5.0  # of a GPU
OBJECT_STORE_BYTES = 80 << 20


def take(setup: None, place: Place, tasks: Tasks[Any], report: Callable[[Any], None]) -> None:
    """A worker whose decoders and encoder take no time."""
    for number, _ in tasks:
        report(number)
        tasks.finish(number)


def run_demo(folder: Path, executor: str) -> dict[str, float]:
    """Seconds of a run's stages with an empty store."""
    command = [sys.executable, "-m", "balance.run", "dataset=demo", f"executor={executor}", "refresh=true"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    for kept in (folder / "outputs/cache/neighbours").glob("*"):
        kept.unlink()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    newest = max((folder / "outputs/runs").glob("*/*/manifest.json"), key=os.path.getmtime)
    times: dict[str, float] = json.loads(newest.read_text())["times_s"]
    return times


def start_s() -> float:
    """Seconds until Ray's first worker on this machine has imported what embeds, and has done nothing."""
    from balance.engine.ray import Cluster

    started = time.monotonic()
    with Cluster(ExecutorConfig(), "cpu") as cluster:
        cluster.run(import_only, None, [0], lambda _: None)
        return time.monotonic() - started


def import_only(setup: None, place: Place, tasks: Tasks[Any], report: Callable[[Any], None]) -> None:
    """A worker's start, and no work."""
    import balance.embed.worker  # noqa: F401

    take(setup, place, tasks, report)


def planned(num_parts: int) -> Parts:
    """Parts of clips with names like AudioSet's."""
    count = num_parts * PART_CLIPS
    numbers = np.arange(count)
    ids = pa.array([f"{i:011d}" for i in numbers])
    paths = pa.array([f"unbalanced_train_segments_{i // 35_000:02d}/aclip/{i:011d}.p0.mp3" for i in numbers])
    index = Index("made", ids, paths, Labels.of([()] * count))
    return Parts(plan_parts([ToEmbed("pool", index, numbers, np.ones((count, 2), np.int64))], PART_CLIPS))


@contextlib.contextmanager
def raylets(num_nodes: int) -> Iterator[str]:
    """The address of a cluster of so many nodes of one CPU, and a head that gets no work."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=options)
    try:
        for _ in range(num_nodes):
            made.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
        yield made.address
    finally:
        made.shutdown()


def parts_per_second(num_nodes: int, parts: Parts) -> float:
    """Handed out, taken and told back; the workers have started."""
    from balance.engine.ray import Cluster

    with raylets(num_nodes) as address, Cluster(ExecutorConfig(address=address), "cpu") as cluster:
        cluster.run(take, None, list(range(4 * num_nodes)), lambda _: None)
        started = time.monotonic()
        cluster.run(take, None, parts, lambda _: None)
        return len(parts) / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", type=int, default=400)
    parser.add_argument("--growth", type=int, nargs="*", metavar="SIZE", help="pool sizes in clips, and nothing else")
    given = parser.parse_args()
    if given.growth is not None:
        print(json.dumps({"growth": growth.growth(tuple(given.growth) or growth.SIZES)}))
        return
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    seconds: dict[str, list[float]] = {"local": [], "ray": [], "start": []}
    with tempfile.TemporaryDirectory(prefix="scale-") as made:
        folder = Path(made)
        run_demo(folder, "local")  # makes the demo
        for _ in range(given.repeats):
            for executor in ("local", "ray"):
                times = run_demo(folder, executor)
                seconds[executor].append(times["total_s"])
            seconds["start"].append(start_s())
            print("demo: " + ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items()), flush=True)
    local, through_ray, starting = (statistics.median(values) for values in seconds.values())
    figures |= {"local_s": local, "ray_s": through_ray, "ray_start_s": starting}
    figures["ray_beyond_start"] = (through_ray - starting) / local - 1
    print(f"beyond Ray's start ({starting:.1f} s) the demo takes {figures['ray_beyond_start']:+.1%} with Ray")
    parts = planned(given.parts)
    figures["parts_per_s"] = {}
    for num_nodes in NODES:
        rate = figures["parts_per_s"][num_nodes] = parts_per_second(num_nodes, parts)
        print(f"{num_nodes} nodes: {rate:.0f} parts/s of {PART_CLIPS:,} clips handed out", flush=True)
    needed = 64 * 8 / SECONDS_PER_PART
    print(f"64 nodes of 8 GPUs, {SECONDS_PER_PART:.0f} s per part: {needed:.0f} parts/s are asked for")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
