"""balance.probe.data: what labels imply, and which clips are of one source."""

import numpy as np
import pyarrow as pa
import pytest

from balance.data.config import Ids
from balance.errors import UserError
from balance.probe.data import ProbeData, Side, implied_labels
from balance.probe.sources import numbered, shared, sources
from balance.records import Labels
from balance.search.top_k import ArrayVectors

CLIPS = ["Ysn1zcw0bbZU_30.000", "-0nqfRcnAYE", "unbal/sn1zcw0bbZU.wav", "fsdd_8_theo_16", "fsdd_8_theo_17"]


def grouped(ids, ids_as, pattern=None):
    return numbered(sources({"seeds": pa.array(ids)}, ids_as, pattern)["seeds"]).tolist()


def test_clips_of_one_video_are_a_group_where_ids_are_youtube_ids():
    assert grouped(CLIPS[:3], Ids.youtube) == [0, 1, 0]


def test_other_ids_lose_their_seconds_where_that_leaves_many_sources():
    ids = [f"rec{i // 3}_{10 * (i % 3)}.0" for i in range(120)]
    assert grouped(ids, Ids.whole) == [i // 3 for i in range(120)]
    spans = [f"rec{i // 3}_{10 * (i % 3)}_{10 * (i % 3) + 10}" for i in range(120)]
    assert grouped(spans, Ids.whole) == [i // 3 for i in range(120)]


def test_a_running_number_is_no_source():
    assert grouped([f"clip_{i:04d}" for i in range(120)], Ids.whole) == list(range(120))
    assert grouped(CLIPS, Ids.whole) == [0, 1, 2, 3, 4]


def test_a_pattern_tells_the_source():
    ids = ["1-100032-A-0", "1-100032-B-0", "2-7-A-3", "odd"]
    assert grouped(ids, Ids.whole, r"^\d-(\d+)-") == [0, 0, 1, 2]
    with pytest.raises(UserError, match=r"probe.source=\(: not a regular expression"):
        grouped(ids, Ids.whole, "(")


def test_pool_clips_of_a_seeds_source():
    seeds, pool = pa.array(["a", "b", "a"]), pa.array(["c", "b", "a", "b"])
    assert numbered(seeds).tolist() == [0, 1, 0]
    assert shared(seeds, pool).tolist() == [-1, 1, 0, 1]


def test_ancestors_are_a_second_label_set():
    names = ("bark", "dog", "pet", "rain")
    parents = {"bark": ["dog"], "dog": ["pet", "animal"], "pet": ["pet"]}
    implied = implied_labels(names, parents)
    assert implied.toarray().tolist() == [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert implied_labels(names, {"rain": ["weather"]}) is None
    sets = [["bark"], ["dog", "rain"], ["rain"], []]
    side = Side(ArrayVectors(np.zeros((4, 2), dtype=np.float32)), Labels.of(sets).recode(names), np.arange(4))
    data = ProbeData(
        seeds=side, pool=side, evaluation=side, chosen=np.zeros((4, 1), dtype=np.int32), same_space=False,
        fingerprint="", names={}, missing={}, clips={}, choosing=side.vectors, implies=implied,
    )  # fmt: skip
    assert {name: columns.tolist() for name, columns in data.label_sets.items()} == {
        "": [0, 1, 2, 3],
        "_ancestors": [0, 4, 5, 3],
    }
    targets = data.targets(side).toarray()
    assert targets[:, :4].tolist() == side.labels.matrix().toarray().tolist()
    assert targets[:, 4:].tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
