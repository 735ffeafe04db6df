"""A finished run read back from its folder, as columns: for the questions asked afterwards.

In: a run's folder. Out: `Run`, what the files say and nothing computed. Files are found by the manifest's K. Nothing in
the folder is trusted: a file may have been cut short, edited or written by another program, so types, columns, text and
values are checked as it is read. What does not fit is a user's mistake, named with the file; the price is one pass over
each column that is asked for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from balance.curation.removed import Rule
from balance.data.config import ColumnsConfig, Format
from balance.data.formats import read_split
from balance.errors import UserError
from balance.records import QUALITY, Index
from balance.results import curation_files, tables
from balance.runtime.remote import AnyPath, place

_FAILURE_KEYS = ("id", "split", "path", "reason", "detail")
_REASON_CHARS = 160  # of an error message that may quote the damaged file


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The data set that a run read: `dataset.*` of its configuration."""

    name: str
    format: Format
    root: AnyPath
    media: AnyPath
    balanced: str
    unbalanced: str
    eval: str | None
    ontology: str | None
    columns: ColumnsConfig
    slices: bool

    def read_split(self, value: str) -> Index:
        """A split as the run read it. UserError, OSError."""
        return read_split(
            self.format, value, root=self.root, media=self.media, columns=self.columns, slices=self.slices
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What manifest.json says, as far as questions need it, checked.

    outputs: file name -> sha256; inputs: path -> sha256.
    """

    k: int
    rng_seed: int
    source: Source
    cache: AnyPath
    fingerprint: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    @staticmethod
    def of(content: Any) -> RunFacts:
        """From the JSON value. KeyError, TypeError or ValueError where it is none of a run."""
        config = _object(content["config"])
        outputs = _texts(content["outputs"])
        if outside := [name for name in outputs if PurePosixPath(name).is_absolute() or ".." in name.split("/")]:
            raise ValueError(f"outputs names files elsewhere: {outside[0]}")
        made = RunFacts(
            k=_whole(config["k"], least=1),
            rng_seed=_whole(config["seed"], least=0),
            source=_source(_object(config["dataset"])),
            cache=_path(config["cache_dir"]),
            fingerprint=_part_of_a_name(content["fingerprint"]),
            inputs=_texts(content["inputs"]),
            outputs=outputs,
        )
        for name in made.files:
            if name not in outputs:
                raise ValueError(f"outputs lacks {name}")
        return made

    @property
    def files(self) -> tuple[str, ...]:
        """The files that questions are answered from."""
        return f"augmented_k{self.k}.csv", f"neighbours_k{self.k}.parquet", "decisions.parquet", "failures.jsonl"


@dataclass(frozen=True)
class Run:
    """path: its folder; manifest: the content of manifest.json; facts: what of it was checked."""

    path: Path
    manifest: dict[str, Any]
    facts: RunFacts

    @staticmethod
    def read(folder: str) -> Run:
        """UserError where the folder holds no manifest, or a damaged one."""
        try:
            path = Path(folder).expanduser()
        except RuntimeError as error:
            raise UserError(f"{folder}: {error}") from None
        if not path.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of a run, as the run's last lines name it")
        file = path / "manifest.json"
        if not file.is_file():
            raise UserError(f"{folder} has no manifest.json: it is no complete run; runs lie in outputs/runs/…")
        with _damage_is_said(file):
            content = _read_object(file)
            return Run(path, content, RunFacts.of(content))

    @property
    def k(self) -> int:
        return self.facts.k

    def file(self, name: str) -> Path:
        """A file of the run; UserError if it is gone."""
        path = self.path / name
        if not path.is_file():
            raise UserError(f"{self.path} lacks {name}: it is no complete run any more; run the job again")
        return path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        path = self.file("summary.json")
        with _damage_is_said(path):
            return _read_object(path)

    @cached_property
    def augmented(self) -> Any:
        """augmented_k{K}.csv as an Arrow table of strings."""
        path = self.file(f"augmented_k{self.k}.csv")
        with _damage_is_said(path):
            table = pyarrow.csv.read_csv(
                path,
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(tables.COLUMNS, pa.string())),
            )
            if table.schema.names == [*tables.COLUMNS, *QUALITY]:  # report.quality=true
                table = table.select(list(tables.COLUMNS))
            table = _checked(table, pa.schema([(name, pa.string()) for name in tables.COLUMNS]), tables.COLUMNS)
            _refuse_others(table["source"], ("seed", "neighbour"))
            return table

    @cached_property
    def neighbours(self) -> Any:
        """neighbours_k{K}.parquet: seed_id, rank, neighbour_id, similarity; at least one row."""
        path = self.file(f"neighbours_k{self.k}.parquet")
        with _damage_is_said(path):
            names = tables.NEIGHBOURS.names
            table = _checked(_read_parquet(path), tables.NEIGHBOURS, names)
            if not len(table):
                raise ValueError("it has no rows")
            return table

    @cached_property
    def decisions(self) -> Any:
        """decisions.parquet: id, rule, by, value."""
        path = self.file("decisions.parquet")
        with _damage_is_said(path):
            table = _checked(_read_parquet(path), curation_files.SCHEMA, ("id", "rule"))
            _refuse_others(table["rule"], [rule.name for rule in Rule])
            return table

    @cached_property
    def dropped(self) -> Any:
        """Of decisions.parquet the clips that are out."""
        return self.decisions.filter(pc.not_equal(self.decisions["rule"], Rule.included.name))

    def failures(self) -> list[dict[str, str]]:
        """failures.jsonl: id, split, path, reason, detail of each clip without embedding."""
        path = self.file("failures.jsonl")
        with _damage_is_said(path):
            found = [_object(json.loads(line)) for line in path.read_text("utf-8").split("\n") if line]
            return [{key: _text(failure[key]) for key in _FAILURE_KEYS} for failure in found]


@contextlib.contextmanager
def _damage_is_said(path: Path) -> Iterator[None]:
    """A UserError that names the file, of whatever reading a damaged one raises."""
    try:
        yield
    except (ValueError, TypeError, LookupError, RecursionError, MemoryError, OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system, which Arrow's own are not
        what = f"it lacks {error}" if isinstance(error, KeyError) else (str(error).splitlines() or [""])[0]
        what = "".join(char if char.isprintable() else "?" for char in what[:_REASON_CHARS])
        raise UserError(
            f"{path} cannot be read as a file of a run ({what or type(error).__name__}): do not use this run; run the "
            "job again"
        ) from None


def _read_parquet(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:  # `read_table` would take a folder named k=10 for a column
        return file.read()


def _checked(table: pa.Table, schema: pa.Schema, filled: Any) -> pa.Table:
    """The table, if it has these columns, only UTF-8 text, and no null in those of `filled`; ValueError else."""
    if table.schema.names != schema.names or table.schema.types != schema.types:
        raise ValueError(f"its columns are not {', '.join(schema.names)}")
    table.validate(full=True)
    for name in filled:
        if table[name].null_count:
            raise ValueError(f"its column {name} has gaps")
    return table


def _refuse_others(column: Any, known: Any) -> None:
    others = pc.unique(column.filter(pc.invert(pc.is_in(column, value_set=pa.array(known)))))
    if len(others):
        raise ValueError(f"{others[0].as_py()!r} is none of {', '.join(known)}")


def _source(dataset: dict[str, Any]) -> Source:
    root, media, columns = dataset["root"], dataset["media"], _object(dataset["columns"])
    known = _path(media if root is None else root)  # containers may have been given by dataset.media alone
    return Source(
        name=_part_of_a_name(dataset["name"]),
        format=Format(dataset["format"]),
        root=known,
        media=known if media is None else _path(media),
        balanced=_text(dataset["balanced"]),
        unbalanced=_text(dataset["unbalanced"]),
        eval=_text_or_none(dataset["eval"]),
        ontology=_text_or_none(dataset["ontology"]),
        columns=ColumnsConfig(
            id=_text(columns["id"]), audio=_text(columns["audio"]), labels=_text_or_none(columns["labels"])
        ),
        slices=dataset.get("slices") is True,
    )


def _read_object(path: Path) -> dict[str, Any]:
    return _object(json.loads(path.read_text("utf-8")))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{_shown(value)} is no JSON object")
    return value


def _text(value: Any) -> str:
    """A string that can be printed and be part of a path."""
    if not isinstance(value, str):
        raise TypeError(f"{_shown(value)} is no text")
    value.encode("utf-8")  # lone surrogates, which JSON can hold
    if "\0" in value:
        raise ValueError(f"{_shown(value)} has a zero byte")
    return value


def _part_of_a_name(value: Any) -> str:
    text = _text(value)
    if not text or "/" in text:
        raise ValueError(f"{_shown(value)} is no part of a folder's name")
    return text


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _texts(value: Any) -> dict[str, str]:
    return {_text(key): _text(item) for key, item in _object(value).items()}


def _path(value: Any) -> AnyPath:
    try:
        return place(_text(value))
    except RuntimeError as error:  # the home of a user whom nobody knows
        raise ValueError(str(error)) from None


def _whole(value: Any, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TypeError(f"{_shown(value)} is no whole number from {least} on")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value)[:40]
