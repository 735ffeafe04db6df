"""Work for `run_shares` in tests: functions of a module that imports quickly, since each worker imports it."""

import os
import signal
import time
from collections.abc import Callable

from balance.errors import UserError

Report = Callable[[object], None]


def count(share: tuple[str, int], report: Report) -> None:
    name, num_messages = share
    for number in range(num_messages):
        report((name, number, os.getpid()))


def say_much(share: str, report: Report) -> None:
    """More than a pipe holds."""
    for _ in range(50):
        report(share * 100_000)


def fail(share: str, report: Report) -> None:
    report(os.getpid())
    if share == "user":
        raise UserError("type something else")
    if share == "program":
        raise ZeroDivisionError("at this line")
    time.sleep(600)


def die(share: bool, report: Report) -> None:
    """Share True dies by SIGKILL, as by the kernel's memory killer; False goes on."""
    report(os.getpid())
    if share:
        os.kill(os.getpid(), signal.SIGKILL)
    report("done")


def sleep(share: float, report: Report) -> None:
    report(os.getpid())
    time.sleep(share)
