"""A finished run read back from its folder, as columns: for the questions asked afterwards.

In: a run's folder. Out: `Run`, what the files say and nothing computed. Files are found by the manifest's K. A folder
that is no complete run is a user's mistake, with the name of the file that it lacks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from balance.errors import UserError


@dataclass(frozen=True)
class Run:
    """path: its folder; manifest: the content of manifest.json."""

    path: Path
    manifest: dict[str, Any]

    @staticmethod
    def read(folder: str) -> Run:
        """UserError where the folder holds no manifest."""
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of a run, as the run's last lines name it")
        if not (path / "manifest.json").is_file():
            raise UserError(f"{folder} has no manifest.json: it is no complete run; runs lie in outputs/runs/…")
        return Run(path, json.loads((path / "manifest.json").read_text("utf-8")))

    @property
    def k(self) -> int:
        return int(self.manifest["config"]["k"])

    def file(self, name: str) -> Path:
        """A file of the run; UserError if it is gone."""
        path = self.path / name
        if not path.is_file():
            raise UserError(f"{self.path} lacks {name}: it is no complete run any more; run the job again")
        return path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        summary: dict[str, Any] = json.loads(self.file("summary.json").read_text("utf-8"))
        return summary

    @cached_property
    def augmented(self) -> Any:
        """augmented_k{K}.csv as an Arrow table of strings."""
        path = self.file(f"augmented_k{self.k}.csv")
        with path.open(encoding="utf-8") as file:
            text = {name: pa.string() for name in file.readline().strip().split(",")}
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=text),
        )

    @cached_property
    def neighbours(self) -> Any:
        """neighbours_k{K}.parquet: seed_id, rank, neighbour_id, similarity."""
        return pq.read_table(self.file(f"neighbours_k{self.k}.parquet"))

    @cached_property
    def decisions(self) -> Any:
        """decisions.parquet: id, rule, by, value."""
        return pq.read_table(self.file("decisions.parquet"))

    def failures(self) -> list[dict[str, str]]:
        """failures.jsonl."""
        lines = self.file("failures.jsonl").read_text("utf-8").split("\n")
        return [json.loads(line) for line in lines if line]
