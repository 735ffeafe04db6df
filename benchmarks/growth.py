"""How the stages around the embedding grow with the pool: seconds and peak memory of each.

`python benchmarks/scale.py --growth` runs this for pools of 0.5 to 10 million generated clips. Each size and kind of
input is a process of its own: `vectors` (`dataset.format=embeddings`) and `store` (VIP-ANT lists whose clips are all in
a store of generated parts; their media are gone, so nothing is decoded). It runs the real pipeline, at K = 512 and then
at K = 100 as a sweep does; of the search only its products are invented. Stages are timed by wrapping the functions
that the pipeline calls; what none of them covers is `rest`. Seconds are of the clock, and of the processors, which say
more where others work on the machine. The peak is the process's own, anew for each stage.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from balance import pipeline, preflight
from balance.audio.fbank import FrontEnd
from balance.config import Settings
from balance.curation import curate, decontaminate
from balance.data import clip_ids, formats, precomputed
from balance.data.config import DatasetConfig, Format
from balance.embed import parts, stage, store, store_files
from balance.embed.inventory import take_inventory
from balance.encoders.checkpoint import TowerConfig, write_random_checkpoint
from balance.encoders.chosen import read_encoder
from balance.encoders.config import EncoderConfig
from balance.records import Facts
from balance.report import page
from balance.results import console, curation_files, manifest, tables
from balance.search import ranges, top_k

SIZES = (500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000)
NUM_SEEDS, DIM, NUM_LABELS, CHUNK = 22_160, 64, 527, 20_000
KS = (512, 100)

# What is timed, by stage: (where the pipeline finds the function, its name).
TIMED: dict[str, tuple[tuple[Any, str], ...]] = {
    "read": ((formats, "read_split"), (precomputed, "read_vectors")),
    "ids": ((clip_ids, "reading"), (preflight, "check_indexes")),
    "stamps": ((stage, "file_stamps"),),
    "open": ((stage, "Store"),),
    "inventory": ((stage, "take_inventory"),),
    "eligible": ((pipeline, "_eligible_positions"), (decontaminate, "decontaminate")),
    "key": ((pipeline, "_neighbours_key"),),
    "neighbours": ((pipeline, "kept_search"),),
    "curation": ((curate, "curate"),),
    "files": (
        *((tables, name) for name in ("write_neighbours", "write_augmented", "write_failures", "write_warnings")),
        *((formats, "write_index"), (curation_files, "write_curation"), (manifest, "write")),
        *((pipeline, "write_train_root"), (console, "tell")),
    ),
    "summary": ((pipeline, "summarise"),),
    "report": ((page, "write_report"),),
}


class Stages:
    """Seconds and peak memory by stage; stages do not nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_s: dict[str, float] = defaultdict(float)
        self.peak_gib: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")
        started, cpu_started = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] += time.perf_counter() - started
        self.cpu_s[name] += time.process_time() - cpu_started
        self.peak_gib[name] = max(self.peak_gib[name], _peak_gib())

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)

    def result(self) -> dict[str, Any]:
        return {
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "cpu_s": {name: round(value, 2) for name, value in self.cpu_s.items()},
            "peak_gib": {name: round(value, 2) for name, value in self.peak_gib.items()},
        }


def _peak_gib() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / (1 << 20)


def write_lists(root: Path, num_pool: int, num_seeds: int) -> None:
    """Three VIP-ANT lists: ids of eleven characters, one to three labels of 527, the frequent ones first by Zipf."""
    rng = np.random.default_rng(0)
    chance = 1 / np.arange(1, NUM_LABELS + 1)
    for split, letter, num in (
        ("balanced_train", "s", num_seeds),
        ("unbalanced_train", "p", num_pool),
        ("eval", "e", num_seeds),
    ):
        with (root / f"src_{split}_segments.csv").open("w") as file:
            for first in range(0, num, CHUNK):
                codes = rng.choice(NUM_LABELS, (min(CHUNK, num - first), 3), p=chance / chance.sum()).tolist()
                for number, some in enumerate(codes, first):
                    labels = ", ".join(f'"/m/{code:05d}"' for code in some[: 1 + number % 3])
                    file.write(
                        f'{{"id": "{letter}{number:010d}", "dir": "{split}_{first}", "aclip": ["p0.mp3"], '
                        f'"frame": [], "bos": "30.000", "eos": "40.000", "labels": [{labels}]}}\n'
                    )


def write_vectors(root: Path, num_pool: int, num_seeds: int) -> None:
    """The same clips as vectors with ids; the lists beside them give the labels."""
    rng = np.random.default_rng(0)
    for split, letter, num in (("balanced_train", "s", num_seeds), ("unbalanced_train", "p", num_pool)):
        name = f"{split}_segments"
        with (root / f"{name}.npy").open("wb") as file, (root / f"{name}.ids.txt").open("w") as ids:
            header = {"descr": "<f4", "fortran_order": False, "shape": (num, DIM)}
            np.lib.format.write_array_header_1_0(file, header)
            for first in range(0, num, CHUNK):
                rows = min(CHUNK, num - first)
                file.write(rng.standard_normal((rows, DIM), dtype=np.float32).data)
                ids.writelines(f"{letter}{number:010d}\n" for number in range(first, first + rows))
        (root / f"src_{name}.csv").rename(root / f"{name}.csv")
    (root / "src_eval_segments.csv").rename(root / "eval_segments.csv")


def write_store(settings: Settings) -> Path:
    """A store in which every clip of the lists has a vector, in parts as a GPU makes them."""
    encoder = read_encoder(settings.encoder)
    fingerprint, _ = stage.fingerprint_of(encoder, settings.encoder.precision.resolve("cpu"))
    folder = settings.cache / "embeddings" / f"{settings.dataset.name}-{fingerprint}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    size = parts.PART_CLIPS["cuda"]
    for split in ("balanced_train_segments", "unbalanced_train_segments", "eval_segments"):
        index = formats.read_split(
            Format.vipant, split, root=settings.root, media=settings.media_root, columns=settings.dataset.columns
        )
        for first in range(0, len(index), size):
            ids, paths = (column[first : first + size].to_pylist() for column in (index.ids, index.paths))
            facts = Facts(
                np.full(len(ids), 16_000, np.int32),
                np.full(len(ids), 160_000, np.int64),
                np.full(len(ids), -20, np.float32),
                rng.integers(0, 256, (len(ids), 20), dtype=np.uint8),
            )
            vectors = rng.standard_normal((len(ids), DIM), dtype=np.float32)
            stamps = np.column_stack([np.full(len(ids), 1), np.arange(first, first + len(ids))])
            rows = store_files.PartRows(ids=ids, paths=paths, embeddings=vectors, facts=facts, stamps=stamps)
            store_files.write_part(folder, parts.plan_name(paths), rows, [], {})
    return folder


def invented(seeds: Any, pool: Any, k: int, config: Any, **_: Any) -> top_k.Result:
    """In the place of the search: k distinct clips for each seed, at similarities that fall."""
    rng = np.random.default_rng(0)
    num_pool = pool.shape[0]
    first, step = rng.integers(0, num_pool, (2, len(seeds), 1))
    positions = (first + (step | 1) * np.arange(k)) % num_pool
    positions = np.where(np.gcd(step | 1, num_pool) == 1, positions, (first + np.arange(k)) % num_pool)
    return positions.astype(np.int32), np.tile(np.linspace(0.99, 0.5, k, dtype=np.float32), (len(seeds), 1))


def one(kind: str, num_pool: int, num_seeds: int, folder: Path) -> dict[str, Any]:
    """Make the input, then measure; returns seconds and peaks by stage."""
    root = folder / "data"
    root.mkdir()
    write_lists(root, num_pool, num_seeds)
    checkpoint = folder / "tiny.pth"
    write_random_checkpoint(
        checkpoint,
        seed=0,
        config=TowerConfig(
            width=64, num_layers=1, dim=DIM, patch=(32, 32), stride=(16, 24), max_frames=100, num_mel_bins=128
        ),
        front_end=FrontEnd(max_frames=100, num_mel_bins=128, mean=-4.9, std=5.8, zero_mean=True),
        wrap=OmegaConf.create,
    )
    settings = Settings(
        k=KS[0],
        dataset=DatasetConfig(root=str(root), media=str(root)),
        encoder=EncoderConfig(checkpoint=str(checkpoint)),
        cache_dir=str(folder / "cache"),
        num_workers=2,
    )
    if kind == "vectors":
        settings.dataset.format = Format.embeddings
        write_vectors(root, num_pool, num_seeds)
    else:
        write_store(settings)
    stages = Stages()
    if kind == "store":
        _plan(settings, stages)
    for name, functions in TIMED.items():
        for owner, function in functions:
            stages.wrap(owner, function, name)
    ranges.search = invented  # the name by which the pipeline's search calls it
    whole: dict[str, float] = {}
    with pipeline.Kept() as kept:
        for k in KS:
            settings.k = k
            run_folder = folder / f"run{k}"
            run_folder.mkdir()
            started = time.perf_counter()
            pipeline.run(settings, run_folder, kept)
            whole[f"k{k}"] = round(time.perf_counter() - started, 1)
    result = stages.result()
    planned = result["seconds"].get("plan", 0.0)
    rest = sum(whole.values()) - sum(result["seconds"].values()) + planned
    return {"kind": kind, "pool": num_pool, "total_s": whole, "rest_s": round(rest, 1), **result}


def _plan(settings: Settings, stages: Stages) -> None:
    """The plan of a first run, in which every clip is to be embedded."""
    index = formats.read_split(
        Format.vipant,
        settings.dataset.unbalanced,
        root=settings.root,
        media=settings.media_root,
        columns=settings.dataset.columns,
    )
    stamps = np.ones((len(index), 2), dtype=np.int64)
    nothing = store.Store(settings.cache / "nowhere")
    with stages.stage("plan"):
        inventory = take_inventory(nothing, "pool", index, stamps, False)
        stage._plan(nothing, [inventory], parts.PART_CLIPS["cuda"])


def growth(sizes: tuple[int, ...], report: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Each size and kind in a process of its own; a line for each, and all figures."""
    results = []
    for num_pool in sizes:
        for kind in ("vectors", "store"):
            command = [sys.executable, __file__, kind, str(num_pool)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            seconds, cpu_s, peaks = result["seconds"], result["cpu_s"], result["peak_gib"]
            shown = ", ".join(f"{x} {seconds[x]:.1f} s ({cpu_s[x]:.1f}) {peaks[x]:.1f} GiB" for x in seconds)
            report(f"{kind} {num_pool:>10,}: {result['total_s']} s, rest {result['rest_s']} s; {shown}")
            results.append(result)
    return results


def main() -> None:
    """One size and kind: `python benchmarks/growth.py store 500000 [SEEDS]`."""
    num_pool, num_seeds = int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else NUM_SEEDS
    folder = Path(tempfile.mkdtemp(prefix="growth-"))
    try:
        print(json.dumps(one(sys.argv[1], num_pool, num_seeds, folder)))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
