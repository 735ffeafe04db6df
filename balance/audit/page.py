"""audit.html: the verdict, what was compared, and the pairs to listen to, the most doubtful first, in one file.

In: the audit's result and its pairs. Out: HTML. The first pairs have spectrograms on one scale, and their sound inside
the page, so that it can be handed on alone; the next have links; all are in audit.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balance.audit.lists import Listed
from balance.audit.pairs import RULES, Clip, Pair
from balance.report import html, spectrogram
from balance.report.listening import Links
from balance.report.sound import Sound, Wave, decode, mp3
from balance.runtime import files

NUM_HEARD = 40  # pairs whose sound the page holds: about 80 KB each
NUM_LISTED = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What the page says beside the result, and how it decodes. reasons: why clips were not compared, in words."""

    dataset: str
    media_base: str | None
    num_workers: int
    queue_bytes: int
    clip_timeout_s: float
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Side:
    """One clip of a pair on the page: audio: links or the sound itself, picture: spectrogram, where there are any."""

    list: str
    id: str
    stretch_s: tuple[float, float] | None
    audio: tuple[str, ...]
    picture: str | None


def write(
    folder: Path,
    about: About,
    result: Mapping[str, Any],
    pairs: Sequence[Pair],
    train: Sequence[Listed],
    eval: Sequence[Listed],
) -> None:
    """audit.html in `folder`."""
    shown = sorted(pairs, key=_doubt)[:NUM_LISTED]
    waves = [_waves(about, lists, clips) for lists, clips in _clips(shown[:NUM_HEARD], train, eval)]
    rows = []
    for number, pair in enumerate(shown):
        both: list[Wave | None] = [side[number] for side in waves] if number < NUM_HEARD else [None, None]
        pictures = spectrogram.draw(both)
        sides = []
        for lists, (which, row), wave, picture, name in (
            (train, pair.train, both[0], pictures[0], "train_s"),
            (eval, pair.eval, both[1], pictures[1], "eval_s"),
        ):
            listed = lists[which]
            links = Links.to(listed.media.root, about.media_base, folder).audio(listed.index, row)
            sides.append(
                _Side(
                    list=listed.name,
                    id=listed.index.ids[row].as_py(),
                    stretch_s=None if pair.sound is None else getattr(pair.sound, name),
                    audio=links if wave is None else (mp3(wave),),
                    picture=picture,
                )
            )
        rows.append((pair, sides[0], sides[1]))
    with files.atomic_text(folder / "audit.html") as file:
        file.write(
            html.environment()
            .get_template("audit.html")
            .render(about=about, result=result, rows=rows, num_pairs=len(pairs), rules=RULES)
        )


def _doubt(pair: Pair) -> tuple[float, Clip, Clip]:
    """The least correlation first; equal samples and equal ids are beyond doubt."""
    certain = pair.sound is None or pair.rule != "acoustic"
    return (2.0 if certain or pair.sound is None else pair.sound.correlation), pair.train, pair.eval


def _clips(
    pairs: Sequence[Pair], train: Sequence[Listed], eval: Sequence[Listed]
) -> Iterator[tuple[Sequence[Listed], list[Clip]]]:
    yield train, [pair.train for pair in pairs]
    yield eval, [pair.eval for pair in pairs]


def _waves(about: About, lists: Sequence[Listed], clips: Sequence[Clip]) -> list[Wave | None]:
    """The sound of clips of several lists, in their order; None where there is none."""
    found: dict[Clip, Wave | None] = dict.fromkeys(clips)
    for number, listed in enumerate(lists):
        mine = [clip for clip in found if clip[0] == number and listed.index.paths[clip[1]].as_py() != ""]
        if mine:
            sound = Sound(listed.media, about.num_workers, about.queue_bytes, about.clip_timeout_s)
            groups = decode([[(listed.index, row)] for _, row in mine], sound)
            found |= {clip: waves[0] for clip, waves in zip(mine, groups, strict=True)}
    return [found[clip] for clip in clips]
