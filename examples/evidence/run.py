"""Do nearest neighbours help on this sound? One command from a data set's folder to `results.md`.

    python examples/evidence/run.py --data /data/ESC-50-master --layout esc50 --out outputs/evidence/esc50 \\
        --encoder "plugin target=birdnet:BirdNet args={model:/models/birdnet.tflite}" \\
        --judge "plugin target=cepstra:Cepstra"

Seeds, pool and evaluation clips are divided by source. Then every encoder chooses neighbours (`balance.run`) and
another one judges them (`balance.probe`, with its rivals), both ways round; with `--finetune` a network is trained on
the same sets (`balance.finetune`). Only the program's own commands are called, and a stopped experiment, typed again,
goes on where it was. README.md beside this file says what comes out and how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lists
import results

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder as typed: `NAME KEY=VALUE …`, the keys without `encoder.`."""

    words: tuple[str, ...]

    @property
    def title(self) -> str:
        """`vipant`; of a plugin the name of its class; of a model the last part of its name."""
        keys = dict(word.partition("=")[::2] for word in self.words[1:])
        named = keys.get("target") or keys.get("model") or keys.get("module") or self.words[0]
        return named.replace("/", ":").rpartition(":")[2]

    def overrides(self, group: str) -> list[str]:
        """As a command takes them. group: `encoder` or `probe.encoder`."""
        return [f"{group}={self.words[0]}", *(f"{group}.{word}" for word in self.words[1:])]


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--layout", choices=["folders", "esc50", "fsd50k", "audioset"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="where everything is written")
    parser.add_argument("--encoder", required=True, help="the first encoder: 'NAME KEY=VALUE …', without encoder.")
    parser.add_argument("--judge", action="append", required=True, help="another encoder; may be given several times")
    parser.add_argument("--source", help="a regular expression whose first group in a clip's id is its source")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 8], help="neighbours per seed")
    parser.add_argument("--finetune", type=int, nargs="+", default=[], metavar="K", help="also train, at these K")
    parser.add_argument(
        "--shares", type=float, nargs=3, default=[0.15, 0.5, 0.35], help="of seeds, pool and evaluation clips"
    )
    parser.add_argument("--seed", type=int, default=1213, help="of the division")
    parser.add_argument("overrides", nargs="*", help="further keys of the commands, such as probe.draws=10")
    return parser.parse_args(given)


def command(name: str, out: Path, overrides: Sequence[str]) -> None:
    """`python -m balance.NAME` in the folder `out`; stops the experiment where it fails."""
    typed = [sys.executable, "-m", f"balance.{name}", *overrides]
    print("$", shlex.join(typed[1:]), flush=True)
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    folders = {"BALANCE_CACHE": "cache", "BALANCE_OUTPUTS": "outputs"}
    done = subprocess.run(typed, cwd=out, env={**os.environ, **folders, "PYTHONPATH": os.pathsep.join(paths)})
    if done.returncode:
        sys.exit(done.returncode)


def lists_of(args: argparse.Namespace) -> list[str]:
    """Writes the three lists; returns the overrides that name them."""
    data, out = args.data.expanduser().resolve(), args.out
    layout = lists.layout(args.layout, args.source)
    own = [f"index.layout={layout.name}", f"index.media={data / layout.media}", "index.out=index"]
    if layout.lists:
        own.append(f"index.segments=[{','.join(str(data / name) for name in layout.lists)}]")
    command("index", out, own)
    stems = [Path(name).stem for name in layout.lists] or [data.name]
    if layout.parts == lists.PARTS:
        return ["dataset.root=index", *_named(stems)]
    given = [lists.read(out / "index" / f"src_{stem}.csv") for stem in stems]
    lists.write(lists.divide(given, layout, data, args.shares, args.seed), out / "index", out / "lists")
    return ["dataset.root=lists", "dataset.ids=whole", *_named(lists.PARTS)]


def _named(names: Sequence[str]) -> list[str]:
    keys = ("balanced", "unbalanced", "eval")
    return ["dataset.name=evidence", *(f"dataset.{key}={name}" for key, name in zip(keys, names, strict=True))]


def main(given: Sequence[str] | None = None) -> None:
    args = parsed(given)
    out = args.out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    encoders = [Encoder(tuple(shlex.split(text))) for text in (args.encoder, *args.judge)]
    if len({encoder.title for encoder in encoders}) < len(encoders):
        sys.exit(f"--encoder and --judge name one encoder twice: {', '.join(one.title for one in encoders)}")
    pairs = [pair for judge in encoders[1:] for pair in ((encoders[0], judge), (judge, encoders[0]))]
    for_probe, for_finetune = (
        [key for key in args.overrides if key.startswith(name)] for name in ("probe.", "finetune.")
    )
    common = [*lists_of(args), *(key for key in args.overrides if key not in (*for_probe, *for_finetune))]
    ks, trained_ks = (sorted(set(numbers)) for numbers in (args.k, args.finetune))
    for encoder in encoders:
        where = [f"hydra.sweep.dir=runs/{encoder.title}", "hydra.sweep.subdir=k${k}"]
        command("run", out, ["-m", f"k={_joined(ks)}", *common, *encoder.overrides("encoder"), *where])
    source = [] if args.layout == "audioset" else [f"probe.source='{lists.SOURCE}'"]
    probe = [*common, *source, "probe.stratified=true", *for_probe]
    for chooser, judge in pairs:
        own = [*probe, *chooser.overrides("encoder"), *judge.overrides("probe.encoder")]
        where = f"{chooser.title}-{judge.title}"
        command("probe", out, [*own, f"probe.k=[{_joined(ks)}]", f"hydra.run.dir=probes/{where}"])
        if trained_ks:
            keys = [f"finetune.k=[{_joined(trained_ks)}]", f"hydra.run.dir=finetunes/{where}", *for_finetune]
            command("finetune", out, [*own, *keys])
    found = results.gather(
        out,
        {encoder.title: ks for encoder in encoders},
        [(chooser.title, judge.title) for chooser, judge in pairs],
        is_trained=bool(trained_ks),
        asked={
            **{name: getattr(args, name) for name in ("layout", "source", "shares", "seed")},
            "overrides": [key for key in args.overrides if "/" not in key],  # no paths of this machine
        },
    )
    (out / "results.json").write_text(json.dumps(found) + "\n", "utf-8")
    (out / "results.md").write_text(results.page(found), "utf-8")
    print(f"results: {out / 'results.md'}")


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


if __name__ == "__main__":
    main()
