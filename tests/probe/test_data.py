"""balance.probe.data: which clips are of one video."""

import pyarrow as pa

from balance.data.config import Ids
from balance.probe.data import videos

CLIPS = ["Ysn1zcw0bbZU_30.000", "-0nqfRcnAYE", "unbal/sn1zcw0bbZU.wav", "fsdd_8_theo_16", "fsdd_8_theo_17"]


def test_clips_of_one_video_are_a_group_where_ids_are_youtube_ids():
    assert videos(pa.array(CLIPS[:3]), Ids.youtube).tolist() == [0, 1, 0]


def test_ids_that_are_whole_are_groups_of_their_own():
    assert videos(pa.array(CLIPS), Ids.whole).tolist() == [0, 1, 2, 3, 4]
