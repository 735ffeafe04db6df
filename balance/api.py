"""The program from Python: run it, open a finished run, or use its exact search alone.

`balance.run`, `balance.open_run` and `balance.exact_top_k` are these functions; `import balance` alone loads neither
torch nor FAISS. A mistake raises `balance.UserError` with the sentence that the command would print.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from balance.errors import UserError
from balance.records import Float32, Int32
from balance.results import explain, read_run

if TYPE_CHECKING:
    import torch

__all__ = ["Run", "UserError", "exact_top_k", "open_run", "run"]


class Run:
    """A finished run. path: its folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._files = read_run.Run.read(os.fspath(path))
        self.path: Path = self._files.path
        self._html: str | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return self._files.summary

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of manifest.json."""
        return self._files.manifest

    @property
    def augmented(self) -> Any:
        """The Arrow table of augmented_k{K}.csv, strings all: a row per clip, seeds first."""
        return self._files.augmented

    @property
    def neighbours(self) -> Any:
        """The Arrow table of neighbours_k{K}.parquet: seed_id, rank (from 1), neighbour_id, similarity (float32)."""
        return self._files.neighbours

    def why(self, clip_id: str) -> list[str]:
        """Why a clip is in, or why not: the lines of `python -m balance.why`. UserError for an unknown id."""
        return explain.why(str(self.path), clip_id)

    def _repr_html_(self) -> str:
        """What a notebook shows: headline figures, the pool's share against K, ten clips to listen to."""
        if self._html is None:
            from balance.report import notebook

            self._html = notebook.render(self._files)
        return self._html

    def __repr__(self) -> str:
        figures = self.summary
        return (
            f"Run({str(self.path)!r}: k = {figures['k']}, {figures['num_neighbours']:,} distinct neighbours of "
            f"{figures['num_seeds']:,} seeds, {figures['pool_share']:.1%} of the pool)"
        )


def run(*overrides: str) -> Run:
    """The main job, as `python -m balance.run` with these overrides: `run("dataset=demo", "k=10")`.

    Returns the finished run. Raises UserError for what the command would refuse, OSError.
    """
    from balance import config, pipeline

    settings, where = config.compose("run", overrides)
    where.folder.mkdir(parents=True)
    try:
        pipeline.run(settings, where.folder)
    except BaseException:
        if not any(where.folder.iterdir()):
            where.folder.rmdir()
        raise
    config.link_latest(where)
    return open_run(where.folder)


def open_run(path: str | os.PathLike[str]) -> Run:
    """A finished run: its folder, as a run's last lines name it. UserError where it is none."""
    return Run(path)


def exact_top_k(
    seeds: Float32 | torch.Tensor, pool: Float32 | torch.Tensor, k: int, device: str = "auto"
) -> tuple[Int32, Float32]:
    """The k most similar rows of `pool` for every row of `seeds`, by the exact cosine: the same bytes everywhere.

    seeds: (S, dim), pool: (N, dim), float32 arrays or tensors on any device (other floats are converted); device:
    `auto`, `cpu`, `cuda`, `cuda:1`, where it is computed. Returns positions in the pool (S, k) int32 and similarities
    (S, k) float32, best first: (similarity descending, position ascending); with a zero vector the similarity is 0.
    Raises UserError: no seeds, k beyond the pool, different dims, a number that is not finite.
    """
    from balance.encoders.device import resolve_device
    from balance.search.config import SearchConfig
    from balance.search.top_k import ArrayVectors, search

    rows = ArrayVectors(_rows("pool", pool), lambda row: f"pool, row {row}")
    return search(_rows("seeds", seeds), rows, k, SearchConfig(), device=resolve_device(device))


def _rows(name: str, given: Any) -> Float32:
    if hasattr(given, "detach"):  # a tensor
        given = given.detach().cpu().float().numpy()
    rows = np.ascontiguousarray(given, dtype=np.float32)
    if rows.ndim != 2:
        raise UserError(f"{name}: an array of shape {rows.shape} was given; vectors are (n, dim)")
    return rows
