"""Ids of clips: what may be one, files of them, and when two ids mean the same clip.

Every reader of an index checks its ids here. They are kept as they are: an id with a blank at its end or in another
Unicode form looks equal to the eye and is not, so it is refused and never mended, for the index's own lines hold it
too. Lists may write one video differently (`Ysn1zcw0bbZU_30.000`, `unbal/sn1zcw0bbZU.wav`): the decontamination and
the probe's groups compare what `comparable` gives, and `reading` decides once per run whether ids are YouTube ids.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from balance.data.config import Ids
from balance.data.media import ALL_AUDIO
from balance.errors import UserError
from balance.records import Index, Strings, duplicate_ids
from balance.runtime.remote import AnyPath
from balance.runtime.wording import listed

log = logging.getLogger(__name__)

NEARLY_ALL = 0.95  # of the ids must have the shape of YouTube ids, so that chance likenesses stay what they are

_CONTROL = r"[\x00-\x1f\x7f-\x{9f}\x{2028}\x{2029}]"  # the last two end a line for many readers
_MARK = r"\x{feff}"
_BLANK_AT_END = r"^[\pZ\p{Cf}]|[\pZ\p{Cf}]$"
_SUFFIX = rf"(?i:\.(?:{'|'.join(sorted(ALL_AUDIO))}))"
_TIMES = r"(?:_[0-9]+(?:\.[0-9]+)?(?:[_-][0-9]+(?:\.[0-9]+)?)?)"
_YOUTUBE_ID = rf"^(?:.*/)?(?:id_|Y)?(?P<id>[A-Za-z0-9_-]{{11}}){_TIMES}?(?:\.p0)?{_SUFFIX}?$"
_WHOLE_TAIL = rf"\.p0$|(?:\.p0)?{_SUFFIX}$"


def check_ids(ids: Strings, where: Callable[[int], str]) -> None:
    """UserError that names the first id which is none. ids: Arrow strings; where: row -> file and line, for messages.

    Refused are null, the empty id, control characters and line separators, a byte order mark, blanks and invisible
    characters at the ends, and text that is not in Unicode's composed form (NFC).
    """
    if ids.null_count:
        raise UserError(f"{where(pc.index(pc.is_null(ids), True).as_py())}: no id (null)")
    for bad, why in (
        (pc.equal(ids, ""), "it is empty"),
        (pc.match_substring_regex(ids, _CONTROL), "a line end or control character in it"),
        (pc.match_substring_regex(ids, _MARK), "a byte order mark in it: write the file as plain UTF-8"),
        (pc.match_substring_regex(ids, _BLANK_AT_END), "a blank at its beginning or end: take it out"),
        (pc.not_equal(pc.utf8_normalize(ids, "NFC"), ids), "not in Unicode's composed form: write it in NFC"),
    ):
        row = pc.index(bad, True).as_py()
        if row >= 0:
            raise UserError(f"{where(row)}: {ids[row].as_py()!a} is no id: {why}")


def id_array(names: Sequence[str], where: Callable[[int], str]) -> Strings:
    """Ids as an Arrow string array, checked (`check_ids`); UserError also for text that is not UTF-8."""
    try:
        ids = pa.array(names, type=pa.string())
    except UnicodeEncodeError:  # half a surrogate pair, which Python has for bytes that are no text
        row = next(row for row, name in enumerate(names) if any("\ud800" <= c <= "\udfff" for c in name))
        raise UserError(f"{where(row)!a}: {names[row]!a} is no id: its name is not UTF-8") from None
    check_ids(ids, where)
    return ids


def id_of_path(path: str) -> str:
    """The id that a file's path without suffix gives: in NFC, without blanks at the ends of a name and `.p0`."""
    return "/".join(name.strip(" ") for name in unicodedata.normalize("NFC", path).split("/")).removesuffix(".p0")


def read_id_file(path: Path) -> Strings:
    """One id per line, UTF-8, no header -> Arrow string array. CRLF and a missing last line end are tolerated."""
    lines = _lines(path, "the id of each vector")
    if lines[-1] == "":
        lines.pop()
    if "" in lines:
        raise UserError(f"{path} line {lines.index('') + 1}: empty line; one id per line")
    return id_array(lines, lambda row: f"{path} line {row + 1}")


def read_id_list(path: AnyPath) -> Strings:
    """Distinct ids, one per line, UTF-8, no header -> Arrow string array in the file's order; blank lines are passed
    over. UserError also where there is no id."""
    numbered = [(number, line) for number, line in enumerate(_lines(path, "ids of clips"), start=1) if line.strip()]
    if not numbered:
        raise UserError(f"{path}: holds no id; it must hold ids of clips, one per line")
    return pc.unique(id_array([line for _, line in numbered], lambda row: f"{path} line {numbered[row][0]}"))


def _lines(path: AnyPath, what: str) -> list[str]:
    """The lines of a file that must hold `what`; UserError where it cannot be read."""
    try:
        return path.read_bytes().decode().replace("\r\n", "\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it must hold {what}, one per line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def refuse_duplicates(where: str, ids: Strings) -> None:
    """UserError that names the ids which occur more than once."""
    twice = duplicate_ids(ids)
    if twice:
        raise UserError(f"{where}: ids that occur more than once: {listed(twice)}")


WORDS = {Ids.youtube: "as YouTube ids", Ids.whole: "whole, not as YouTube ids"}


def read_as(given: Ids, ids: Strings, eval_ids: Strings) -> Ids:
    """`youtube` or `whole`: how the ids of two lists are compared. given: `dataset.ids`; with `auto` ids are read as
    YouTube ids where nearly all of both lists have that shape."""
    is_shaped = given is Ids.auto and all(_youtube_share(some) >= NEARLY_ALL for some in (ids, eval_ids))
    return Ids.youtube if given is Ids.youtube or is_shaped else Ids.whole


def reading(given: Ids, indexes: Mapping[str, Index]) -> Ids:
    """`youtube` or `whole`: how this run's ids are compared, said in the log.

    given: as of `read_as`; indexes: `pool` and, where there are evaluation clips to compare with, `eval`. A warning
    where the two lists' ids have no form in common.
    """
    if "eval" not in indexes:
        return Ids.whole
    pool_ids, eval_ids = indexes["pool"].ids, indexes["eval"].ids
    shares = [_youtube_share(ids) for ids in (pool_ids, eval_ids)]
    said = f"{shares[0]:.1%} of the pool's and {shares[1]:.1%} of the evaluation's have that shape"
    found = read_as(given, pool_ids, eval_ids)
    log.info("ids are compared %s: %s", WORDS[found], said)
    if found is Ids.youtube:
        return found
    if given is Ids.auto and any(share >= NEARLY_ALL for share in shares):
        log.warning(
            "pool and evaluation write their ids in different forms (YouTube ids: %s), so the decontamination by id "
            "may miss clips: type dataset.ids=youtube to compare the YouTube ids that there are, or dataset.ids=whole",
            said,
        )
    else:
        _say_what_may_be_missed(comparable(pool_ids, Ids.whole), comparable(eval_ids, Ids.whole))
    return Ids.whole


def _say_what_may_be_missed(pool_ids: Strings, eval_ids: Strings) -> None:
    """Warnings about ids that are compared whole, where that cannot find what is a copy."""
    names = [pc.replace_substring_regex(ids, "^.*/", "") for ids in (pool_ids, eval_ids)]
    elsewhere = pc.and_not(pc.is_in(names[1], value_set=names[0]), pc.is_in(eval_ids, value_set=pool_ids))
    if num_elsewhere := pc.sum(elsewhere).as_py():
        log.warning(
            "%d of the %d evaluation clips have the name of a pool clip in another folder and count as other clips: if "
            "they are copies, compare the sound with augment.leaks=exact",
            num_elsewhere,
            len(eval_ids),
        )
    elif not _have_a_common_form(pool_ids, eval_ids):
        log.warning(
            "no evaluation id (such as %s) has the form of a pool id (such as %s), so the decontamination by id finds "
            "nothing: write both alike, or compare the sound with augment.leaks=exact",
            eval_ids[0],
            pool_ids[0],
        )


def comparable(ids: Strings, read_as: Ids) -> Strings:
    """Arrow strings that are equal where the ids mean the same clip; read_as: what `reading` gave.

    whole: the id without `.p0` and audio suffix. youtube: without folder, `Y` or `id_`, times, `.p0` and suffix as
    well; an id of another form as with whole. `x/Ysn1zcw0bbZU_30.000.wav` → `sn1zcw0bbZU`.
    """
    whole = pc.replace_substring_regex(ids, _WHOLE_TAIL, "")
    return whole if read_as is Ids.whole else pc.coalesce(_youtube_ids(ids), whole)


def _youtube_ids(ids: Strings) -> Strings:
    return pc.struct_field(pc.extract_regex(ids, _YOUTUBE_ID), "id")


def _youtube_share(ids: Strings) -> float:
    return float(pc.mean(pc.match_substring_regex(ids, _YOUTUBE_ID)).as_py() or 0.0)


def _have_a_common_form(first: Strings, second: Strings) -> bool:
    """Whether an id of each is alike when words are `a` and numbers `0`: `fsdd_8_theo_16` is `a_0_a_0`."""
    forms = []
    for ids in (first, second):
        words = pc.replace_substring_regex(ids, r"\pL+", "a")
        forms.append(pc.unique(pc.replace_substring_regex(words, "[0-9]+", "0")))
    return bool(pc.any(pc.is_in(forms[0], value_set=forms[1])).as_py())
