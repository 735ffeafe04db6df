"""From neighbours to all output files at AudioSet size: time, memory, the cap's and the page's share, growth.

`python benchmarks/augment.py [--tiny] [--per-label N]` generates seeds, a pool with Zipf labels and neighbours with
hubs (lognormal popularity), runs the curation steps (copies by samples, cap) and writes every file of a run to a
temporary folder. Each pool size runs in a process of its own, so that its peak memory is its own (the generated input
included). Beside each stage's time stands what it writes. Target on two cores: 120 s, 8 GiB at 2 M, of it the cap 60 s
and the page 20 s. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from balance.curation import curate
from balance.curation.config import AugmentConfig, Balance, Copies
from balance.curation.removed import Removals
from balance.data import vipant_index
from balance.data.config import Ids
from balance.prepared import Embedded, Prepared
from balance.records import Facts, Index, Labels, Neighbours, Split
from balance.report.page import About, write_report
from balance.results import curation_files, manifest, tables
from balance.results.summary import summarise, write_summary
from balance.search.top_k import ArrayVectors

NUM_LABELS = 527
AUDIOSET = {"seeds": 22_160, "pools": [250_000, 500_000, 1_000_000, 2_000_000], "k": 512}
TINY = {"seeds": 100, "pools": [2_000, 4_000], "k": 32}


def make_split(prefix: str, num: int, rng: np.random.Generator, exponent: float) -> Split:
    """A split of `num` clips with Zipf labels, 1 + Poisson(1) per clip, JSON lines and clip facts."""
    chance = 1 / np.arange(1, NUM_LABELS + 1) ** exponent
    row = np.repeat(np.arange(num), 1 + rng.poisson(1.0, num))
    pairs = np.unique(row * NUM_LABELS + rng.choice(NUM_LABELS, len(row), p=chance / chance.sum()))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs // NUM_LABELS, minlength=num))]).astype(np.int64)
    names = tuple(f"/m/{i:05d}" for i in range(NUM_LABELS))
    labels = Labels(names, offsets, (pairs % NUM_LABELS).astype(np.int32))
    ids = [f"{prefix}{i:010d}" for i in range(num)]
    lines = [
        b'{"id": "%s", "dir": "all_%d", "aclip": ["p0.mp3"], "frame": ["p0.3_1.jpg"], "bos": "30.000", '
        b'"eos": "40.000", "labels": ["/m/00001", "/m/00002"]}' % (clip.encode(), i // 35_000)
        for i, clip in enumerate(ids)
    ]
    index = Index(
        file=f"src_{prefix}.csv",
        ids=pa.array(ids),
        paths=pa.array([f"all_{i // 35_000}/aclip/{clip}.p0.mp3" for i, clip in enumerate(ids)]),
        labels=labels,
        lines=pa.array(lines, pa.large_binary()),
    )
    facts = Facts(
        rng.choice([22050, 44100, 48000], num, p=[0.05, 0.85, 0.1]).astype(np.int32),
        np.full(num, 441_000),
        rng.normal(-25, 8, num).astype(np.float32),
        rng.integers(0, 256, (num, 20), dtype=np.uint8),
    )
    return Split(index, np.arange(num), ArrayVectors(np.zeros((num, 1), dtype=np.float32)), facts)


def make_neighbours(num_seeds: int, num_pool: int, k: int, rng: np.random.Generator) -> Neighbours:
    """Neighbours with hubs: clips drawn by lognormal popularity, without repeats in a seed."""
    bounds = np.cumsum(rng.lognormal(0, 1.5, num_pool))
    rows = np.empty((num_seeds, k), dtype=np.int32)
    for seed in range(num_seeds):
        found = np.empty(0, dtype=np.int64)
        while len(found) < k:
            more = np.searchsorted(bounds, rng.random(2 * k) * bounds[-1])
            found = np.concatenate([found, more])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
        rows[seed] = found[:k]
    similarities = rng.random((num_seeds, k), dtype=np.float32)
    return Neighbours(np.arange(num_seeds), rows, -np.sort(-similarities, axis=1))


def one_size(num_seeds: int, num_pool: int, k: int, per_label: int) -> dict[str, Any]:
    """Stage -> seconds, and the peak memory, of one run."""
    rng = np.random.default_rng(0)
    seeds, pool = make_split("s", num_seeds, rng, 0.3), make_split("p", num_pool, rng, 1.0)
    neighbours = make_neighbours(num_seeds, num_pool, k, rng)
    config = AugmentConfig(copies=Copies.exact, balance=Balance.cap, per_label=per_label)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = Prepared(
            embedded=Embedded(
                splits={"seeds": seeds, "pool": pool},
                failures=(),
                ontology={},
                ids_as=Ids.whole,
                fingerprint="none",
                identity="",
                device="cpu",
                precision="float32",
                precision_report=None,
                inputs={},
                times_s={},
            ),
            times_s={},
            decontaminated=Removals.none(),
            eligible=np.arange(num_pool),
            neighbours=neighbours,
        )
        input_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        times: dict[str, float] = {}
        last = time.perf_counter()

        written_bytes: dict[str, int] = {}

        def done(stage: str) -> None:
            nonlocal last
            times[stage] = time.perf_counter() - last
            files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            written_bytes[stage] = files - sum(written_bytes.values())
            last = time.perf_counter()

        curated = curate.curate(
            config, rng_seed=1, seeds=seeds, pool=pool, eligible=prepared.eligible, neighbours=neighbours
        )
        done("curation steps")
        written = tables.write_neighbours(folder, k, seeds.index, pool.index, neighbours)
        done("neighbours files")
        written += tables.write_augmented(folder, k, seeds.index, seeds.embedded, pool.index, curated.union)
        parts = [seeds.index, pool.index.take(curated.union.pool_rows)]
        written += vipant_index.write_index(folder / f"src_augmented_k{k}.csv", parts)
        done("augmented files")
        written += curation_files.write_curation(
            folder, k, seeds.index, seeds.embedded, pool.index, prepared.decontaminated, curated
        )
        done("decisions")
        summary = summarise(prepared, k, curated)
        write_summary(folder, summary)
        done("summary")
        about = About(
            dataset="audioset",
            is_demo=False,
            media_root=folder,
            media_base=None,
            parents={},
            sound=None,
            num_embedded=0,
            rng_seed=1213,
        )
        page = write_report(folder, about, prepared=prepared, k=k, curated=curated, summary=summary)
        done("page")
        manifest.write(
            folder,
            config={},
            embedded=prepared.embedded,
            outputs=[*written, page],
            ids=folder / f"ids_k{k}.csv",
            times_s={},
        )
        done("manifest")
        return {
            "pool": num_pool,
            "union": curated.num_found,
            "kept": len(curated.union),
            "bound": curated.figures.cap.bound,
            "seconds": {stage: round(value, 2) for stage, value in times.items()},
            "written_mb": {stage: round(value / 1e6, 1) for stage, value in written_bytes.items()},
            "neighbours_mb": round(8e-6 * len(seeds.embedded) * k, 1),  # what every stage reads
            "total_s": round(sum(times.values()), 2),
            "page_mb": round(page.stat().st_size / 1e6, 2),
            "input_gib": round(input_gib, 2),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--per-label", type=int, help="of the cap")
    parser.add_argument("--one", type=int, nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_size(*given.one)))
        return
    size: dict[str, Any] = TINY if given.tiny else AUDIOSET
    per_label = given.per_label or (20 if given.tiny else 5_000)
    results = []
    print(f"{size['seeds']:,} seeds, K = {size['k']}, cap at {per_label:,}")
    for num_pool in size["pools"]:
        one = [str(x) for x in (size["seeds"], num_pool, size["k"], per_label)]
        done = subprocess.run([sys.executable, __file__, "--one", *one], stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        mb = result["written_mb"]
        stages = ", ".join(f"{stage} {value:.1f} s, {mb[stage]} MB" for stage, value in result["seconds"].items())
        print(
            f"pool {num_pool:>9,}: {result['total_s']:6.1f} s, peak {result['peak_gib']:.1f} GiB; {stages}; cap kept "
            f"{result['kept']:,} of {result['union']:,} (bound {result['bound']:,}); page {result['page_mb']} MB",
            flush=True,
        )
        results.append(result)
    print(json.dumps({"seeds": size["seeds"], "k": size["k"], "per_label": per_label, "sizes": results}))


if __name__ == "__main__":
    main()
