"""The seam between what is done and where it runs: `Engine`, which local.py and ray.py are.

A stage hands over `work`, a function of a module, its setup and its tasks, all picklable: paths and numbers, never
models, handles or audio. A worker calls `work(setup, place, tasks, report)` once, builds there what it needs, and goes
through the tasks that it gets. The engine does not know what they are. So a task may be done on any machine, and twice:
what comes of it is a file that appears whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from balance.runtime.remote import AnyPath, Unreachable

Task = TypeVar("Task", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What a worker has of its machine. device: `cpu`, `cuda:0` …; num_cores: cores, for as many decoders;
    num_threads: of torch, None for as many as it takes by itself."""

    device: str
    num_cores: int
    num_threads: int | None = None


@dataclass(frozen=True, slots=True)
class Visible:
    """What every machine must see: the key that names it, and a path that is there on this one."""

    name: str
    path: AnyPath

    def is_seen(self) -> bool:
        """Whether it is there on this machine."""
        try:
            return self.path.exists()
        except Unreachable:
            return False


class TaskList(Protocol[Task]):
    """All tasks of a stage; one may be made as late as it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Task: ...


class Tasks(Protocol[Task]):
    """The tasks of one worker.

    Iteration gives (number, task) and ends when there are no more; with Ray it waits until the driver hands out the
    next. is_shared: whether other workers go through the same tasks, so that they must agree among themselves who does
    which; else each task is this worker's alone.
    """

    @property
    def is_shared(self) -> bool: ...

    def __iter__(self) -> Iterator[tuple[int, Task]]: ...

    def finish(self, number: int) -> None:
        """What the task makes is complete; until then it is done again where this worker dies."""
        ...


Work: TypeAlias = Callable[[Any, Place, Tasks[Any], Callable[[Any], None]], None]


class Engine(Protocol):
    """Runs work on as many workers as it has."""

    def run(self, work: Work, setup: Any, tasks: TaskList[Any], on_message: Callable[[Any], None]) -> None:
        """Returns when all tasks are done; `on_message` gets in this process what workers report.

        Raises what a worker or `on_message` raises, WorkersDied where none is left, DeadlyTask for a task that kills
        its workers.
        """
        ...


class WorkersDied(Exception):
    """No worker lived to the end of its work; says how they died."""


class DeadlyTask(Exception):
    """A task whose workers died again and again. number: its place in the tasks; deaths: how many."""

    def __init__(self, number: int, deaths: int) -> None:
        super().__init__(number, deaths)
        self.number, self.deaths = number, deaths
