"""A finished run as a notebook shows it: headline figures, how much of the pool a K takes, and ten clips to listen to.

In: a run read back. Out: a fragment of HTML with its own style, its figures and short MP3s inside: a notebook opens no
file of the disk. The price: ten clips are decoded, once per object. Clips inside containers are shown without sound.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.data.config import MediaSource
from balance.data.ontology import read_ontology
from balance.errors import UserError
from balance.records import Index, Labels, Neighbours
from balance.report import figures, html, listening, spectrogram
from balance.report.sound import Sound, Wave, decode, mp3
from balance.results.read_run import Run
from balance.runtime.cores import available_cores
from balance.stats import run_stats

NUM_PAIRS = 5  # seeds, each with its first neighbour
_QUEUE_BYTES = 64 << 20
_CLIP_TIMEOUT_S = 20.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Card:
    """A clip of the notebook. sound, picture: data URIs, None where the clip cannot be played here; rank, similarity:
    of a neighbour."""

    id: str
    source: str
    labels: str
    rank: int | None = None
    similarity: float | None = None
    sound: str | None = None
    picture: str | None = None


def render(run: Run) -> str:
    """The fragment. UserError where a file of the run is gone or damaged."""
    summary = run.summary
    neighbours = _neighbours(run)
    saturation = run_stats.saturation(neighbours, int(summary["num_pool_eligible"]))
    template = html.environment().get_template("notebook.html")
    return template.render(
        path=str(run.path), s=summary, figure=figures.saturation(saturation, run.k), cards=cards(run), k=run.k
    )


def _neighbours(run: Run) -> Neighbours:
    """The table's neighbours; positions count distinct clips in their order of appearance."""
    codes = run.neighbours["neighbour_id"].combine_chunks().dictionary_encode().indices
    positions = np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int32).reshape(-1, run.k)
    similarities = run.neighbours["similarity"].to_numpy().reshape(positions.shape)
    return Neighbours(np.arange(len(positions)), positions, similarities)


def cards(run: Run) -> list[Card]:
    """Seeds spread evenly over the run's, each followed by its first neighbour."""
    table, k = run.neighbours, run.k
    num_seeds = table.num_rows // k
    rows = np.unique(np.linspace(0, num_seeds - 1, min(NUM_PAIRS, num_seeds)).astype(int)) * k
    first = table.take(pa.array(rows))
    ids = [
        x for pair in zip(first["seed_id"].to_pylist(), first["neighbour_id"].to_pylist(), strict=True) for x in pair
    ]
    names = _names(run)
    augmented = run.augmented
    found = augmented.take(pc.index_in(pa.array(ids), value_set=augmented["id"].combine_chunks()))
    made = []
    for place, (id_, source, labels) in enumerate(
        zip(ids, *(found[name].to_pylist() for name in ("source", "labels")), strict=True)
    ):
        shown = ", ".join(names.get(label, label) for label in (labels or "").split(";"))
        card = Card(id_, source or "neighbour", shown)
        if place % 2:
            card = replace(card, rank=1, similarity=float(first["similarity"][place // 2].as_py()))
        made.append(card)
    paths = ["" if path is None else path for path in found["audio"].to_pylist()]
    return list(_with_sound(made, paths, run))


def _names(run: Run) -> dict[str, str]:
    """Label id -> name, empty where the run's ontology is gone."""
    try:
        return read_ontology(run.facts.source.ontology, run.facts.source.root)[0]
    except (OSError, UserError):
        return {}


def _with_sound(cards: Sequence[Card], paths: Sequence[str], run: Run) -> Iterator[Card]:
    index = Index("cards", pa.array([card.id for card in cards]), pa.array(paths), Labels.of([()] * len(cards)))
    links = listening.Links(run.facts.source.media, ())
    playable = [row for row in range(len(cards)) if links.playable(index, row) is not None]
    waves: dict[int, Wave | None] = {}
    if playable:
        source = run.facts.source
        media = MediaSource(root=source.media, format=source.format, columns=source.columns)
        sound = Sound(media, available_cores(), _QUEUE_BYTES, _CLIP_TIMEOUT_S)
        try:
            waves = dict(zip(playable, *decode([[(index, row) for row in playable]], sound), strict=True))
        except (OSError, UserError) as error:
            log.warning("the clips cannot be played: %s", error)
    pictures = spectrogram.draw([waves.get(row) for row in range(len(cards))])
    for row, card in enumerate(cards):
        wave = waves.get(row)
        yield card if wave is None else replace(card, sound=mp3(wave), picture=pictures[row])
