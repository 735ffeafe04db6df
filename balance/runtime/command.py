"""What all commands do at the door: one or two lines for a user's mistake, and an orderly end on a signal.

Imports the standard library alone, and a command imports everything else inside its `main`: so `--help` answers at
once, and a signal in the first seconds ends like a later one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from balance import __version__
from balance.errors import UserError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_END_WITHIN_S = 8.0


class Interrupted(BaseException):
    """A signal asked the command to end; BaseException, so that no `except Exception` swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def start(main: Callable[[], Any], *, writes: bool = True) -> None:
    """Run a command's `main()`; ends the process with 128 + signal where one came, within 10 s.

    writes: whether the command needs the output folder, which is then looked at first.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        if sys.argv[1:] == ["--version"]:
            print(f"balance {__version__}")
            return
        with errors_for_people():
            if writes:
                _check_outputs()
            main()
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except BaseException as error:
        interrupted = _interruption(error)
        if interrupted is None:
            raise
        name = signal.Signals(interrupted.number).name
        print(
            f"\nstopped by {name}: finished parts are kept; run the same command again to go on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + interrupted.number)  # threads of a half-done part need not be waited for


def _interruption(error: BaseException | None) -> Interrupted | None:
    """The signal that an error is, or came of: a library's cleaning up may fail on the way and raise that instead."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error


def arguments(usage: str, num_arguments: int) -> list[str]:
    """What was typed: exactly so many arguments, taken as they are (an id may begin with a dash). UserError else."""
    given = sys.argv[1:]
    if given in (["-h"], ["--help"]):
        print(f"type: {usage}")
        raise SystemExit(0)
    if len(given) != num_arguments:
        raise UserError(f"{len(given)} argument{'s' * (len(given) != 1)} given; type: {usage}")
    return given


def outputs_folder() -> Path:
    """Where runs go: `$BALANCE_OUTPUTS`, else `outputs`; a variable that is set but empty counts as not set."""
    return Path(os.environ.get("BALANCE_OUTPUTS") or "outputs")


def _check_outputs() -> None:
    outputs = outputs_folder()
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        if not os.access(outputs, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"the output folder {outputs} cannot be written ({error.strerror}): "
            "export BALANCE_OUTPUTS=/a/folder/of/yours"
        ) from error


def _interrupt(number: int, _: object) -> None:
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # the end has begun
    # A call that never returns to Python would hold the exception back for ever.
    watchdog = threading.Timer(_END_WITHIN_S, os._exit, args=(128 + number,))
    watchdog.daemon = True
    watchdog.start()
    raise Interrupted(number)


@contextlib.contextmanager
def errors_for_people() -> Iterator[None]:
    """Turns a user's mistake, and what the file system refuses, into one or two lines on stderr and exit status 1."""
    try:
        yield
    except UserError as error:
        print(f"{_error()} {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        what += f"{error.strerror or error}. What is finished is kept: mend that, run the same command again"
        print(f"{_error()} {what}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _error() -> str:
    from balance.runtime.terminal import coloured

    return coloured("error:")
