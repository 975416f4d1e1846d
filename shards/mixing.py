"""How often the volumes of each source come: an epoch's list of volumes, by weights.

Without weights an epoch is every volume once. With weights it is as long, each source has its share
of it, and goes through its own volumes in its own epochs: none comes a second time before all of
its source have come, over the ends of epochs too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

from shards.errors import SelectionError
from shards.rng import ORDER, permutation


@dataclass(frozen=True, kw_only=True)
class Share:
    """One source's part in every epoch."""

    positions: Int64[ndarray, " n"]
    """Of its volumes, among all that take part."""
    per_epoch: int


def shares(
    source: Int32[ndarray, " n"], names: Sequence[str], weights: Mapping[str, float]
) -> list[Share]:
    """Cut an epoch of ``n`` volumes into shares by largest remainder; sources in code order.

    Args:
        source: code of each volume.
        names: of the codes.
        weights: of every source that has volumes; shares are proportional to them.

    Raises:
        SelectionError: a source has no weight, a weight has no source, or all are 0.
    """
    there = np.unique(source).tolist()
    _check(sorted(names[code] for code in there), weights)
    wanted = np.array([weights[names[code]] for code in there])
    exact = wanted / wanted.sum() * len(source)
    counts = np.floor(exact).astype(np.int64)
    left = len(source) - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    return [
        Share(positions=np.flatnonzero(source == code), per_epoch=count)
        for code, count in zip(there, counts.tolist(), strict=True)
        if count
    ]


def _check(there: Sequence[str], weights: Mapping[str, float]) -> None:
    missing = [name for name in there if name not in weights]
    unknown = [name for name in weights if name not in there]
    if missing or unknown:
        what = f"no weight for {', '.join(missing)}" if missing else f"no source {unknown[0]!r}"
        raise SelectionError(f"weights: {what}; the sources to weigh are {', '.join(there)}")
    if not all(0 <= weight < np.inf for weight in weights.values()) or not sum(weights.values()):
        raise SelectionError("weights: give numbers from 0 on, at least one above 0")


def draw(share: Share, seed: int, stream: int, epoch: int) -> tuple[ndarray, ndarray]:
    """What a source gives to an epoch: positions, and how often each has come in it before.

    Args:
        share: of the source.
        seed: of the plan.
        stream: number of the source, so that sources draw apart.
        epoch: of the plan.
    """
    n = len(share.positions)
    first, stop = epoch * share.per_epoch, (epoch + 1) * share.per_epoch
    positions, copies = [], []
    for number, own in enumerate(range(first // n, -(-stop // n))):
        part = slice(max(0, first - own * n), min(n, stop - own * n))
        whole = part == slice(0, n)
        # Of a whole round the order does not matter: the epoch is shuffled as one.
        order = np.arange(n) if whole else permutation(seed, ORDER + (stream + 1) * 2**32, own, n)
        positions.append(share.positions[order[part]])
        copies.append(np.full(part.stop - part.start, number))
    return np.concatenate(positions), np.concatenate(copies)
