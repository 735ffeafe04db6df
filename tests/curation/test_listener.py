"""A clip among many: the pace of a copy and the stretches that meet; rhythms, takes and other clips are none."""

import tempfile

import numpy as np
import pytest

from balance.curation.listener import Listener
from balance.curation.log_mel import Pace, at_pace, features
from tests.curation.sounds import sound

NUM_CLIPS = 20


@pytest.fixture
def listener():
    with tempfile.TemporaryFile() as file:
        made = Listener(file, NUM_CLIPS, 0.9)
        made.remember({i: features(sound(i), 16000) for i in range(NUM_CLIPS)})
        yield made


def test_a_late_copy_says_where_the_clips_meet(listener):
    (match,) = listener.copies_of(NUM_CLIPS, features(sound(7)[24000:], 16000))
    assert (match.other, match.pace) == (7, Pace())
    theirs, mine = match.seconds()
    assert theirs == pytest.approx((1.5, 8.0), abs=0.06)
    assert mine == pytest.approx((0.0, 6.5), abs=0.06)


@pytest.mark.parametrize("pace", [Pace(1.03, True), Pace(0.96, True), Pace(1.05, False), Pace(0.99, False)])
def test_a_copy_at_another_pace(listener, pace):
    (match,) = listener.copies_of(NUM_CLIPS, at_pace(features(sound(7), 16000), pace))
    assert match.other == 7
    assert match.pace.speed == pytest.approx(pace.speed, abs=0.011)  # within 1 % it may pass for equal
    if abs(pace.speed - 1) > 0.02:
        assert match.pace.with_pitch == pace.with_pitch
    theirs, mine = match.seconds()
    assert (theirs[1] - theirs[0]) / (mine[1] - mine[0]) == pytest.approx(match.pace.speed, abs=1e-6)


def test_others_are_no_copies(listener):
    assert [listener.copies_of(NUM_CLIPS, features(sound(i), 16000)) for i in range(30, 40)] == [[]] * 10
    assert listener.copies_of(NUM_CLIPS, features(sound(7), 16000), by_fingerprint=False) == []
    assert [match.other for match in listener.copies_of(3, features(sound(7), 16000))] == [], "only earlier ones"


def test_two_regular_rhythms_meet_at_some_pace_and_are_no_copies():
    def ticks(period_s):
        out = 0.01 * np.random.default_rng(int(period_s * 1000)).standard_normal(8 * 16000)
        tick = sound(77, 0.5)[:1600]
        for start in range(800, len(out) - len(tick), int(period_s * 16000)):
            out[start : start + len(tick)] += tick
        return features(out.astype(np.float32), 16000)

    with tempfile.TemporaryFile() as file:
        listener = Listener(file, 1, 0.9)
        listener.remember({0: ticks(0.5)})
        assert listener.copies_of(1, ticks(0.52)) == []
        assert [match.other for match in listener.copies_of(1, ticks(0.5))] == [0]
