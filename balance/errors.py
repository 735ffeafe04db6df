"""The one exception that is meant for the user. Imports next to nothing, so that every door can know it at once."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


class UserError(Exception):
    """A mistake of the user's: what was given, what is allowed, what to type, in one or two lines.

    The commands print it without a traceback and exit with status 1.
    """


@contextlib.contextmanager
def damage_named(what: str) -> Iterator[None]:
    """For reading a file with a library: whatever it raises becomes a UserError that begins with `what`.

    Of a damaged file numpy, zipfile and Arrow raise nearly everything (SyntaxError, OverflowError, MemoryError …), so
    no narrower list of exceptions would hold.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the machine's trouble (a full disk, no permission), not the file's
        said = (str(error).splitlines() or [""])[0].strip()
        raise UserError(f"{what} ({said or type(error).__name__})") from None
