"""The page of all keys, from the fields of the configuration: `python tools/configuration.py`; `make docs` runs it."""

from __future__ import annotations

from balance import help
from balance.config import CONF, SCHEMAS

HEAD = """\
<!-- Made by tools/configuration.py from the configuration's dataclasses: `make docs` makes it anew. -->
# Configuration

Every key is typed as `key=value` after the command. A wrong type, an unknown key or an impossible value is refused
before any work. `--help` shows the common keys on one screen, `--help all` every key, `--cfg job` the composed
configuration that would run.

Values come from these places; a later one wins:

1. the defaults below;
2. the chosen option of each group (`dataset=demo`, `encoder=vipant`);
3. `conf/local/default.yaml`, where a machine's own paths live (git ignores it). It is looked for in the program's own
   `conf/` folder (the top of a checkout) and, if it is not there, in `conf/` of the folder that the command is typed
   in. The same goes for options of your own: `conf/dataset/mine.yaml` is chosen by `dataset=mine`;
4. what is typed.

`dataset=demo` lives in `{cache_dir}/demo` with a checkpoint of its own: no `dataset.*` and no `encoder.checkpoint` of
`conf/local/default.yaml` reaches it.

Two variables of the environment: `BALANCE_OUTPUTS` is the folder of the runs (default `outputs`), `BALANCE_CACHE` the
default of `cache_dir`. Set but empty counts as not set.
"""

TITLES = {
    "run": ("Keys of `python -m balance.run`", "The probe takes all of them too."),
    "probe": ("Keys of `python -m balance.probe`", "Beside the keys of `balance.run`."),
    "audit": ("Keys of `python -m balance.audit`", "Beside the keys of `balance.run`, of which it takes no encoder's."),
    "finetune": ("Keys of `python -m balance.finetune`", "Beside the keys of `balance.run` and `balance.probe`."),
    "index": ("Keys of `python -m balance.index`", ""),
    "atlas": ("Keys of `python -m balance.atlas`", "`report.media_base` and `report.embed_audio` as above."),
}


def page() -> str:
    """The whole page, Markdown."""
    parts = [HEAD, groups()]
    known: set[str] = set()
    for command, (title, sentence) in TITLES.items():
        rows = [row for row in help.rows(SCHEMAS[command]) if row.name not in known]
        known |= {row.name for row in rows} if command in ("run", "probe") else set()
        lines = [f"## {title}", ""] + ([sentence, ""] if sentence else [])
        lines += ["| key | default | meaning |", "|---|---|---|"]
        lines += [f"| `{row.name}` | {_default(row)} | {row.help.replace('|', '&#124;')} |" for row in rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def groups() -> str:
    """The options of the configuration groups, a line each."""
    lines = ["## Groups", "", "| group | options |", "|---|---|"]
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "local")):
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        if len(names) < 2:
            continue
        lines.append(f"| `{folder.name}` | {', '.join(f'`{folder.name}={name}`' for name in names)} |")
    return "\n".join(lines) + "\n"


def _default(row: help.Row) -> str:
    return "–" if row.default in ("null", "") else f"`{row.default}`"


if __name__ == "__main__":
    print(page(), end="")
