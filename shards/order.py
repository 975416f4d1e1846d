"""The order of volumes in an epoch: shuffled, readable in runs, a subject at most once a batch.

Shards come in random order, a block of them at a time. The volumes of a shard are cut into runs of
neighbours, the runs of a block are shuffled, and each lane of the global batch is dealt some of
them in a row. So a batch mixes all shards of the block, while what one lane takes one after another
lies side by side in one shard and can be read at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64
from numpy import ndarray

LANE_TRIES = 32
"""Volumes of the same lane, before and after, that one may change places with."""
NEAR_TRIES = 256
"""Other volumes around it that are tried after those."""


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """The volumes of one epoch, in any order; a volume may come more than once."""

    rows: Int32[ndarray, " n"]
    """Row in the dataset's index."""
    copies: Int32[ndarray, " n"]
    """Counts the comings of a volume in this epoch, from 0."""
    shard: Int32[ndarray, " n"]
    offset: Int64[ndarray, " n"]
    """In the shard."""

    @cached_property
    def codes(self) -> Int32[ndarray, " n"]:
        """Numbers without gaps for each (copy, shard): copies of a shard are shuffled apart."""
        pairs = self.copies.astype(np.int64) * (int(self.shard.max()) + 1) + self.shard
        codes: Int32[ndarray, " n"] = np.unique(pairs, return_inverse=True)[1].astype(np.int32)
        return codes

    @property
    def n_shards(self) -> int:
        """Shards, those of each copy counted apart."""
        return int(self.codes.max()) + 1


def runs(volumes: Volumes, run: int) -> tuple[Int64[ndarray, " n"], Int32[ndarray, " n"]]:
    """Volumes in the order of their shards, and the number of the run that each is in.

    A run is ``run`` neighbours of a shard, from its start on; its last one may be shorter.
    """
    in_file = np.lexsort((volumes.offset, volumes.codes))
    starts = np.flatnonzero(np.diff(volumes.codes[in_file], prepend=-1))
    rank = np.arange(len(in_file)) - np.repeat(starts, np.diff(starts, append=len(in_file)))
    return in_file, np.cumsum(rank % run == 0, dtype=np.int32) - 1


def shuffle(
    volumes: Volumes, words: UInt64[ndarray, " w"], *, shuffle_shards: int, run: int
) -> tuple[Int64[ndarray, " n"], Int32[ndarray, " n"]]:
    """Reading order of an epoch: positions in ``volumes``, and the block that each belongs to.

    Args:
        volumes: what the epoch consists of.
        words: random words: one a shard (and copy), then one a volume.
        shuffle_shards: shards in a block.
        run: neighbours in a shard that stay together.
    """
    codes, n_shards = volumes.codes, volumes.n_shards
    shard_words, own_words = words[:n_shards], words[n_shards:]
    place = np.empty(n_shards, dtype=np.int32)
    place[np.argsort(shard_words, kind="stable")] = np.arange(n_shards)
    in_file, run_of = runs(volumes, run)
    run_word = own_words[in_file[np.flatnonzero(np.diff(run_of, prepend=-1))]][run_of]
    block = place[codes[in_file]] // shuffle_shards
    # Runs first, whole; `run_of` parts runs of equal words; inside a run any order is as cheap.
    by_run = np.lexsort((own_words[in_file], run_of, run_word, block))
    return in_file[by_run], block[by_run]


def deal(
    order: Int64[ndarray, " n"], block: Int32[ndarray, " n"], lanes: int, phase: int
) -> Int64[ndarray, " n"]:
    """Deal a reading order to lanes, block by block: each lane gets a stretch of it.

    Args:
        order: what is dealt.
        block: of each of its places, increasing.
        lanes: B; place ``p`` of the result belongs to lane ``(phase + p) % lanes``.
        phase: lane of the first place.
    """
    lane = (phase + np.arange(len(order))) % lanes
    dealt = np.empty_like(order)
    dealt[np.argsort(block.astype(np.int64) * lanes + lane, kind="stable")] = order
    return dealt


class Batches:
    """Groups of ``lanes`` consecutive places, and the swaps that part equal subjects.

    Args:
        subjects: of each place of an epoch.
        lanes: places a group; the groups go on over the ends of epochs.
        phase: places of the first group that belong to the epoch before.
    """

    def __init__(self, subjects: Int32[ndarray, " n"], lanes: int, phase: int) -> None:
        self.subjects = subjects.copy()
        self.order: Int64[ndarray, " n"] = np.arange(len(subjects))
        """Where each place's volume was before the swaps."""
        self._lanes, self._phase = lanes, phase
        self._counts: dict[int, Counter[int]] = {}

    def copy(self) -> Batches:
        """Another one in the same state."""
        other = copy(self)
        other.subjects, other.order, other._counts = self.subjects.copy(), self.order.copy(), {}
        return other

    def part(self) -> None:
        """Swap places until no subject is twice in a group, as far as it goes within the epoch."""
        for place in self._repeated().tolist():
            if self._count(self._group(place))[int(self.subjects[place])] > 1:
                self._move(place, range(len(self.subjects)), frozenset())
        self._counts.clear()

    def part_from(self, before: frozenset[int]) -> None:
        """Keep ``before``, subjects of the epoch before, out of the rest of the first group.

        Swaps with the last group are not made: it has been promised to the epoch after.
        """
        head = self._lanes - self._phase
        last = self._group(len(self.subjects) - 1)
        allowed = range(head, last * self._lanes - self._phase)
        for place in range(min(head, len(self.subjects)) if self._phase else 0):
            if int(self.subjects[place]) in before:
                self._move(place, allowed, before)

    def _group(self, place: int) -> int:
        return (self._phase + place) // self._lanes

    def _count(self, group: int) -> Counter[int]:
        if group not in self._counts:
            first = group * self._lanes - self._phase
            members = self.subjects[max(0, first) : first + self._lanes]
            self._counts[group] = Counter(members.tolist())
        return self._counts[group]

    def _repeated(self) -> Int64[ndarray, " d"]:
        """Places whose subject is in their group already."""
        group = (self._phase + np.arange(len(self.subjects))) // self._lanes
        pairs = group * (int(self.subjects.max()) + 1) + self.subjects
        by_pair = np.argsort(pairs, kind="stable")
        again = np.flatnonzero(np.diff(pairs[by_pair]) == 0) + 1
        return np.sort(by_pair[again])

    def _move(self, place: int, allowed: range, before: frozenset[int]) -> None:
        """Change places with the first volume for which that parts more than it joins."""
        here = self._count(self._group(place))
        mine = int(self.subjects[place])
        for other in self._candidates(place):
            if other not in allowed or self._group(other) == self._group(place):
                continue
            theirs = int(self.subjects[other])
            there = self._count(self._group(other))
            if here[theirs] or theirs in before or there[mine]:
                continue
            here.subtract([mine])
            here.update([theirs])
            there.subtract([theirs])
            there.update([mine])
            for values in (self.subjects, self.order):
                values[[place, other]] = values[[other, place]]
            return

    def _candidates(self, place: int) -> Iterator[int]:
        """The same lane first: its reading stays in runs."""
        for distance in range(1, LANE_TRIES + 1):
            yield place + distance * self._lanes
            yield place - distance * self._lanes
        for distance in range(1, NEAR_TRIES + 1):
            yield place + distance
            yield place - distance


def tail_of(n: int, lanes: int, phase: int) -> int:
    """Places at the end of an epoch whose group goes on in the next one.

    >>> tail_of(10, 4, 0), tail_of(10, 4, 2), tail_of(2, 8, 1)
    (2, 0, 2)
    """
    return min(n, (phase + n) % lanes)


def repeated_in_groups(
    subjects: Int32[ndarray, " n"], lanes: int, phase: int
) -> Bool[ndarray, " n"]:
    """Whether each place's subject is in its group already."""
    again = np.zeros(len(subjects), dtype=bool)
    again[Batches(subjects, lanes, phase)._repeated()] = True
    return again
