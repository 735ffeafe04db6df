"""Words that messages share."""

import math
from collections.abc import Sequence

NUM_NAMED = 5  # enough to find the cause
_UNITS = ("KB", "MB", "GB", "TB", "PB")


def listed(names: Sequence[str], limit: int = NUM_NAMED) -> str:
    """The first names of a list in a sentence: `a, b and 3 more`; `none` of an empty one."""
    if not names:
        return "none"
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def counted(number: int, noun: str) -> str:
    """`1 part`, `2,000 parts`: a number and what it counts, a noun whose plural ends in s."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def size(num_bytes: float) -> str:
    """`512 bytes`, `78.3 KB`, `1.2 GB`: units are powers of 1,000."""
    if round(num_bytes) < 1000:
        return counted(round(num_bytes), "byte")
    power = min(int(math.log10(float(f"{num_bytes:.3g}"))) // 3, len(_UNITS))
    return f"{num_bytes / 1000**power:.3g} {_UNITS[power - 1]}"


def cause(error: OSError) -> str:
    """What the file system refused and where, without the number: `/cache/x.npz: No space left on device`."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
