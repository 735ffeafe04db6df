"""balance.data.clip_ids: which video an id names, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest

from balance.data import clip_ids
from balance.errors import UserError


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ("Ysn1zcw0bbZU", "sn1zcw0bbZU"),
        ("-0nqfRcnAYE_30.000", "-0nqfRcnAYE"),
        ("YABCDEFGHIJ", "YABCDEFGHIJ"),
        ("YABCDEFGHIJ_10", "YABCDEFGHIJ"),
        ("Y--aaILOrkII.mp3", "Y--aaILOrkII.mp3"),
        ("sn1zcw0bbZUx", "sn1zcw0bbZUx"),
        ("short", "short"),
        ("sn1zcw0bbZU\n", "sn1zcw0bbZU\n"),
        ("", ""),
    ],
)
def test_youtube_id(clip, expected):
    assert clip_ids.youtube_id(clip) == expected
    assert clip_ids.youtube_ids(pa.array([clip])).to_pylist() == [expected]


def test_seeds_in_eval_are_named():
    seeds = pa.array(["Yabcdefghijk", "bcdefghijkl_1", "other"])
    with pytest.raises(UserError, match=r"2 seeds .*Yabcdefghijk, bcdefghijkl_1"):
        clip_ids.refuse_seeds_in_eval(seeds, pa.array(["abcdefghijk_30", "Ybcdefghijkl"]))
    clip_ids.refuse_seeds_in_eval(seeds, pa.array(["zzz"]))
