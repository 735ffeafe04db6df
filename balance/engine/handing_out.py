"""Which task goes to which worker, and what becomes of it where a worker dies.

In: that a worker wants tasks, has finished one, has died. Out: numbers of tasks. A worker holds two, so that it decodes
the next while it embeds; near the end it holds one, so that none waits behind another while workers are idle. What a
dead worker held is suspected: it is handed out first, and alone, so that the one that kills is told from its
neighbour. The price: a worker that gets a suspect prepares nothing meanwhile.
"""

from __future__ import annotations

from collections import Counter, deque

from balance.engine.seam import DeadlyTask

MOST_DEATHS = 3  # of workers whose node lives
MOST_LOST_NODES = 10  # nodes that are taken back (spot instances) are no task's fault


class HandingOut:
    """Tasks 0 … num_tasks − 1; workers are named by any hashable number."""

    def __init__(self, num_tasks: int) -> None:
        self._left = deque(range(num_tasks))
        self._held: dict[int, list[int]] = {}
        self._unfinished = num_tasks
        self._suspects: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._lost_nodes: Counter[int] = Counter()

    @property
    def is_over(self) -> bool:
        return self._unfinished == 0

    def held(self, worker: int) -> list[int]:
        """What the worker has, the oldest first."""
        return self._held.get(worker, [])

    def give(self, worker: int, num_workers: int) -> list[int]:
        """The tasks that the worker gets now. num_workers: all that are at work."""
        held = self._held.setdefault(worker, [])
        given: list[int] = []
        while self._left and self._may_have_another(held, num_workers):
            given.append(self._left.popleft())
            held.append(given[-1])
        return given

    def _may_have_another(self, held: list[int], num_workers: int) -> bool:
        if not held:
            return True
        alone = self._left[0] in self._suspects or held[0] in self._suspects
        return len(held) == 1 and not alone and len(self._left) >= num_workers

    def finish(self, worker: int, number: int) -> None:
        """The task is done."""
        self._held[worker].remove(number)
        self._suspects.discard(number)
        self._unfinished -= 1

    def lose(self, worker: int, *, with_node: bool) -> list[int]:
        """The worker died, alone or with its node; what it held is left to others. Raises DeadlyTask."""
        held = self._held.pop(worker, [])
        self._left.extendleft(reversed(held))
        if with_node:
            self._lost_nodes.update(held)
        else:
            self._suspects.update(held)
            self._deaths.update(held[:1])
        for number in held:
            if self._deaths[number] >= MOST_DEATHS or self._lost_nodes[number] >= MOST_LOST_NODES:
                raise DeadlyTask(number, self._deaths[number] + self._lost_nodes[number])
        return held
