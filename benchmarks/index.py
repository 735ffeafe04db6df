"""`balance.index` at AudioSet's size: two million listed clips and as many files, in two layouts.

    python benchmarks/index.py [--tiny] [--folder DIR]

Makes a segment list and empty files (VIP-ANT chunks of 35,000; flat, to be linked), then indexes each in a process of
its own and checks the result against what was made. Prints seconds and peak memory; the last line is JSON.
Making the files takes longer than indexing them. They need 5 million inodes and are removed at the end, not between the
layouts: ext4 is ten times slower at making files just after a mass of others was deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LABELS = [f"/m/{i:05x}" for i in range(527)]
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
CHUNK_CLIPS = 35_000
PRESENT = 0.85


def make_list(path: Path, num_clips: int) -> list[str]:
    """An official list; returns the ids of the clips that will be there."""
    rng = random.Random(7)
    ids = list(dict.fromkeys("".join(rng.choices(ALPHABET, k=11)) for _ in range(num_clips)))
    with path.open("w") as file:
        file.write("# Segments csv\n# counts\n# YTID, start_seconds, end_seconds, positive_labels\n")
        for id in ids:
            start_s = rng.randrange(0, 300, 10)
            labels = ",".join(sorted(set(rng.choices(LABELS, k=2))))
            file.write(f'{id}, {start_s}.000, {start_s + 10}.000, "{labels}"\n')
    return [id for id in ids if rng.random() < PRESENT]


def make_media(root: Path, layout: str, ids: list[str]) -> None:
    for first in range(0, len(ids), CHUNK_CLIPS):
        chunk = root / f"all_{first}_{first + CHUNK_CLIPS}" / ("aclip" if layout == "vipant" else "")
        chunk.mkdir(parents=True)
        for id in ids[first : first + CHUNK_CLIPS]:
            name = f"{id}.p0.mp3" if layout == "vipant" else f"Y{id}.wav"
            os.close(os.open(chunk / name, os.O_CREAT | os.O_WRONLY))


def index(segments: Path, media: Path, out: Path) -> dict[str, float]:
    """Seconds (wall clock and CPU) and peak MiB of one indexing in a fresh process."""
    command = [sys.executable, __file__, "--index", str(segments), str(media), str(out)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    print(done.stdout, end="")
    cpu_s, peak_mib = done.stdout.splitlines()[-1].split()[2::3]
    return {"seconds": round(seconds, 1), "cpu_seconds": float(cpu_s), "peak_mib": int(peak_mib)}


def index_here(segments: str, media: str, out: str) -> None:
    from balance.data.build_index import build
    from balance.data.config import IndexConfig

    for line in build(IndexConfig(segments=segments, media=media, out=out)):
        print(line)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"CPU time {usage.ru_utime + usage.ru_stime:.1f} s, peak {usage.ru_maxrss >> 10} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="20,000 clips: seconds instead of minutes")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the temporary folder)")
    parser.add_argument("--index", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.index:
        index_here(*arguments.index)
        return
    num_clips = 20_000 if arguments.tiny else 2_000_000
    folder = Path(tempfile.mkdtemp(prefix="balance-index-", dir=arguments.folder))
    figures: dict[str, object] = {"benchmark": "index", "num_clips": num_clips}
    try:
        segments = folder / "unbalanced_train_segments.csv"
        ids = make_list(segments, num_clips)
        for layout in ("vipant", "flat"):
            started = time.perf_counter()
            make_media(folder / layout, layout, ids)
            print(f"{layout}: {len(ids):,} files made in {time.perf_counter() - started:.0f} s")
            measured = index(segments, folder / layout, folder / f"{layout}_out")
            with (folder / f"{layout}_out" / f"src_{segments.name}").open() as file:
                right = [json.loads(line)["id"] for line in file] == ids
            figures[layout] = measured | {"exact": right}
            times = f"{measured['seconds']} s ({measured['cpu_seconds']} s of CPU)"
            print(f"{layout}: {times}, {measured['peak_mib']} MiB, exact: {right}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
