"""Which worker gets which task, and what its death costs: no Ray, no processes."""

import pytest

from balance.engine.handing_out import MOST_DEATHS, MOST_LOST_NODES, HandingOut
from balance.engine.seam import DeadlyTask


def test_a_worker_holds_two_and_near_the_end_one() -> None:
    hands = HandingOut(5)
    assert hands.give(1, 2) == [0, 1]
    assert hands.give(2, 2) == [2, 3]  # one is left for two workers from here on
    hands.finish(1, 0)
    assert hands.give(1, 2) == []
    hands.finish(1, 1)
    assert hands.give(1, 2) == [4]
    for worker, number in ((2, 2), (2, 3), (1, 4)):
        assert not hands.is_over
        hands.finish(worker, number)
    assert hands.is_over


def test_every_task_is_done_once_whoever_dies() -> None:
    hands = HandingOut(20)
    done: list[int] = []
    for round_ in range(200):
        worker = round_ % 3
        hands.give(worker, 3)
        if round_ in (5, 17, 18, 40):
            hands.lose(worker, with_node=round_ == 17)
        elif held := hands.held(worker):
            done.append(held[0])
            hands.finish(worker, held[0])
    assert hands.is_over
    assert sorted(done) == list(range(20))


def test_what_a_dead_worker_held_is_given_alone() -> None:
    hands = HandingOut(9)
    assert hands.give(1, 1) == [0, 1]
    assert hands.lose(1, with_node=False) == [0, 1]
    assert hands.give(2, 1) == [0]
    assert hands.give(2, 1) == []
    hands.finish(2, 0)
    assert hands.give(2, 1) == [1]
    hands.finish(2, 1)
    assert hands.give(2, 1) == [2, 3]


def test_the_task_that_kills_is_named_and_not_its_neighbour() -> None:
    hands = HandingOut(9)

    def die_of_task_1(worker: int) -> None:
        hands.give(worker, 1)
        while 1 not in hands.held(worker):
            hands.finish(worker, hands.held(worker)[0])
            hands.give(worker, 1)
        hands.lose(worker, with_node=False)

    for worker in range(MOST_DEATHS):  # the first of them held its neighbour, too, as the older one
        die_of_task_1(worker)
    with pytest.raises(DeadlyTask) as named:
        die_of_task_1(MOST_DEATHS)
    assert (named.value.number, named.value.deaths) == (1, MOST_DEATHS)


def test_lost_nodes_are_no_task_s_fault_but_not_for_ever() -> None:
    hands = HandingOut(3)
    for worker in range(MOST_LOST_NODES - 1):
        assert hands.give(worker, 9) == [0]
        hands.lose(worker, with_node=True)
    hands.give(9, 9)
    with pytest.raises(DeadlyTask):
        hands.lose(9, with_node=True)
