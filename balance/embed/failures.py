"""When too many present clips could not be decoded: the share that stops a run, and the words for it.

In: a split's failures so far, asked after each part and at the end. Out: nothing, or the UserError that names the first
clips, the reasons and what to type. What is embedded stays in either case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from balance.data.missing import round_up
from balance.errors import UserError
from balance.records import DecodeFailure


def refuse_failures(split: str, failures: Sequence[DecodeFailure], num_present: int, *, max_failures: float) -> None:
    """UserError if more than `max_failures` of a split's present clips could not be read, or none at all could."""
    if not failures:
        return
    share = len(failures) / num_present
    none_left = len(failures) == num_present and split != "eval"  # eval clips serve decontamination by their ids alone
    if share <= max_failures and not none_left:
        return
    reasons = Counter(f.reason for f in failures)
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    first = ", ".join(f"{f.path} ({f.detail})" for f in failures[:3])
    if len(failures) == num_present:
        remedy = "None could be read: look at the files, or at dataset.media"
    else:
        remedy = f"What is embedded stays. If that is to be so, type max_failures={round_up(share)}"
    raise UserError(
        f"{len(failures):,} of the {num_present:,} {split} clips could not be read ({share:.1%}): {counts}; "
        f"first: {first}.\n{remedy}"
    )
