"""Vectors to points of a plane, the same points for the same vectors and seed on one machine.

In: (n, dim) float32. Out: (n, 2) float32 and how they were made. The vectors are scaled to unit length first, where
squared distance is 2 − 2 cosine, and reduced to their first principal components: alone (two of them), or as the space
that UMAP (McInnes et al. 2018) lays out from there. A plane cannot keep the distances of many dimensions: what is near
on the map may be far in truth, which is why the page draws lines to the exact neighbours.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from balance.atlas.config import Projection
from balance.errors import UserError
from balance.records import Float32, Float64

log = logging.getLogger(__name__)

_UMAP_DIMS = 50  # principal components that UMAP sees
_UMAP_NEIGHBOURS = 15
_PIP = "pip install 'audio-balance[atlas]'"


@dataclass(frozen=True, slots=True, eq=False)
class Projected:
    """points: (n, 2) float32; method: `umap` or `pca`; parameters: what it was given."""

    points: Float32
    method: str
    parameters: dict[str, Any]


def resolve(asked: Projection) -> Projection:
    """`umap` or `pca`. UserError where UMAP is asked for and absent."""
    there = importlib.util.find_spec("umap") is not None
    if asked is Projection.umap and not there:
        raise UserError(f"atlas.projection=umap needs umap-learn: {_PIP}, or type atlas.projection=pca")
    if asked is Projection.auto and not there:
        log.info("umap-learn is not installed: the map shows two principal components (%s)", _PIP)
    return Projection.pca if asked is Projection.pca or not there else Projection.umap


def project(vectors: Float32, asked: Projection, rng_seed: int) -> Projected:
    """The points. asked: resolved; clips that are too few for UMAP, or on a line, get their principal components."""
    num_clips, dim = vectors.shape
    components, explained = principal(vectors, min(_UMAP_DIMS, dim))
    if components.shape[1] < 2:
        components = np.hstack([components, np.zeros((num_clips, 2 - components.shape[1]))])
    is_flat = bool((np.ptp(components[:, :2], axis=0) < 1e-9).any())  # all clips alike, or on one line
    if asked is not Projection.umap or num_clips <= _UMAP_NEIGHBOURS + 1 or is_flat:
        shown = {"components": 2, "explained_variance": round(float(explained[:2].sum()), 4)}
        return Projected(components[:, :2].astype(np.float32), "pca", shown)
    parameters = {"n_neighbors": _UMAP_NEIGHBOURS, "min_dist": 0.1, "metric": "euclidean"}
    points = _umap(components, parameters, rng_seed)
    return Projected(points, "umap", {**parameters, "pca_components": components.shape[1]})


def principal(vectors: Float32, num: int) -> tuple[Float64, Float64]:
    """The first principal components of the unit vectors: (n, num) float64, and each one's share of the variance. The
    largest coordinate of each axis is positive, so that the picture is not mirrored between two libraries."""
    unit = vectors.astype(np.float64)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    np.divide(unit, length, out=unit, where=length > 0)
    unit -= unit.mean(axis=0)
    variances, axes = np.linalg.eigh(unit.T @ unit)
    axes = axes[:, ::-1][:, :num]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    total = float(np.maximum(variances, 0).sum())
    return unit @ axes, np.maximum(variances[::-1][:num], 0) / (total or 1.0)


def _umap(components: Float64, parameters: dict[str, Any], rng_seed: int) -> Float32:
    import warnings

    with warnings.catch_warnings():  # of the libraries that it compiles with
        warnings.simplefilter("ignore")
        import umap

        fit = umap.UMAP(**parameters, init=components[:, :2], random_state=rng_seed, n_jobs=1)
        return np.asarray(fit.fit_transform(components.astype(np.float32)), dtype=np.float32)
