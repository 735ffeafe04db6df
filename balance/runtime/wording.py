"""Words that messages share."""

from collections.abc import Sequence

NUM_NAMED = 5  # enough to find the cause


def listed(names: Sequence[str], limit: int = NUM_NAMED) -> str:
    """The first names of a list in a sentence: `a, b and 3 more`; `none` of an empty one."""
    if not names:
        return "none"
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def cause(error: OSError) -> str:
    """What the file system refused and where, without the number: `/cache/x.npz: No space left on device`."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
