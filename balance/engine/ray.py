"""The engine of many machines: Ray's actors as workers, one per GPU or per node without; imports Ray alone.

In: work, its setup and tasks (`seam.Engine`). The driver hands out tasks and gets back what workers report: both are
small, so Ray's object store stays nearly empty. A worker that dies leaves its tasks to the others and is started again
as long as its node lives; a node that joins the cluster gets workers. An actor does its work in a thread and has one
call at a time outstanding, which gives it tasks and returns when there is news. Every call into Ray is made by one
thread of the driver: such a call may wait for a lost cluster for minutes, and hears no signal meanwhile; Ray's own
processes end with the thread that started them. The price: a few hundred bytes per worker and second.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import platform
import queue
import signal
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from balance import __version__
from balance.engine.config import ExecutorConfig
from balance.engine.handing_out import HandingOut
from balance.engine.seam import Place, TaskList, Visible, Work, WorkersDied
from balance.errors import UserError
from balance.runtime import child
from balance.runtime.command import STOP_SIGNALS
from balance.runtime.cores import available_cores

log = logging.getLogger(__name__)

_CONNECT_LIMIT_S = 25.0
_START_LIMIT_S = 300.0  # imports from a cold network file system take their time
_LATE_S = 30.0  # for workers that start after the first: they are asked later
_END_LIMIT_S = 10.0
_CLOSE_LIMIT_S = 6.0  # less than a stopped command has
_NEWS_EVERY_S = 2.0
_LOOK_EVERY_S = 3.0
_HEAD_LIMIT_S = 20.0  # without an answer from the cluster's head
_VAIN_STARTS = 3  # of workers that die with nothing in hand, after which their node gets none
_OBJECT_STORE_BYTES = 100 << 20  # Ray's least is 75 MiB
_PIECE_BYTES = 80_000  # Ray sends objects of up to 100 kB with a call

_HEAD_LOST = (
    f"the head of the Ray cluster has not answered for {_HEAD_LIMIT_S:.0f} s: it is lost. What is finished is kept: "
    "start the cluster again, and run the same command again"
)

_Result = TypeVar("_Result")


# -- the worker's end ----------------------------------------------------------------------------------------------


class _HandedOut:
    """`seam.Tasks`: what the driver gives this worker, as it comes."""

    is_shared = False

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        self._tell = tell
        self._given: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()

    def put(self, task: tuple[int, Any] | None) -> None:
        self._given.put(task)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        while (given := self._given.get()) is not None:
            yield given

    def finish(self, number: int) -> None:
        self._tell("finished", number)


class _Worker:
    """The actor. Its work runs in a thread; `step` gives it tasks and brings its news."""

    def __init__(self, place: Place) -> None:
        child.end_with_parent()  # Ray takes a raylet that nobody waits for, as in many containers, for alive
        self._place = place
        self._changed = threading.Condition()
        self._news: list[tuple[str, Any]] = []
        self._is_urgent = False
        self._tasks = _HandedOut(self._tell)
        logging.getLogger("balance").addHandler(_Told(self._tell))

    def look(self, visible: Sequence[Visible]) -> tuple[dict[str, str], list[Visible]]:
        """This node's versions, and what it does not see."""
        deadline = time.monotonic() + 5  # a network file system may show a new file late
        missing = list(visible)
        while (missing := [one for one in missing if not one.is_seen()]) and time.monotonic() < deadline:
            time.sleep(0.2)
        return _versions(), missing

    def step(self, begin: tuple[Work, Any] | None, is_all: bool, wait_s: float, *given: bytes) -> list[tuple[str, Any]]:
        """Take these tasks (`_in_pieces`; begin: of this work and setup; is_all: there are no others). Returns what
        happened since the last call, as soon as a task is done or the work is over, at the latest after `wait_s`."""
        if begin is not None:
            self._tasks = _HandedOut(self._tell)
            self._news.clear()
            threading.Thread(target=self._do, args=(*begin, self._tasks), daemon=True, name="work").start()
        for task in pickle.loads(b"".join(given)):
            self._tasks.put(task)
        if is_all:
            self._tasks.put(None)
        with self._changed:
            self._changed.wait_for(lambda: self._is_urgent, wait_s)
            news, self._news, self._is_urgent = self._news, [], False
        return news

    def _tell(self, kind: str, value: Any) -> None:
        with self._changed:
            self._news.append((kind, value))
            self._is_urgent |= kind in ("finished", "error", "over")
            self._changed.notify()

    def _do(self, work: Work, setup: Any, tasks: _HandedOut) -> None:
        try:
            work(setup, self._place, tasks, lambda message: self._tell("message", message))
            self._tell("over", None)
        except (UserError, OSError) as error:
            self._tell("error", error)
        except BaseException:
            self._tell("error", RuntimeError(f"a worker failed:\n{traceback.format_exc()}"))


class _Told(logging.Handler):
    """A worker's warnings for the driver, whose log has them."""

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell_driver = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell_driver("log", (record.levelno, record.getMessage()))


def _versions() -> dict[str, str]:
    return {"balance": __version__, "Python": platform.python_version(), "Ray": ray.__version__}


def _in_pieces(given: Sequence[tuple[int, Any]]) -> list[bytes]:
    """Tasks, pickled, in pieces that Ray sends with the call: what is larger takes the way through its object store,
    which takes three times as long."""
    packed = pickle.dumps(given, pickle.HIGHEST_PROTOCOL)
    return [packed[first : first + _PIECE_BYTES] for first in range(0, len(packed), _PIECE_BYTES)]


# -- the driver's end ----------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Actor:
    """A worker as the driver sees it. is_ready: it was looked at; is_at_work: it has begun with the work of this run;
    is_busy: a call is outstanding; is_over: it has ended this run's work."""

    number: int
    node: str
    host: str
    handle: Any
    is_ready: bool = False
    is_at_work: bool = False
    is_busy: bool = False
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class _Event:
    """Something that the driver waits for. kind: `looked`, `news`, `died`, or `nothing` for a while."""

    kind: str
    actor: _Actor | None = None
    value: Any = None


class Cluster:
    """The engine: connected when it is made, until `close()`; a context manager.

    device: `encoder.device` as typed. Raises UserError where there is no cluster, or none with such a device.
    """

    def __init__(self, config: ExecutorConfig, device: str) -> None:
        self._config = config
        self._events: queue.SimpleQueue[tuple[str, _Actor, Any]] = queue.SimpleQueue()
        self._actors: dict[int, _Actor] = {}
        self._num_made = 0
        self._visible: dict[str, Visible] = {}
        self._vain: Counter[str] = Counter()  # by node: workers that died before they had done anything
        self._deaths: list[str] = []
        self._ray = _Caller()
        _connect(config.address, self._ray)
        self._nodes = _Nodes()
        try:
            self._gpus = self._gpus_per_worker(device)
            self._make_workers()
            if not self._actors:
                raise UserError(self._no_place())
        except BaseException:
            self.close()
            raise

    @property
    def device(self) -> str:
        """What the workers compute on: `cuda` or `cpu`."""
        return "cuda" if self._gpus else "cpu"

    def __str__(self) -> str:
        num_workers, num_nodes = len(self._actors), len({actor.node for actor in self._actors.values()})
        return f"{num_workers} worker{'s' * (num_workers != 1)} on {num_nodes} node{'s' * (num_nodes != 1)}"

    def close(self) -> None:
        """Let go of the cluster; Ray ends where it was started here."""
        self._nodes.stop()
        try:
            self._ray(ray.shutdown, _CLOSE_LIMIT_S)
        except TimeoutError:  # the head is lost: Ray would wait for it at the end of this process, too
            atexit.unregister(ray.shutdown)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def must_see(self, visible: Sequence[Visible]) -> None:
        """Every node is asked for these before it gets more work."""
        self._visible |= {str(one.path): one for one in visible}
        for actor in self._actors.values():
            actor.is_ready = False

    def _check(self) -> None:
        """Ask every node for its versions and whether it sees what it must; UserError names the node that does not.

        A worker that starts late is asked before it gets work, and gets none where something is wrong.
        """
        started = time.monotonic()
        self._make_workers()
        for actor in self._actors.values():
            if not actor.is_ready and not actor.is_busy:
                self._look(actor)
        while waiting := [actor for actor in self._actors.values() if not actor.is_ready]:
            passed_s = time.monotonic() - started
            if passed_s > (_START_LIMIT_S if len(waiting) == len(self._actors) else _LATE_S):
                break
            event = self._next()
            if event.kind == "died":
                self._bury(event)
                for actor in self._make_workers():
                    self._look(actor)
            elif event.kind == "looked" and (problem := self._seen(event)):
                raise UserError(problem)
        if not any(actor.is_ready for actor in self._actors.values()):
            raise UserError(self._no_start())

    def run(self, work: Work, setup: Any, tasks: TaskList[Any], on_message: Callable[[Any], None]) -> None:
        """As `seam.Engine`."""
        self._check()
        hands = HandingOut(len(tasks))
        for actor in self._actors.values():
            actor.is_at_work = actor.is_over = False
        try:
            while not hands.is_over:
                self._make_workers()
                if not self._actors:
                    raise WorkersDied(", ".join(dict.fromkeys(self._deaths)) or "no node is left")
                for actor in list(self._actors.values()):
                    self._feed(actor, (work, setup), tasks, hands)
                self._heed(self._next(), hands, on_message)
            self._end_work(hands, on_message)
        except BaseException:
            for actor in list(self._actors.values()):
                self._drop(actor)
            raise

    def _feed(self, actor: _Actor, begin: tuple[Work, Any], tasks: TaskList[Any], hands: HandingOut) -> None:
        """Give a worker that waits what it may have."""
        if actor.is_busy:
            return
        if not actor.is_ready:
            self._look(actor)
            return
        given = hands.give(actor.number, len(self._actors))
        if hands.held(actor.number):
            handed = [(number, tasks[number]) for number in given]
            self._step(actor, None if actor.is_at_work else begin, handed)
            actor.is_at_work = True

    def _heed(self, event: _Event, hands: HandingOut, on_message: Callable[[Any], None]) -> None:
        if event.kind == "died":
            self._bury(event, hands)
        elif event.kind == "looked":
            if problem := self._seen(event):
                log.warning("%s; it gets no work", problem)
                assert event.actor is not None
                self._vain[event.actor.node] = _VAIN_STARTS
                self._drop(event.actor)
        elif event.kind == "news":
            self._hear(event, hands, on_message)

    def _hear(self, event: _Event, hands: HandingOut, on_message: Callable[[Any], None]) -> None:
        assert event.actor is not None
        for kind, value in event.value:
            if kind == "message":
                on_message(value)
            elif kind == "finished":
                hands.finish(event.actor.number, value)
                self._vain.pop(event.actor.node, None)
            elif kind == "log":
                log.log(value[0], "%s: %s", event.actor.host, value[1])
            elif kind == "error":
                log.error("a worker on %s cannot go on", event.actor.host)
                raise value
            else:
                event.actor.is_over = True

    def _end_work(self, hands: HandingOut, on_message: Callable[[Any], None]) -> None:
        """All tasks are done: workers end what they began with, such as their decoders."""
        deadline = time.monotonic() + _END_LIMIT_S
        told: set[int] = set()
        while ending := [a for a in self._actors.values() if a.is_at_work and not a.is_over]:
            for actor in ending:
                if not actor.is_busy and actor.number not in told:
                    told.add(actor.number)
                    self._step(actor, None, [], is_all=True)
            if time.monotonic() > deadline or all(not a.is_busy for a in ending):
                break
            self._heed(self._next(), hands, on_message)
        for actor in ending:
            self._drop(actor)

    # -- workers and their nodes

    def _gpus_per_worker(self, device: str) -> float:
        has_gpus = any(node["Resources"].get("GPU", 0) for node in self._nodes.alive)
        asked = self._config.gpus
        if device.startswith("cuda:"):
            raise UserError(f"encoder.device={device}: with executor=ray Ray chooses the GPU; type encoder.device=cuda")
        if device == "cpu":
            return 0.0
        if device == "cuda" and (not has_gpus or asked == 0):
            raise UserError(
                "encoder.device=cuda, but no worker gets a GPU: "
                + ("executor.gpus=0 was given" if has_gpus else "no node of the Ray cluster has one (`ray status`)")
            )
        if asked == "auto":
            return float(has_gpus)
        assert not isinstance(asked, str)
        if asked and not has_gpus:
            raise UserError(f"executor.gpus={asked:g}, but no node of the Ray cluster has a GPU (`ray status`)")
        return float(asked)

    def _workers_of(self, node: dict[str, Any]) -> tuple[int, float]:
        """(how many workers a node has room for, CPUs of each)."""
        cpus, gpus = float(node["Resources"].get("CPU", 0)), float(node["Resources"].get("GPU", 0))
        count = int(gpus // self._gpus) if self._gpus else int(cpus >= 1)
        if isinstance(self._config.cpus, int):
            fit = int(cpus // self._config.cpus)
            return (min(count, fit) if self._gpus else fit), float(self._config.cpus)
        return (count, cpus / count) if count and cpus else (0, 0.0)

    def _make_workers(self) -> list[_Actor]:
        """Workers for every node that has room, those that died among them."""
        made: list[_Actor] = []
        for node in self._nodes.alive:
            name = node["NodeID"]
            count, cpus = self._workers_of(node)
            have = sum(actor.node == name for actor in self._actors.values())
            if self._vain[name] >= _VAIN_STARTS:
                continue
            for _ in range(have, count):
                made.append(self._make_worker(node, cpus))
        return made

    def _make_worker(self, node: dict[str, Any], cpus: float) -> _Actor:
        feeders = int(self._gpus > 0 and not isinstance(self._config.cpus, int))  # a core for who feeds the GPU
        place = Place(
            device="cuda:0" if self._gpus else "cpu",
            num_cores=max(1, int(cpus) - feeders),
            num_threads=max(1, int(cpus)),
        )
        options = {
            "num_cpus": cpus,
            "num_gpus": self._gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        }
        handle = self._now(lambda: ray.remote(_Worker).options(**options).remote(place))
        self._num_made += 1
        actor = _Actor(self._num_made, node["NodeID"], self._nodes.host(node), handle)
        self._actors[actor.number] = actor
        return actor

    def _look(self, actor: _Actor) -> None:
        visible = list(self._visible.values())
        self._call(actor, "looked", lambda: actor.handle.look.remote(visible))

    def _step(
        self,
        actor: _Actor,
        begin: tuple[Work, Any] | None,
        given: Sequence[tuple[int, Any]],
        *,
        is_all: bool = False,
    ) -> None:
        wait_s = _END_LIMIT_S if is_all else max(_NEWS_EVERY_S, len(self._actors) / 100)
        self._call(actor, "news", lambda: actor.handle.step.remote(begin, is_all, wait_s, *_in_pieces(given)))

    def _call(self, actor: _Actor, kind: str, method: Callable[[], Any]) -> None:
        actor.is_busy = True

        def call() -> None:
            method().future().add_done_callback(lambda future: self._events.put((kind, actor, future)))

        self._now(call)

    def _now(self, function: Callable[[], _Result]) -> _Result:
        """A call into Ray; UserError where the cluster's head is lost."""
        try:
            return self._ray(function, _HEAD_LIMIT_S)
        except TimeoutError:
            raise UserError(_HEAD_LOST) from None

    def _next(self) -> _Event:
        """The next answer of a worker; UserError where the cluster's head answers no more."""
        self._nodes.refuse_lost_head()
        try:
            kind, actor, future = self._events.get(timeout=1.0)
        except queue.Empty:
            return _Event("nothing")
        if actor.number not in self._actors:  # dropped meanwhile
            return _Event("nothing")
        actor.is_busy = False
        error = future.exception()
        if error is None:
            return _Event(kind, actor, future.result())
        if isinstance(error, ray.exceptions.RayTaskError) or not isinstance(error, ray.exceptions.RayError):
            raise error
        return _Event("died", actor, error)

    def _seen(self, event: _Event) -> str:
        """What is wrong with a worker's node, "" where nothing is: then it may work."""
        assert event.actor is not None
        versions, missing = event.value
        for name, ours in _versions().items():
            if versions[name] != ours:
                return (
                    f"node {event.actor.host} has {name} {versions[name]} and this machine {ours}: install the same on "
                    "every node"
                )
        if missing:
            name, path = missing[0].name, missing[0].path
            remedy = (
                "needs the same files under the same paths" if isinstance(path, Path) else "must reach it, logged in"
            )
            return f"node {event.actor.host} does not see {path} ({name}), which this machine sees: every node {remedy}"
        event.actor.is_ready = True
        return ""

    def _bury(self, event: _Event, hands: HandingOut | None = None) -> None:
        """A worker died: what it had in hand is left to the others. Raises DeadlyTask."""
        actor = event.actor
        assert actor is not None
        self._drop(actor)
        with_node = not self._nodes.is_alive(actor.node)
        why = _cause_of_death(event.value, with_node)
        self._deaths.append(why)
        held = [] if hands is None else hands.lose(actor.number, with_node=with_node)
        if not held and not with_node:
            self._vain[actor.node] += 1
        log.warning("a worker on %s died (%s)%s", actor.host, why, "; its work is left to the others" if held else "")

    def _drop(self, actor: _Actor) -> None:
        self._actors.pop(actor.number, None)
        with contextlib.suppress(Exception):  # it is gone, or its head is
            self._ray(lambda: ray.kill(actor.handle), _END_LIMIT_S)

    def _no_place(self) -> str:
        nodes = len(self._nodes.alive)
        return (
            f"no node of the Ray cluster ({nodes}) has room for a worker of {self._gpus:g} GPUs and "
            f"{self._config.cpus} CPUs: `ray status` shows what there is; type executor.cpus=… or executor.gpus=…"
        )

    def _no_start(self) -> str:
        why = ", ".join(dict.fromkeys(self._deaths))
        return (
            f"no worker of the Ray cluster started ({why}): can its nodes import this program?"
            if why
            else f"no worker of the Ray cluster started within {_START_LIMIT_S:.0f} s: other jobs may have its CPUs "
            "and GPUs (`ray status`)"
        )


def _cause_of_death(error: Exception, with_node: bool) -> str:
    """In a few words."""
    text = str(error)
    if with_node:
        return "its node is lost"
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "memory pressure" in text:
        return "its node was short of memory"
    if "ModuleNotFoundError" in text or "ImportError" in text:
        return next(
            line.strip() for line in text.splitlines() if "ModuleNotFoundError" in line or "ImportError" in line
        )
    return "killed, or crashed"


class _Nodes:
    """The nodes that live. A thread looks every few seconds: where the head is lost, the call does not return."""

    def __init__(self) -> None:
        self.alive: list[dict[str, Any]] = _living()
        self._heard = time.monotonic()
        self._ended = threading.Event()
        self._wanted = threading.Event()
        self._looked = threading.Event()
        threading.Thread(target=self._look, daemon=True, name="nodes").start()

    def _look(self) -> None:
        while not self._ended.is_set():
            self._wanted.wait(_LOOK_EVERY_S)
            self._wanted.clear()
            try:
                self.alive = _living()
            except Exception:  # of many kinds, where the head does not answer
                continue
            self._heard = time.monotonic()
            self._looked.set()

    def is_alive(self, name: str) -> bool:
        """Whether the node lives now, as far as is known within a few seconds."""
        self._looked.clear()
        self._wanted.set()
        self._looked.wait(_LOOK_EVERY_S)
        return any(node["NodeID"] == name for node in self.alive)

    def refuse_lost_head(self) -> None:
        if time.monotonic() - self._heard > _HEAD_LIMIT_S:
            raise UserError(_HEAD_LOST)

    def host(self, node: dict[str, Any]) -> str:
        """The node's name for people; its id with it where several nodes have one name."""
        name = str(node["NodeManagerHostname"])
        twice = sum(other["NodeManagerHostname"] == name for other in self.alive) > 1
        return f"{name} ({node['NodeID'][:8]})" if twice else name

    def stop(self) -> None:
        self._ended.set()
        self._wanted.set()


def _living() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


# -- connecting ----------------------------------------------------------------------------------------------------


class _Caller:
    """A thread that makes calls for others, who hear signals meanwhile and wait no longer than they like."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._make_calls, daemon=True, name="ray").start()

    def _make_calls(self) -> None:
        while True:
            function, answer = self._calls.get()
            try:
                answer.put((function(), None))
            except BaseException as error:
                answer.put((None, error))

    def __call__(self, function: Callable[[], _Result], limit_s: float) -> _Result:
        """What the function gives or raises; TimeoutError where it takes longer."""
        answer: queue.SimpleQueue[tuple[_Result, BaseException | None]] = queue.SimpleQueue()
        self._calls.put((function, answer))
        try:
            result, error = answer.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return result


def _connect(address: str | None, caller: _Caller) -> None:
    """Connect to a cluster, or start Ray on this machine; UserError within 30 s where that cannot be."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": available_cores(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_system_config": {"enable_worker_prestart": False, "prestart_worker_first_driver": False},
        }
    else:
        if address != "auto":
            _refuse_unreachable(address)
        options["address"] = address
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")  # who waits for a lost head is we, not Ray
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray._private.worker._worker_logs_enabled = False  # what raylets say of themselves stays in Ray's own logs
    try:
        with _signals_stay():
            caller(lambda: ray.init(**options), _CONNECT_LIMIT_S if address else _START_LIMIT_S)
    except TimeoutError:
        raise UserError(
            f"executor.address={address}: something listens there, but no Ray cluster answered within "
            f"{_CONNECT_LIMIT_S:.0f} s: type the address that `ray start --head` printed"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        hint = (
            "this machine must be a node of it too: `ray start --address=HOST:PORT` (with --num-cpus=0 it gets no work)"
            if address is not None
            else "is there room in /tmp and /dev/shm?"
        )
        raise UserError(
            f"executor.address={'null' if address is None else address}: Ray does not connect ({first}); {hint}"
        ) from None


def _refuse_unreachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"executor.address={address}: nothing answers there ({error.strerror or error}): start the head node with "
            "`ray start --head --port=6379` and type the address that it prints, or executor.address=null for this "
            "machine alone"
        ) from None


@contextlib.contextmanager
def _signals_stay() -> Iterator[None]:
    """Ray sets handlers of its own when it connects: inside, ours stay."""
    ours = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in ours.items():
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)
