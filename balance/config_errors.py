"""Mistakes in what was typed or in a configuration file, as one or two lines for a person.

In: what Hydra, OmegaConf or the YAML reader raised, and the names of all keys. Out: the sentence: what was given, what
is allowed, what to type. Hydra's own words stay in it, since people search for them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import yaml
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

ERRORS = (CompactHydraException, OmegaConfBaseException, yaml.YAMLError, AttributeError, TypeError)


def words(error: Exception, typed: Iterable[str], keys: Iterable[str]) -> str:
    """The message. typed: the command line's overrides; keys: dotted names of all keys and groups."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.partition("/")
        allowed = ", ".join(sorted(error.options))
        return f"{group}={choice}: there is no such choice; allowed are {allowed}{_meant(choice, error.options)}"
    if isinstance(error, yaml.YAMLError):
        return f"{_one_line(str(error))}: a configuration file that is not YAML (indent with spaces, not with tabs)"
    text = str(error)
    if isinstance(error.__cause__, OmegaConfBaseException):
        text = f"{text}\n{error.__cause__}"
    if (unknown := re.search(r"Interpolation key '(.+?)' not found", text)) or isinstance(error, InterpolationKeyError):
        name = unknown[1] if unknown else ""
        return (
            f"${{{name}}} is no key of the configuration. A variable of the shell is ${{oc.env:{name}}}, or let the "
            f'shell fill it in: "…${name}…" in double quotes'
        )
    name = next((m[1] for m in re.finditer(r"(?:Could not override|full_key:|attribute) '?([\w.]+)'?", text)), "")
    text = re.sub(r"\nTo append to your config use .*|\n\s*(full_key|reference_type|object_type)[:=].*", "", text)
    text = re.sub(r"\nSee https\S+ for details", "", text)
    if re.search(r"Could not override|not in '|has no attribute", text):
        return f"{_one_line(text)}{_meant(name, keys)} (--help all lists the keys)"
    given = next(
        (x for x in reversed(list(typed)) if x.lstrip("+~").partition("=")[0] == name), getattr(error, "override", "")
    )
    return f"{f'{given}: ' if given and given not in text else ''}{_one_line(text)}"


def _one_line(text: str) -> str:
    return ". ".join(line.strip().rstrip(".") for line in text.splitlines() if line.strip())


def _meant(name: str, names: Iterable[str]) -> str:
    """`; did you mean x?`, where one of the names is close; a key's last part counts too."""
    names = list(names)
    folded = {known.lower(): known for known in names}
    for known in names:
        folded.setdefault(known.rpartition(".")[2].lower(), known)
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]}?" if close else ""
