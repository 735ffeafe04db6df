"""Names that download tools give files: which listed clip each means, if any."""

from __future__ import annotations

import pytest

from balance.data.media_names import Wanted, find_clip, likely_id

IDS = ["aaaaaaaaaaa", "a_b_30000_c", "Yz345678901", "-_-_-_-_-_1", "id_zzzzzzzz", "nowhere_000", "sample_7"]
STARTS_S = [30.0, 130.0, 0.0, 20.5, 40.0, 10.0, 5.0]
WANTED = Wanted({id: i for i, id in enumerate(IDS)}, STARTS_S, [start + 10 for start in STARTS_S])


@pytest.mark.parametrize(
    ("name", "id", "is_segment"),
    [
        ("aaaaaaaaaaa", "aaaaaaaaaaa", False),
        ("Yaaaaaaaaaaa", "aaaaaaaaaaa", False),
        ("id_aaaaaaaaaaa", "aaaaaaaaaaa", False),
        ("aaaaaaaaaaa.p0", "aaaaaaaaaaa", True),
        ("Yz345678901", "Yz345678901", False),
        ("YYz345678901", "Yz345678901", False),
        ("id_zzzzzzzz", "id_zzzzzzzz", False),
        ("id_id_zzzzzzzz", "id_zzzzzzzz", False),
        ("Some title, with (things) [aaaaaaaaaaa]", "aaaaaaaaaaa", False),
        ("[live] A title [-_-_-_-_-_1]", "-_-_-_-_-_1", False),
        ("A title-aaaaaaaaaaa", "aaaaaaaaaaa", False),
        ("aaaaaaaaaaa_30", "aaaaaaaaaaa", True),
        ("aaaaaaaaaaa_000030", "aaaaaaaaaaa", True),
        ("aaaaaaaaaaa_30000", "aaaaaaaaaaa", True),
        ("a_b_30000_c_130000", "a_b_30000_c", True),
        ("aaaaaaaaaaa_30_40", "aaaaaaaaaaa", True),
        ("aaaaaaaaaaa_30000_40000", "aaaaaaaaaaa", True),
        ("aaaaaaaaaaa_30.0-40.0", "aaaaaaaaaaa", True),
        ("aaaaaaaaaaa_30-40", "aaaaaaaaaaa", True),
        ("aaaaaaaaaaa_30000-40000", "aaaaaaaaaaa", True),
        ("Yaaaaaaaaaaa_30.000_40.000", "aaaaaaaaaaa", True),
        ("id_aaaaaaaaaaa_30_40", "aaaaaaaaaaa", True),
        ("A title [aaaaaaaaaaa]_30-40", "aaaaaaaaaaa", True),
        ("-_-_-_-_-_1_20-30", "-_-_-_-_-_1", True),
        ("-_-_-_-_-_1_20500", "-_-_-_-_-_1", True),
        ("nowhere_000_10", "nowhere_000", True),
        ("Yz345678901_0", "Yz345678901", True),
        ("sample_7", "sample_7", False),
        ("sample_7_5", "sample_7", True),
    ],
)
def test_names_of_listed_clips(name: str, id: str, is_segment: bool) -> None:
    assert find_clip(name, WANTED) == (IDS.index(id), is_segment)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "aaaaaaaaaab",
        "aaaaaaaaaaaa",
        "aaaaaaaaaaa_50_60",  # another segment of the same video
        "aaaaaaaaaaa_30_60",
        "aaaaaaaaaaa_30.0-60.0",
        "aaaaaaaaaaa_50",
        "aaaaaaaaaaa_29000",
        "Yz345678901_500",  # half a second is no millisecond count of the start 0
        "aaaaaaaaaaa_30_40_50",
        "aaaaaaaaaaa_thirty",
        "aaaaaaaaaaa_nan",
        "aaaaaaaaaaa_",
        "[aaaaaaaaaaa",
        "nowhere_000_77",
    ],
)
def test_names_of_other_clips(name: str) -> None:
    assert find_clip(name, WANTED) is None


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("bbbbbbbbbbb", "bbbbbbbbbbb"),
        ("Ybbbbbbbbbbb", "bbbbbbbbbbb"),
        ("Yellow", "Yellow"),
        ("Ybbbbbbbbbbb_30.0-40.0", "bbbbbbbbbbb"),
        ("id_bbbbbbbbbbb", "bbbbbbbbbbb"),
        ("bbbbbbbbbbb_30000", "bbbbbbbbbbb"),
        ("bbbbbbbbbbb_30_40", "bbbbbbbbbbb"),
        ("Title [bbbbbbbbbbb]", "bbbbbbbbbbb"),
        ("bbbbbbbbbbb.p0", "bbbbbbbbbbb"),
        ("", ""),
    ],
)
def test_the_id_that_a_name_seems_to_hold(name: str, id: str) -> None:
    assert likely_id(name) == id
