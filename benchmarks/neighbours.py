"""Neighbours: our search, every backend present, beside raw faiss.knn, torch matmul + topk and scikit-learn.

    python benchmarks/neighbours.py [--seeds 2000 --pool 200000 --dim 512 --k 100 512 --cosines 0.5 0.996]
    python benchmarks/neighbours.py --tiny          # seconds, for CI
    python benchmarks/neighbours.py --growth 50000 100000 200000 400000 800000
    python benchmarks/neighbours.py --gpu           # one CUDA device; 22,160 x 2,041,789, k = 512

Crowded unit vectors: a common mean direction, mean cosine as given. Our times include everything: normalising,
centring, the first pass, exact rescoring, order. The others get normalised vectors and give approximate scores.
Wrong ids: places where the id is not the contract's, against a float64 reference made here by numpy and math.fsum;
of the others, ids that are not in the contract's set (their order is not counted). Each time is the best of --repeats,
taken in turns. Beside them the bytes and operations that each step of ours needs (counts.py). The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import counts
import numpy as np
import torch

from balance.search.candidates import first_pass_dtype, import_faiss
from balance.search.config import Backend, SearchConfig
from balance.search.top_k import ArrayVectors, search

Times = dict[str, float]


def unit_vectors(count: int, dim: int, cosine: float, seed: int) -> np.ndarray:
    """(count, dim) float32 unit vectors around one direction, of mean cosine `cosine` to each other."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(count, dim)
    for start in range(0, count, 1 << 16):
        part = torch.randn(min(1 << 16, count - start), dim, generator=generator)
        part = part.mul_(math.sqrt((1 - cosine) / dim)).add_(math.sqrt(cosine / dim))
        rows[start : start + len(part)] = torch.nn.functional.normalize(part, dim=1)
    return rows.numpy()


def reference(seeds: np.ndarray, pool: np.ndarray, k: int) -> np.ndarray:
    """The contract's ids (S, k), by numpy in float64; values near a float32 midpoint redone with math.fsum."""
    spare = min(len(pool), k + 64)
    result = np.empty((len(seeds), k), dtype=np.int32)
    for start in range(0, len(seeds), 100):
        seeds64 = seeds[start : start + 100].astype(np.float64)
        cosines = np.empty((len(seeds64), len(pool)))
        for first in range(0, len(pool), 1 << 14):
            pool64 = pool[first : first + (1 << 14)].astype(np.float64)
            cosines[:, first : first + (1 << 14)] = (seeds64 @ pool64.T) / np.sqrt(
                np.einsum("ij,ij->i", pool64, pool64)
            )
        cosines /= np.sqrt(np.einsum("ij,ij->i", seeds64, seeds64))[:, None]
        for i, row in enumerate(cosines):
            best = np.sort(np.argpartition(row, len(row) - spare)[-spare:])
            values = row[best]
            rounded = values.astype(np.float32)
            unsure = (values - 1e-12).astype(np.float32) != (values + 1e-12).astype(np.float32)
            for j in unsure.nonzero()[0]:
                seed, clip = seeds64[i], pool[best[j]].astype(np.float64)
                dot, aa, bb = (math.fsum((x * y).tolist()) for x, y in ((seed, clip), (seed, seed), (clip, clip)))
                rounded[j] = dot / (math.sqrt(aa) * math.sqrt(bb))
            order = np.argsort(-rounded, kind="stable")[:k]
            # The spare ones were enough if they end more than a float32 unit below the K-th.
            assert spare == len(pool) or values.min() < float(rounded[order[-1]]) - 1.2e-7
            result[start + i] = best[order]
    return result


def ours(backend: Backend, seeds: np.ndarray, pool: np.ndarray, k: int, device: torch.device) -> np.ndarray:
    return search(seeds, ArrayVectors(pool), k, SearchConfig(backend=backend), device=device)[0]


def torch_topk(seeds: np.ndarray, pool: np.ndarray, k: int) -> np.ndarray:
    return (torch.from_numpy(seeds) @ torch.from_numpy(pool).t()).topk(k, dim=1).indices.numpy()


def sklearn_brute(seeds: np.ndarray, pool: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    # Of unit vectors the Euclidean order is the cosine's, and scikit-learn's fast path.
    index = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="euclidean").fit(pool)
    return index.kneighbors(seeds, return_distance=False)


def faiss_knn(seeds: np.ndarray, pool: np.ndarray, k: int) -> np.ndarray:
    import faiss

    return faiss.knn(seeds, pool, k, metric=faiss.METRIC_INNER_PRODUCT)[1]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Every contender on every crowding and K."""
    cpu = torch.device("cpu")
    contenders: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
        "ours, FAISS": lambda s, p, k: ours(Backend.faiss, s, p, k, cpu),
        "ours, torch": lambda s, p, k: ours(Backend.torch, s, p, k, cpu),
        "raw faiss.knn": faiss_knn,
        "torch matmul + topk": torch_topk,
        "scikit-learn brute": sklearn_brute,
    }
    figures: dict[str, Any] = {"wrong_ids": 0}
    flop = 2.0 * args.seeds * args.pool * args.dim
    rows = []
    for cosine in args.cosines:
        seeds = unit_vectors(args.seeds, args.dim, cosine, seed=1)
        pool = unit_vectors(args.pool, args.dim, cosine, seed=2)
        right = None if args.no_reference else reference(seeds, pool, max(args.k))
        for k in args.k:
            best: Times = dict.fromkeys(contenders, math.inf)
            wrong: dict[str, int] = {}
            for repeat in range(args.repeats):
                for name, run in contenders.items():
                    if repeat and name in ("torch matmul + topk", "scikit-learn brute"):
                        continue  # beside the point of the ratios, and slow
                    started = time.perf_counter()
                    ids = run(seeds, pool, k)
                    best[name] = min(best[name], time.perf_counter() - started)
                    if right is None:
                        continue
                    if name.startswith("ours"):
                        wrong[name] = wrong.get(name, 0) + int((ids != right[:, :k]).sum())
                    else:
                        wrong[name] = sum(len(np.setdiff1d(a, b)) for a, b in zip(ids, right[:, :k], strict=True))
            for name, seconds in best.items():
                rows.append({"cosine": cosine, "k": k, "search": name, "seconds": round(seconds, 3)})
                shown = wrong.get(name, "?")
                print(
                    f"{cosine:<6} k={k:<4} {name:20} {seconds:8.3f} s"
                    f" {flop / seconds / 1e9:7.0f} GFLOP/s {shown:>8} wrong"
                )
            raw = best["raw faiss.knn"]
            for key, value, worse in (
                (f"faiss_ratio_k{k}", best["ours, FAISS"] / raw, max),
                (f"torch_speedup_k{k}", raw / best["ours, torch"], min),
            ):
                figures[key] = round(worse(figures.get(key, value), value), 3)
            steps = counts.search_steps_on_cpu(*size(args), k, first_pass_dtype(cpu).itemsize)
            figures.setdefault("counts", {})[f"k{k}"] = counts.as_json(steps, gpu=False)
            figures["wrong_ids"] += sum(count for name, count in wrong.items() if name.startswith("ours"))
    for k in args.k:
        counts.show(
            f"ours, torch, k={k}", counts.search_steps_on_cpu(*size(args), k, first_pass_dtype(cpu).itemsize), gpu=False
        )
    return {**figures, "rows": rows}


def size(args: argparse.Namespace) -> tuple[int, int, int]:
    return args.seeds, args.pool, args.dim


class FileVectors:
    """Vectors of a raw float32 file, read with preadinto: pages of a memory map would count as our memory."""

    def __init__(self, path: Path, dim: int) -> None:
        self._file = path.open("rb")
        self.shape = (path.stat().st_size // (4 * dim), dim)

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        os.preadv(self._file.fileno(), [rows], start * self.shape[1] * 4)
        return rows

    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([self.read(int(row), int(row) + 1) for row in rows])

    def name(self, row: int) -> str:
        return f"row {row}"


def high_water_bytes() -> int:
    """VmHWM: the most memory this process has had, mapped pages included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def growth(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and peak memory against the pool's size; each search in a process of its own, from a file."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.f32"
        for num_pool in args.growth:
            unit_vectors(num_pool, args.dim, 0.9, seed=2).tofile(path)
            for backend in ("torch", "faiss"):
                command = [sys.executable, __file__, "--seeds", str(args.seeds), "--dim", str(args.dim)]
                command += ["--k", str(max(args.k)), "--one", str(path), backend]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row = json.loads(done.stdout.splitlines()[-1])
                rows.append(row)
                per_row = row["seconds"] / num_pool * 1e6
                print(
                    f"pool {num_pool:>8} {backend:6} {row['seconds']:7.2f} s  {per_row:6.2f} us per clip"
                    f"  peak {row['peak_bytes'] / 2**20:6.0f} MiB (allowed {row['allowed_bytes'] / 2**20:.0f})"
                )
    return rows


def one(args: argparse.Namespace) -> dict[str, Any]:
    path, backend = args.one
    pool = FileVectors(Path(path), args.dim)
    seeds = unit_vectors(args.seeds, args.dim, 0.9, seed=1)
    k = max(args.k)
    started = time.perf_counter()
    search(seeds, pool, k, SearchConfig(backend=Backend(backend)), device=torch.device("cpu"))
    seconds = time.perf_counter() - started
    return {
        "pool": pool.shape[0],
        "backend": backend,
        "seconds": round(seconds, 3),
        "peak_bytes": high_water_bytes(),
        "allowed_bytes": args.seeds * (args.dim + k) * 16 + 2**30,
    }


class DeviceVectors:
    """Vectors that already lie in GPU memory."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        self.shape = (rows.shape[0], rows.shape[1])

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self._rows[start:stop]

    def name(self, row: int) -> str:
        return f"row {row}"


def gpu(args: argparse.Namespace) -> dict[str, Any]:
    """From vectors in GPU memory to exact ids: our torch backend, FAISS where it sees the GPU; 20 seeds are checked."""
    device, k = torch.device("cuda"), max(args.k)
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "gpu_wrong_ids": 0}
    steps = counts.search_steps(*size(args), k)
    counts.show("ours, torch", steps)
    figures |= {"counts": counts.as_json(steps), "h100_least_s": round(counts.total_s(steps), 3)}
    faiss, why_not = import_faiss()
    if faiss is None or not faiss.get_num_gpus():
        faiss = None
        print(f"not measured: {why_not or 'FAISS is built for CPUs only'}")
    resources = None if faiss is None else faiss.StandardGpuResources()
    for cosine in args.cosines:
        generator = torch.Generator(device).manual_seed(1)
        rows = torch.empty(args.seeds + args.pool, args.dim, device=device)
        for part in rows.split(1 << 18):
            part.normal_(generator=generator).mul_(math.sqrt((1 - cosine) / args.dim)).add_(
                math.sqrt(cosine / args.dim)
            )
            part.div_(torch.linalg.vector_norm(part, dim=1, keepdim=True))
        seeds, pool = rows[: args.seeds], rows[args.seeds :]
        on_host = seeds.cpu().numpy()
        contenders: dict[str, Callable[[], Any]] = {
            "ours, torch": lambda q=on_host, p=pool: search(
                q, DeviceVectors(p), k, SearchConfig(backend=Backend.torch), device=device
            )[0],
        }
        if faiss is not None:
            contenders["ours, FAISS"] = lambda q=on_host, p=pool: search(
                q, DeviceVectors(p), k, SearchConfig(backend=Backend.faiss), device=device
            )[0]
            contenders["raw faiss.knn_gpu"] = lambda q=seeds, p=pool: faiss.knn_gpu(
                resources, q, p, k, metric=faiss.METRIC_INNER_PRODUCT
            )[1]
        right = reference(on_host[:20], pool.cpu().numpy(), k)
        for name, run in contenders.items():
            best = math.inf
            for _ in range(args.repeats):
                torch.cuda.synchronize()
                started = time.perf_counter()
                ids = run()
                torch.cuda.synchronize()
                best = min(best, time.perf_counter() - started)
            found = ids.cpu().numpy() if isinstance(ids, torch.Tensor) else ids
            wrong = int((found[:20] != right).sum())
            if name.startswith("ours"):
                figures["gpu_wrong_ids"] += wrong
            print(f"{cosine:<6} k={k:<4} {name:20} {best:8.3f} s {wrong:>8} of {right.size} places wrong")
            key = "gpu_" + name.replace(", ", "_").replace(" ", "_").lower() + "_s"
            figures[key] = round(max(figures.get(key, 0.0), best), 3)
        del rows, seeds, pool
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--pool", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, nargs="+", default=[100, 512])
    parser.add_argument("--cosines", type=float, nargs="+", default=[0.5, 0.996])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="*", help="pool sizes; without numbers 50,000 to 800,000")
    parser.add_argument("--no-reference", action="store_true", help="times only")
    parser.add_argument("--gpu", action="store_true", help="one CUDA device, at AudioSet's size")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this script")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiny:
        args.seeds, args.pool, args.dim, args.k, args.repeats = 20, 2000, 32, [10, 50], 1
    elif args.gpu:
        args.seeds, args.pool, args.k = 22_160, 2_041_789, [512]
    if args.gpu:
        figures = gpu(args)
        print(json.dumps(figures))
        sys.exit(f"{figures['gpu_wrong_ids']} wrong ids" if figures["gpu_wrong_ids"] else 0)
    if args.one:
        print(json.dumps(one(args)))
        return
    if args.growth is not None:
        args.growth = args.growth or [50_000, 100_000, 200_000, 400_000, 800_000]
        print(json.dumps({"growth": growth(args)}))
        return
    threads = torch.get_num_threads()
    print(f"{args.seeds} seeds x {args.pool} clips x {args.dim}, {threads} threads, torch {torch.__version__}")
    print(json.dumps(compare(args)))


if __name__ == "__main__":
    main()
