"""An audit from its settings to its files: audit.json, audit.html, copies.txt, and the verdict on the console.

Reads the lists, hears the clips that no audit has heard before, compares, writes. A stopped audit goes on with the
clips that are left. Nothing that could not be compared is passed over: it is counted by list and reason, and where
there is any the verdict is not `clean`.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from balance import __version__
from balance.audit import page
from balance.audit.known import Known, known
from balance.audit.lists import Listed, read_lists
from balance.audit.pairs import RULES, Clip, Pair, Samples, by_id, by_sound, first_of_each
from balance.config import AuditSettings, as_omegaconf
from balance.curation.config import Leaks
from balance.curation.sounds import MAX_S, Decoders, Heard, Sounds, hear_all
from balance.data.config import Format
from balance.data.missing import refuse_missing, round_up
from balance.demo.making import ensure_demo
from balance.errors import UserError
from balance.results.manifest import git_commit
from balance.runtime import files
from balance.runtime.terminal import Stage

log = logging.getLogger(__name__)

STATUS = {"clean": 0, "incomplete": 0, "copies": 3}  # incomplete: within max_failures and max_missing
# Why a clip was not compared as asked, and what is said of it.
NOT_COMPARED = {
    "missing": "without a file",
    "unreadable": "that cannot be decoded",
    "too_short": "too short to compare their sound (under 0.3 s)",
    "in_part": f"longer than {MAX_S} s, of which only {MAX_S} s were heard",
    "not_whole": "that could not be decoded to their end",
}
# Of one core of 2026 per training clip of 10 s, and more per evaluation clip, for the estimate that is printed first.
_COMPARE_S, _LOOK_UP_S = 0.012, 6e-7


@dataclass(slots=True)
class Compared:
    """What was compared of one list. counts: clips by what became of them (`heard`, `silent`, and NOT_COMPARED);
    digests: `id pcm_sha1` of each clip that was decoded."""

    listed: Listed
    counts: Counter[str]
    digests: list[str]

    def add(self, row: int, heard: Heard, *, by_sound: bool) -> None:
        if heard.reason == "too_short":
            self.counts["too_short"] += 1
        elif heard.reason:
            self.counts["unreadable"] += 1
        else:
            self.digests.append(f"{self.listed.index.ids[row].as_py()} {heard.pcm_sha1.hex()}")
            self.counts["heard"] += 1
            self.counts["silent"] += heard.is_silent
            self.counts["not_whole"] += bool(heard.detail)
            self.counts["in_part"] += by_sound and heard.is_part
            self.counts["too_short"] += by_sound and not heard.is_silent and not any(map(len, heard.windows))

    def plain(self) -> dict[str, Any]:
        """For audit.json."""
        listed, counts = self.listed, self.counts
        return {
            "list": listed.name,
            "file": listed.index.file,
            "format": listed.media.format.value,
            "num_clips": len(listed.index),
            "num_heard": counts["heard"],
            "num_silent": counts["silent"],
            "not_compared": {reason: counts[reason] for reason in NOT_COMPARED},
            "file_sha256": listed.file_sha256(),
            "ids_sha256": listed.ids_sha256(),
            "samples_sha256": hashlib.sha256("\n".join(sorted(self.digests)).encode("utf-8")).hexdigest(),
        }


def run(settings: AuditSettings, folder: Path) -> str:
    """The whole job into `folder`; the verdict, a key of STATUS. Raises UserError, OSError."""
    started = time.monotonic()
    if settings.is_demo:
        ensure_demo(settings.cache_folder / "demo", num_processes=settings.num_decoders, wrap=as_omegaconf)
    train, eval = read_lists(settings)
    for listed in (*train, *eval):
        log.info("%s: %s clips in %s", listed.side, f"{len(listed.index):,}", listed.index.file)
    pairs = list(by_id(train, eval, settings.dataset.ids))
    compared = [Compared(listed, Counter(), []) for listed in (*train, *eval)]
    if settings.audit.level is not Leaks.id:
        pairs += _by_sound(settings, train, eval, compared)
    found = first_of_each(pairs)
    verdict = "copies" if found else "incomplete" if any(_not_compared(one) for one in compared) else "clean"
    result = _result(settings, verdict, compared, found, train, eval)
    _write(settings, folder, result, found, train, eval, time.monotonic() - started)
    _tell(folder, verdict, compared, found)
    return verdict


# -- hearing and comparing -----------------------------------------------------------------------------------------


def _by_sound(
    settings: AuditSettings, train: Sequence[Listed], eval: Sequence[Listed], compared: Sequence[Compared]
) -> list[Pair]:
    """Pairs by equal samples and, at the level `acoustic`, by sound."""
    lists = [*train, *eval]
    _refuse_without_sound(settings, lists)
    sounds = _stores(settings, lists)
    decoders = Decoders(
        num_workers=settings.num_decoders, queue_bytes=settings.queue_bytes, clip_timeout_s=settings.clip_timeout_s
    )
    acoustic = settings.audit.level is Leaks.acoustic
    facts = [None if acoustic else _known(settings, listed, decoders) for listed in lists]
    left = [listed.without(one.rows) if one else listed for listed, one in zip(lists, facts, strict=True)]
    num_train, num_eval = (sum(len(listed.index) for listed in side) for side in (train, eval))
    hear_all(
        "audit",
        list(zip(sounds, left, strict=True)),
        decoders,
        again=settings.retry_failures,
        compare_s=num_train * (_COMPARE_S + num_eval * _LOOK_UP_S) if acoustic else 0.0,
    )
    places = [
        one.places(listed.index, listed.stamps, with_failed=True) for one, listed in zip(sounds, left, strict=True)
    ]
    for one, at, theirs in zip(compared, places, facts, strict=True):
        one.counts["missing"] = int((at < 0).sum()) - (len(theirs.rows) if theirs else 0)

    def read(what: str, first: int, some: Sequence[Listed]) -> Iterator[tuple[Clip, Heard]]:
        with Stage(what, sum(len(listed.index) for listed in some)) as stage:
            for number in range(len(some)):
                theirs = facts[first + number]
                heard_of = sounds[first + number].read(places[first + number])
                for row, heard in itertools.chain(theirs.heard() if theirs else (), heard_of):
                    compared[first + number].add(row, heard, by_sound=acoustic)
                    yield (number, row), heard
                    stage.advance()

    samples = Samples()
    exact: list[Pair] = []

    def of_eval() -> Iterator[tuple[Clip, Heard]]:
        for clip, heard in read("remembering evaluation clips", len(train), eval):
            samples.add(clip, heard)
            yield clip, heard

    def of_train() -> Iterator[tuple[Clip, Heard]]:
        for clip, heard in read("comparing training clips", 0, train):
            exact.extend(samples.pairs(clip, heard))
            yield clip, heard

    if not acoustic:
        for _ in of_eval():
            pass
        for _ in of_train():
            pass
        found = exact
    else:
        alike = by_sound(
            of_eval(),
            of_train(),
            num_eval_windows=num_eval,
            threshold=settings.augment.copy_threshold,
            scratch=settings.cache_folder,
        )
        found = [*alike, *exact]
    _refuse_unreadable(settings, compared)
    return found


def _refuse_without_sound(settings: AuditSettings, lists: Sequence[Listed]) -> None:
    for listed in lists:
        if listed.media.format is Format.embeddings and all(path == "" for path in listed.index.paths.to_pylist()):
            raise UserError(
                f"audit.level={settings.audit.level.value} compares sound, and {listed.index.file} has none (no index "
                "that names its files lies beside the vectors): type audit.level=id"
            )
        refuse_missing(
            listed.side,
            listed.index,
            np.flatnonzero(listed.missing),
            max_missing=settings.max_missing,
            media_root=listed.media.root,
            names={},
        )


def _stores(settings: AuditSettings, lists: Sequence[Listed]) -> list[Sounds]:
    """Of each list; lists of the same media share one."""
    made: dict[str, Sounds] = {}
    return [made.setdefault(repr(listed.media), Sounds(settings.cache_folder, listed.media)) for listed in lists]


def _known(settings: AuditSettings, listed: Listed, decoders: Decoders) -> Known | None:
    """What runs know of the samples; features of the sound are in no store."""
    found = known(listed, settings.cache_folder, settings.dataset.name, decoders, seed=settings.seed)
    if found is not None:
        log.info("%s: %s clips known from embeddings", listed.name, f"{len(found.rows):,}")
    return found


def _refuse_unreadable(settings: AuditSettings, compared: Sequence[Compared]) -> None:
    for one in compared:
        num_present = len(one.listed.index) - one.counts["missing"]
        share = one.counts["unreadable"] / max(num_present, 1)
        if share > settings.max_failures:
            raise UserError(
                f"{one.counts['unreadable']:,} of {num_present:,} {one.listed.side} clips of {one.listed.index.file} "
                f"cannot be decoded ({share:.1%}).\nIf that is to be so, type max_failures={round_up(share)}"
            )


# -- files ---------------------------------------------------------------------------------------------------------


def _not_compared(one: Compared) -> dict[str, int]:
    return {reason: one.counts[reason] for reason in NOT_COMPARED if one.counts[reason]}


def _result(
    settings: AuditSettings,
    verdict: str,
    compared: Sequence[Compared],
    pairs: Sequence[Pair],
    train: Sequence[Listed],
    eval: Sequence[Listed],
) -> dict[str, Any]:
    """audit.json without times and paths of this machine: the same for the same clips. `identity` names it."""
    lists = {side: [one.plain() for one in compared if one.listed.side == side] for side in ("training", "evaluation")}
    result = {
        "verdict": verdict,
        "level": settings.audit.level.value,
        "threshold": settings.augment.copy_threshold,
        "num_pairs": {rule: sum(pair.rule == rule for pair in pairs) for rule in RULES},
        "num_training_clips_copied": len({pair.train for pair in pairs}),
        "num_evaluation_clips_copied": len({pair.eval for pair in pairs}),
        **lists,
        "pairs": [_plain(pair, train, eval) for pair in pairs],
    }
    return result


def _plain(pair: Pair, train: Sequence[Listed], eval: Sequence[Listed]) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": pair.rule}
    for side, lists, (number, at) in (("training", train, pair.train), ("evaluation", eval, pair.eval)):
        index = lists[number].index
        row[side] = {"list": lists[number].name, "id": index.ids[at].as_py(), "path": index.paths[at].as_py()}
    if pair.sound is not None:
        sound = asdict(pair.sound)
        row["training"]["stretch_s"], row["evaluation"]["stretch_s"] = sound.pop("train_s"), sound.pop("eval_s")
        row |= {"lag_s": pair.sound.lag_s, **sound}
    return row


def _write(
    settings: AuditSettings,
    folder: Path,
    result: dict[str, Any],
    pairs: Sequence[Pair],
    train: Sequence[Listed],
    eval: Sequence[Listed],
    seconds: float,
) -> None:
    """audit.json last: a folder that has it is complete."""
    ids = dict.fromkeys(train[pair.train[0]].index.ids[pair.train[1]].as_py() for pair in pairs)
    with files.atomic_text(folder / "copies.txt") as file:
        file.writelines(f"{clip_id}\n" for clip_id in ids)
    about = page.About(
        dataset=settings.dataset.name,
        media_base=settings.report.media_base,
        num_workers=settings.num_decoders,
        queue_bytes=settings.queue_bytes,
        clip_timeout_s=settings.clip_timeout_s,
        reasons=NOT_COMPARED,
    )
    page.write(folder, about, result, pairs, train, eval)
    made = {
        "version": __version__,
        "git_commit": git_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "total_s": round(seconds, 3),
    }
    files.write_json(folder / "audit.json", {**result, "made": made})


def _tell(folder: Path, verdict: str, compared: Sequence[Compared], pairs: Sequence[Pair]) -> None:
    for one in compared:
        for reason, count in _not_compared(one).items():
            words = f"{count:,} of {len(one.listed.index):,} {one.listed.side} clips of {one.listed.name}"
            log.warning("not compared: %s %s", words, NOT_COMPARED[reason])
    by_rule = ", ".join(f"{sum(pair.rule == rule for pair in pairs):,} {rule}" for rule in RULES)
    said = {
        "clean": "clean: every clip was compared, and no training clip is a copy of an evaluation clip",
        "incomplete": "incomplete: no copy was found, but not every clip could be compared",
        "copies": f"copies: {len({pair.train for pair in pairs}):,} training clips are copies of evaluation clips "
        f"({len(pairs):,} pairs: {by_rule})",
    }
    log.info("%s", said[verdict])
    log.info("files: %s", os.path.relpath(folder))
    log.info("  look at audit.html; copies.txt lists the training clips, audit.json says what was compared")
