"""Consensus against a loop that says the contract's sentence, and similarities against math.fsum."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from balance.search import consensus
from balance.search.top_k import ArrayVectors


def exact(a: np.ndarray, b: np.ndarray) -> np.float32:
    x, y = a.astype(float).tolist(), b.astype(float).tolist()
    dot, aa, bb = (math.fsum(p * q for p, q in zip(*pair, strict=True)) for pair in ((x, y), (x, x), (y, y)))
    return np.float32(dot / (math.sqrt(aa) * math.sqrt(bb)) if aa and bb else 0.0)


def top(seeds: np.ndarray, pool: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    table = np.array([[exact(s, p) for p in pool] for s in seeds])
    order = np.stack([np.lexsort((np.arange(len(pool)), -row))[:k] for row in table])
    return order.astype(np.int32), np.take_along_axis(table, order, axis=1)


@pytest.mark.parametrize("seeds_at_once", [3, 256])
def test_it_is_the_sentence_of_the_contract(seeds_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "_SEEDS_AT_ONCE", seeds_at_once)
    rng = np.random.default_rng(0)
    spaces = [
        (rng.integers(-2, 3, (7, 4)).astype(np.float32), rng.integers(-2, 3, (40, 4)).astype(np.float32))
        for _ in range(3)
    ]  # small integers: many equal similarities and ranks
    k = 6
    lists = [top(seeds, pool, k) for seeds, pool in spaces]
    others = [lists[1][0], lists[2][0].copy()]
    others[1][2] = -1  # a seed that the third encoder does not know
    seeds, pool = spaces[0]
    found = consensus.find(*lists[0], others, seeds, ArrayVectors(pool))
    for s in range(len(seeds)):
        ranks: dict[int, list[int]] = {}
        for listed in (lists[0][0], *others):
            for rank, position in enumerate(listed[s].tolist(), 1):
                if position >= 0:
                    ranks.setdefault(position, []).append(rank)

        def order(position: int, ranks: dict[int, list[int]] = ranks, s: int = s) -> tuple[object, ...]:
            own = ranks[position]
            return -len(own), Fraction(sum(own), len(own)), -exact(seeds[s], pool[position]), position

        expected = sorted(ranks, key=order)[:k]
        assert found.positions[s].tolist() == expected
        assert found.similarities[s].tolist() == [exact(seeds[s], pool[p]) for p in expected]
        assert found.num_lists[s].tolist() == [len(ranks[p]) for p in expected]
        shares = [len({*lists[0][0][s]} & {*other[s]}) / k for other in others if (other[s] >= 0).any()]
        assert found.agreement[s] == pytest.approx(np.mean(shares))


def test_one_encoder_twice_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    seeds, pool = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(30, 8)).astype(np.float32)
    positions, similarities = top(seeds, pool, 7)
    found = consensus.find(positions, similarities, [positions], seeds, ArrayVectors(pool))
    assert np.array_equal(found.positions, positions)
    assert np.array_equal(found.similarities, similarities)
    assert (found.agreement == 1).all()
    unknown = consensus.find(positions, similarities, [np.full_like(positions, -1)], seeds, ArrayVectors(pool))
    assert np.array_equal(unknown.positions, positions)
    assert np.isnan(unknown.agreement).all()
