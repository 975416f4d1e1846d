"""Which box of which volume comes when: a pure function of a seed and a position.

Volumes form one endless sequence v = 0, 1, 2, …: epochs one after another, nothing padded, nothing
dropped. Position ``i`` of the plan belongs to lane ``i % B`` of the global batch ``B`` at step
``i // B``. Lane ``l`` takes the volumes v ≡ l (mod B) and visits each ``k`` times, ``m`` steps
apart. Rank ``r`` of ``W`` serves the lanes ≡ r (mod W), so any ``W`` that divides ``B`` gives the
same global sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int32, Int64
from numpy import ndarray

from shards.errors import ShardError
from shards.rng import BOX, ORDER, raw, uniforms
from shards.schema import canonical_json

BOX_DRAWS = 8
"""Boxes drawn for a visit before one that is all air is taken."""

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What, together with the data, decides the whole sequence."""

    seed: int
    global_batch: int
    """B: sets a step over all ranks."""
    box_side: int
    """Side of the base box, voxels."""
    visits: int = 2
    """k: boxes a volume gives each epoch."""
    spread: int = 4
    """m: steps between two visits of a volume."""
    shuffle_shards: int = 8
    """Shards whose samples are mixed."""

    def __post_init__(self) -> None:
        """Raise ValueError for a setting that is out of range."""
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        for name in ("global_batch", "box_side", "visits", "spread", "shuffle_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class PlanSamples:
    """What planning needs of a dataset; one row a sample, in index order."""

    keys: Sequence[str]
    trainable: Bool[ndarray, " n"]
    shard_number: Int32[ndarray, " n"]
    shapes: Int32[ndarray, "n 3"]
    """(z, y, x), voxels."""
    air_mask: Sequence[Bool[ndarray, " _chunks"]]
    """C order of each sample's chunk grid."""
    chunk_side: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """One visit: a box of a volume."""

    index: int
    """Position in the plan."""
    epoch: int
    sample: int
    """Row in the dataset's index."""
    visit: int
    lane: int
    box_start_zyx: Triple
    """First voxel of the box; negative where a short axis is padded."""
    attempt: int
    """0; more when the sample is a replacement for a broken one."""


class Plan:
    """The sequence of visits of a dataset. Any position can be asked for, in any order."""

    def __init__(self, config: PlanConfig, samples: PlanSamples, generation_id: str) -> None:
        self.config = config
        self._samples = samples
        self._rows = np.flatnonzero(samples.trainable)
        if not len(self._rows):
            raise ShardError(
                "the dataset holds no trainable sample; "
                "its report.html says why each series was taken or not"
            )
        self._shard_rank = np.unique(samples.shard_number[self._rows], return_inverse=True)[1]
        self._epoch_order = lru_cache(maxsize=4)(self._draw_epoch_order)
        self.hash = self._hash(generation_id)

    @property
    def samples_per_epoch(self) -> int:
        """N: trainable volumes."""
        return len(self._rows)

    def item(self, index: int, attempt: int = 0) -> Item:
        """The visit at position ``index``.

        ``attempt`` above 0 replaces its sample, which cannot be read, by another one at random.
        """
        volume, visit = self._volume(index)
        epoch, place = divmod(volume, self.samples_per_epoch)
        position = int(self._epoch_order(epoch)[place])
        if attempt:
            position = self._replacement(position, index, attempt)
        sample = int(self._rows[position])
        return Item(
            index=index,
            epoch=epoch,
            sample=sample,
            visit=visit,
            lane=index % self.config.global_batch,
            box_start_zyx=self._box(sample, index, attempt),
            attempt=attempt,
        )

    def rank_indices(self, step: int, rank: int, world: int) -> range:
        """Positions that rank ``rank`` of ``world`` serves at ``step``, lanes in increasing order.

        Raises:
            ValueError: ``world`` does not divide the global batch, or no such rank.
        """
        batch = self.config.global_batch
        if batch % world or not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} cannot share a global batch of {batch}")
        return range(step * batch + rank, (step + 1) * batch, world)

    def _volume(self, index: int) -> tuple[int, int]:
        """Place in the endless sequence of volumes, and the visit, of position ``index``."""
        step, lane = divmod(index, self.config.global_batch)
        block, within = divmod(step, self.config.spread * self.config.visits)
        visit, turn = divmod(within, self.config.spread)
        return (block * self.config.spread + turn) * self.config.global_batch + lane, visit

    def _draw_epoch_order(self, epoch: int) -> Int64[ndarray, " n"]:
        """Positions in ``_rows``: shards shuffled, then samples within blocks of shards."""
        n_shards = int(self._shard_rank.max()) + 1
        words = raw(self.config.seed, ORDER, epoch, 0, n_shards + len(self._rows))
        shard_place = np.empty(n_shards, dtype=np.int64)
        shard_place[np.argsort(words[:n_shards], kind="stable")] = np.arange(n_shards)
        block = shard_place[self._shard_rank] // self.config.shuffle_shards
        return np.lexsort((words[n_shards:], block))

    def _replacement(self, position: int, index: int, attempt: int) -> int:
        others = self.samples_per_epoch - 1
        if not others:
            return position
        u = uniforms(self.config.seed, ORDER, index, attempt, 1)[0]
        other = int(u * others)
        return other + (other >= position)

    def _box(self, sample: int, index: int, attempt: int) -> Triple:
        """The first drawn box that is not all air, else the last drawn."""
        shape = self._samples.shapes[sample]
        draws = uniforms(self.config.seed, BOX, index, attempt, 3 * BOX_DRAWS).reshape(-1, 3)
        for draw in draws:
            start = _box_start(shape, self.config.box_side, draw)
            if not self._all_air(sample, start):
                break
        return start

    def _all_air(self, sample: int, start: Triple) -> bool:
        side = self._samples.chunk_side
        grid = -(-self._samples.shapes[sample] // side)
        air = self._samples.air_mask[sample].reshape(grid)
        covering = tuple(
            slice(max(0, first) // side, -(-(first + self.config.box_side) // side))
            for first in start
        )
        return bool(air[covering].all())

    def _hash(self, generation_id: str) -> str:
        keys = [self._samples.keys[int(row)] for row in self._rows]
        what = {"config": asdict(self.config), "generation_id": generation_id, "keys": keys}
        return hashlib.sha256(canonical_json(what)).hexdigest()


def _box_start(shape: Int32[ndarray, " 3"], side: int, draw: ndarray) -> Triple:
    """Uniform over the places where the box fits; on a shorter axis centred, both ends padded."""
    starts = (
        int(u * (length - side + 1)) if length >= side else -((side - length) // 2)
        for length, u in zip(shape.tolist(), draw.tolist(), strict=True)
    )
    z, y, x = starts
    return z, y, x
