"""Signals and bit flips against everything that is kept; not a part of the suite, since it takes half an hour.

    python -m tests.stress                                  # 200 signals, 2,000 flips
    python -m tests.stress --signals 40 --flips 0 --only run,probe

Signals: two jobs on one cache (run, sweep, index, probe, demo) are hit at random moments, the parent, all processes or
one child, and started again; then both are left to end. Flips: one bit in a file of every kept kind at a time, and the
job again. Each time the outputs must be those of an undisturbed job, and nothing may be left running. The last line is
one JSON object; exit status 1 if a byte differs, a job hangs, shows a traceback or leaves a process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests import worlds
from tests.command import contents
from tests.paths import REPOSITORY
from tests.worlds import World

MARK = "BALANCE_STRESS_MARK"
END_LIMIT_S = 12.0  # the promise is 10
LIMIT_S = 400.0  # of a job left alone on a busy machine
SIGNALS_A_ROUND = 8  # then the cache is made anew, so that embedding is hit again
KINDS = ("run", "sweep", "index", "probe", "demo")
PROBE = ["probe.k=[2,4]", "probe.draws=2", "probe.network_steps=20", "probe.penalties=[1.0,0.1]", "probe.folds=3"]


def make_world(root: Path) -> World:
    """Few files under many names, so that there are parts to be hit between; and the lists that `index` reads."""
    world = worlds.make(root, seeds=16, pool=60, evaluation=24)
    records = world.records("pool")
    for i in range(60, 1100):
        record = {**records[i % 60], "id": f"xc_{i:08d}"}
        os.link(world.media(records[i % 60]), world.media(record))
        records.append(record)
    world.write("pool", records)
    for split, name in worlds.SPLITS.items():
        lines = (f'{r["id"]}, 0.000, 1.000, "{",".join(map(str, r["labels"]))}"\n' for r in world.records(split))  # type: ignore[call-overload]
        (root / f"{name}.csv").write_text("# YTID, start_seconds, end_seconds, positive_labels\n" + "".join(lines))
    return world


@dataclass
class Job:
    """One command in a folder of its own, on a shared cache."""

    kind: str
    world: World
    folder: Path
    cache: Path
    extra: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    mark: str = ""

    def command(self) -> list[str]:
        cache = f"cache_dir={self.cache}"
        if self.kind == "demo":
            return ["balance.run", "dataset=demo", "k=4", "num_workers=2", cache]
        if self.kind == "index":
            lists = ",".join(str(self.world.root / f"{name}.csv") for name in worlds.SPLITS.values())
            return [
                "balance.index",
                f"index.segments=[{lists}]",
                f"index.media={self.world.root}",
                f"index.out={self.folder / 'made'}",
            ]
        given = [*self.world.overrides(), cache, *self.extra]
        if self.kind == "probe":
            return ["balance.probe", *given, *PROBE]
        return ["balance.run", *(["-m", "k=2,5"] if self.kind == "sweep" else ["k=5"]), *given]

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        with open(self.folder / "stderr.txt", "ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.command()],
                cwd=self.folder,
                env={**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def pids(self) -> list[int]:
        """Its processes that live, itself first."""
        assert self.process is not None
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return sorted(found, key=lambda pid: pid != self.process.pid)  # type: ignore[union-attr]

    def outputs(self) -> dict[str, bytes]:
        """What the last finished job wrote, but for what may differ."""
        if self.kind == "index":
            made = self.folder / "made"
            return {str(p.relative_to(made)): p.read_bytes() for p in sorted(made.glob("src_*"))}
        if self.kind == "sweep":
            last = max((self.folder / "outputs" / "sweeps").glob("*/*"), key=lambda p: p.stat().st_mtime_ns)
            return {f"{p.name}/{name}": data for p in last.glob("*-k*") for name, data in contents(p).items()}
        place = "probes" if self.kind == "probe" else "runs"
        last = max((self.folder / "outputs" / place).glob("*/*"), key=lambda p: p.stat().st_mtime_ns)
        return {name: data for name, data in contents(last).items() if not name.endswith(".log")}

    def finish(self) -> int:
        """Wait for its end; its exit status."""
        assert self.process is not None
        return self.process.wait(LIMIT_S)


@dataclass
class Found:
    """What went wrong, and how much was done."""

    counts: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)

    def wrong(self, what: str, words: str) -> None:
        self.counts[what] += 1
        self.words.append(f"{what}: {words}")
        print(f"  {what}: {words}", flush=True)


def differing_bytes(a: dict[str, bytes], b: dict[str, bytes]) -> int:
    total = 0
    for name in {*a, *b}:
        x, y = a.get(name, b""), b.get(name, b"")
        total += abs(len(x) - len(y)) + sum(i != j for i, j in zip(x, y, strict=False))
    return total


def shows_traceback(said: str) -> bool:
    """Whether one has code of ours in it: what Python says of Ctrl-C before it reads ours does not count."""
    return any("/balance/" in text for text in said.split("Traceback")[1:])


def is_gone(job: Job) -> bool:
    deadline = time.monotonic() + END_LIMIT_S
    while job.pids():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def disturb(kind: str, num_signals: int, world: World, folder: Path, rng: random.Random, found: Found) -> None:
    """So many signals at jobs of this kind, then their outputs compared."""
    calm = Job(kind, world, folder / kind / "calm" / "a", folder / kind / "calm" / "cache")
    started = time.monotonic()
    calm.start()
    if calm.finish():
        raise SystemExit((calm.folder / "stderr.txt").read_text())
    usual_s, expected = time.monotonic() - started, calm.outputs()
    left, number = num_signals, 0
    while left > 0:
        number += 1
        place = folder / kind / str(number)  # the page's links to media are relative: the same distances everywhere
        jobs = [
            Job(kind, world, place / name, place / "cache", extra)
            for name, extra in (("a", ()), ("b", ("num_processes=2",)))
        ]
        for job in jobs:
            job.start()
        for _ in range(min(left, SIGNALS_A_ROUND)):
            time.sleep(rng.uniform(0, usual_s))
            hit(rng.choice(jobs), rng, found)
            left -= 1
        for job in jobs:
            for _ in range(3):  # a job whose last worker was killed says so and is started again
                if job.finish() == 0:
                    break
                job.start()
            else:
                found.wrong("failed", f"{kind}: {(job.folder / 'stderr.txt').read_text()[-600:]}")
                continue
            if bytes_wrong := differing_bytes(job.outputs(), expected):
                found.counts["differing_bytes"] += bytes_wrong
                found.wrong("differs", f"{kind} in {job.folder}")
            if shows_traceback((job.folder / "stderr.txt").read_text()):
                found.wrong("traceback", f"{kind}: {(job.folder / 'stderr.txt').read_text()[-1500:]}")
            if not is_gone(job):
                found.wrong("left_running", f"{kind}: {job.pids()}")
        for path in (p for p in place.rglob("*") if p.name.startswith(("tmp-", "lock-", "use-"))):
            found.counts["left_files"] += 1
            print(f"  left: {path.relative_to(folder)}", flush=True)
        if not found.words:
            shutil.rmtree(place)


def hit(job: Job, rng: random.Random, found: Found) -> None:
    """One signal; a job that it ends must end in time, and is started again."""
    assert job.process is not None
    if job.process.poll() is not None:
        job.start()
        time.sleep(rng.uniform(0, 3))
    pids = job.pids()
    if not pids:
        return
    number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
    target = rng.choice(["parent", "all", "child"])
    chosen = {"parent": pids[:1], "all": pids, "child": [rng.choice(pids[1:] or pids)]}[target]
    found.counts[f"{target} {number.name}"] += 1
    for pid in chosen:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    if job.process.pid not in chosen:
        return
    try:
        job.process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        found.wrong("hangs", f"{job.kind} after {number.name} to {target}")
        job.process.kill()
    if not is_gone(job):
        found.wrong("left_running", f"{job.kind} after {number.name} to {target}: {job.pids()}")
    job.start()


def flip(num_flips: int, world: World, folder: Path, rng: random.Random, found: Found) -> None:
    """So many bits, one in each kept file of one kind or another at a time; the job runs in this process."""
    from balance import pipeline
    from balance.config import ProbeSettings
    from balance.data.config import DatasetConfig
    from balance.encoders.config import EncoderConfig
    from balance.encoders.precision import Precision
    from balance.probe import job as probe_job
    from balance.probe.config import ProbeConfig

    def settings(cache: Path) -> ProbeSettings:
        return ProbeSettings(
            k=5,
            dataset=DatasetConfig(root=str(world.root)),
            encoder=EncoderConfig(checkpoint=str(world.checkpoint), device="cpu", precision=Precision.bfloat16),
            num_workers=1,
            cache_dir=str(cache),
            probe=ProbeConfig(k=[2, 4], draws=2, network_steps=20, penalties=[1.0, 0.1], folds=3),
        )

    def run(cache: Path, name: str, *, probe: bool) -> dict[str, bytes]:
        out = folder / "flips" / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        if probe:
            probe_job.run(settings(cache), out)
        else:
            pipeline.run(settings(cache), out)
        return contents(out)

    cache, kept = folder / "flips" / "cache", folder / "flips" / "kept"
    run(cache, "out", probe=False)
    for path in list(world.root.rglob("*.p0.*"))[:10]:  # so that there is a confirmation
        os.utime(path)
    expected = {probe: run(cache, "out", probe=probe) for probe in (False, True)}
    shutil.copytree(cache, kept)
    left = num_flips
    while left > 0:
        shutil.rmtree(cache)
        shutil.copytree(kept, cache)
        kinds: dict[str, list[Path]] = {}
        for path in sorted(p for p in cache.rglob("*") if p.is_file()):
            place, name = path.relative_to(cache).parts[0], path.name.partition("-")[0]
            kinds.setdefault(f"{place}/{name if place == 'embeddings' else ''}{path.suffix}", []).append(path)
        flipped = []
        for kind, paths in sorted(kinds.items()):
            path = rng.choice(paths)
            data = bytearray(path.read_bytes())
            if data:
                at = rng.randrange(8 * len(data))
                data[at // 8] ^= 1 << at % 8
                path.write_bytes(data)
                flipped.append(f"{path.relative_to(cache)} bit {at}")
                found.counts[f"flips of {kind}"] += 1
        left -= len(flipped)
        probe = rng.random() < 0.3
        try:
            bytes_wrong = differing_bytes(run(cache, "out", probe=probe), expected[probe])
        except Exception as error:
            found.wrong("raised", f"{type(error).__name__}: {error} after {flipped}")
            bytes_wrong = 0
        if bytes_wrong:
            found.counts["differing_bytes"] += bytes_wrong
            found.wrong("differs", f"after {flipped}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=200)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--only", default=",".join(KINDS), help="the kinds of jobs that get signals")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, found, kinds = random.Random(args.seed), Found(), args.only.split(",")
    with tempfile.TemporaryDirectory(prefix="balance-stress-") as name:
        folder = Path(name)
        world = make_world(folder / "world")
        for i, kind in enumerate(kinds):
            num_signals = len(range(i, args.signals, len(kinds)))
            print(f"{kind}: {num_signals} signals", flush=True)
            if num_signals:
                disturb(kind, num_signals, world, folder, rng, found)
        if args.flips:
            print(f"{args.flips} bit flips", flush=True)
            flip(args.flips, world, folder, rng, found)
    wrong = {what: found.counts[what] for what in ("differs", "failed", "hangs", "left_running", "raised", "traceback")}
    print(*found.words, sep="\n")
    print(json.dumps({"differing_bytes": found.counts["differing_bytes"], **wrong, "counts": dict(found.counts)}))
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
