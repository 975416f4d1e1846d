"""Which box of which volume comes when: a pure function of a seed and a position.

Volumes form one endless sequence v = 0, 1, 2, …: epochs one after another, nothing padded, nothing
dropped. Position ``i`` of the plan belongs to lane ``i % B`` of the global batch ``B`` at step
``i // B``. Lane ``l`` takes the volumes v ≡ l (mod B) and visits each ``k`` times, ``m`` steps
apart. Rank ``r`` of ``W`` serves the lanes ≡ r (mod W), so any ``W`` that divides ``B`` gives the
same global sequence. How the volumes of an epoch are ordered is said in ``shards.order``.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Int64
from numpy import ndarray

from shards.boxes import Box, Triple, draw_box
from shards.errors import SelectionError
from shards.mixing import Share, draw, shares
from shards.order import Batches, Volumes, deal, runs, shuffle, tail_of
from shards.rng import ORDER, raw, uniforms
from shards.schema import canonical_json

MIN_SHUFFLED = 32
"""Shards that are mixed at least: nothing is buffered for it, so more costs nothing."""
PLAN_VERSION = 3
"""Part of every plan's hash: one more whenever the same settings give another sequence."""


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
    shuffle_shards: int | None = None
    """Shards whose samples are mixed; None: enough that each lane gets two runs of them, and
    ``MIN_SHUFFLED`` at least."""
    run: int = 4
    """Neighbours in a shard that one lane takes one after another."""
    weights: tuple[tuple[str, float], ...] = ()
    """(source, weight), for shares of an epoch by source; empty: every volume once."""

    def __post_init__(self) -> None:
        """Raise ValueError for a setting that is out of range."""
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        for name in ("global_batch", "box_side", "visits", "spread", "shuffle_shards", "run"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@runtime_checkable
class Rows(Protocol):
    """Something of every sample that may have to be read first: ``rows[i]``."""

    def __getitem__(self, row: int, /) -> Any:
        """Of the sample in row ``row`` of the index."""


@dataclass(frozen=True, kw_only=True)
class PlanSamples:
    """What planning needs of a dataset; one row a sample, in index order."""

    trainable: Bool[ndarray, " n"]
    """Takes part: not too small, and let through by filters and split."""
    shard_number: Int32[ndarray, " n"]
    """Position in the manifest."""
    offset: Int64[ndarray, " n"]
    """Of the volume's bytes in its shard."""
    shapes: Int32[ndarray, "n 3"]
    """(z, y, x), voxels."""
    source: Int32[ndarray, " n"]
    """Code, into ``source_names``."""
    source_names: tuple[str, ...]
    subject: Int32[ndarray, " n"]
    """Code; equal for volumes of one subject. Where the subject is unknown: one of its own."""
    chunk_side: int
    air_mask: Rows
    """Of a sample: whether each chunk is air, C order of its chunk grid."""
    keys: Rows
    """Of a sample: its key."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One visit: a box of a volume."""

    index: int
    """Position in the plan."""
    epoch: int
    sample: int
    """Row in the dataset's index."""
    volume: int
    """Number in the endless sequence of volumes."""
    visit: int
    lane: int
    box_start_zyx: Triple
    """First voxel of the box; negative where a short axis is padded."""
    lean_zyx: Triple
    """How far beyond that place the box was drawn; see ``shards.boxes``."""
    attempt: int
    """0; more when the sample is a replacement for a broken one."""


class Plan:
    """The sequence of visits of a dataset. Any position can be asked for, in any order.

    Raises:
        SelectionError: no sample takes part, or the weights are not those of its sources.
    """

    def __init__(self, config: PlanConfig, samples: PlanSamples, generation_id: str) -> None:
        self.config = config
        self._samples = samples
        self._rows = np.flatnonzero(samples.trainable).astype(np.int32)
        if not len(self._rows):
            raise SelectionError(
                "no trainable sample, or none that filters and split let through; "
                "report.html of the dataset says why each series was taken or not"
            )
        self._shares = self._share_out()
        self._parted = lru_cache(maxsize=4)(self._part)
        self._epoch_order = lru_cache(maxsize=4)(self._draw_epoch_order)
        self.hash = self._hash(generation_id)

    @property
    def samples_per_epoch(self) -> int:
        """N: volumes an epoch."""
        return len(self._rows)

    def item(self, index: int, attempt: int = 0) -> Item:
        """The visit at position ``index``.

        ``attempt`` above 0 replaces its sample, which cannot be read, by another one at random.

        Raises:
            ShardError: the sample's chunk table cannot be read.
        """
        volume, visit = self._volume(index)
        sample = self.sample_of(volume)
        if attempt:
            sample = self._replacement(sample, index, attempt)
        box = self._box(sample, index, attempt)
        return Item(
            index=index,
            epoch=volume // self.samples_per_epoch,
            sample=sample,
            volume=volume,
            visit=visit,
            lane=index % self.config.global_batch,
            box_start_zyx=box.start_zyx,
            lean_zyx=box.lean_zyx,
            attempt=attempt,
        )

    def sample_of(self, volume: int) -> int:
        """Row in the index of a volume of the endless sequence."""
        epoch, place = divmod(volume, self.samples_per_epoch)
        return int(self._epoch_order(epoch)[place])

    def run_ahead(self, volume: int) -> list[int]:
        """Rows of a volume and of the next ones of its lane, as far as they lie side by side."""
        rows = [self.sample_of(volume)]
        while len(rows) < self.config.run:
            row = self.sample_of(volume + len(rows) * self.config.global_batch)
            if self._run_of[row] != self._run_of[rows[0]] or row in rows:
                break
            rows.append(row)
        return rows

    def epoch_rows(self, epoch: int) -> Int32[ndarray, " n"]:
        """Rows in the index of an epoch's volumes, in order."""
        return self._epoch_order(epoch)

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

    def _share_out(self) -> list[Share]:
        weights = dict(self.config.weights)
        if not weights:
            return [Share(positions=np.arange(len(self._rows)), per_epoch=len(self._rows))]
        return shares(self._samples.source[self._rows], self._samples.source_names, weights)

    @cached_property
    def _run_of(self) -> Int32[ndarray, " n"]:
        """Number of the run that each sample is in."""
        rows, samples = self._rows, self._samples
        volumes = Volumes(
            rows=rows,
            copies=np.zeros_like(rows),
            shard=samples.shard_number[rows],
            offset=samples.offset[rows],
        )
        in_file, number = runs(volumes, self.config.run)
        run_of = np.full(len(samples.trainable), -1, dtype=np.int32)
        run_of[rows[in_file]] = number
        return run_of

    def _mixed(self, n_shards: int) -> int:
        """Shards of a block that gives each lane two runs, rounded up."""
        volumes = 2 * self.config.run * self.config.global_batch
        return max(MIN_SHUFFLED, -(-volumes * n_shards // self.samples_per_epoch))

    def _phase(self, epoch: int) -> int:
        return epoch * self.samples_per_epoch % self.config.global_batch

    def _part(self, epoch: int) -> tuple[Int32[ndarray, " n"], Batches]:
        """Rows of an epoch as dealt to lanes, and how they were swapped within the epoch."""
        drawn = [draw(s, self.config.seed, n, epoch) for n, s in enumerate(self._shares)]
        rows = self._rows[np.concatenate([positions for positions, _ in drawn])]
        volumes = Volumes(
            rows=rows,
            copies=np.concatenate([copies for _, copies in drawn]).astype(np.int32),
            shard=self._samples.shard_number[rows],
            offset=self._samples.offset[rows],
        )
        config, phase = self.config, self._phase(epoch)
        words = raw(config.seed, ORDER, epoch, 0, volumes.n_shards + len(rows))
        mixed = config.shuffle_shards or self._mixed(volumes.n_shards)
        order, block = shuffle(volumes, words, shuffle_shards=mixed, run=config.run)
        dealt = rows[deal(order, block, config.global_batch, phase)]
        batches = Batches(self._samples.subject[dealt], config.global_batch, phase)
        batches.part()
        return dealt, batches

    def _draw_epoch_order(self, epoch: int) -> Int32[ndarray, " n"]:
        """Rows of an epoch, in order; the batch that it shares with the one before is sound too."""
        dealt, parted = self._parted(epoch)
        phase = self._phase(epoch)
        if phase:
            before = self._parted(epoch - 1)[1].subjects
            tail = tail_of(len(before), self.config.global_batch, self._phase(epoch - 1))
            parted = parted.copy()
            parted.part_from(frozenset(before[len(before) - tail :].tolist()))
        rows: Int32[ndarray, " n"] = dealt[parted.order]
        return rows

    def _replacement(self, sample: int, index: int, attempt: int) -> int:
        others = self.samples_per_epoch - 1
        if not others:
            return sample
        position = int(np.searchsorted(self._rows, sample))
        u = uniforms(self.config.seed, ORDER, index, attempt, 1)[0]
        other = int(u * others)
        return int(self._rows[other + (other >= position)])

    def _box(self, sample: int, index: int, attempt: int) -> Box:
        shape = self._samples.shapes[sample]
        grid = -(-shape // self._samples.chunk_side)
        air = self._samples.air_mask[sample].reshape(grid)
        return draw_box(
            shape=shape,
            side=self.config.box_side,
            air=air,
            chunk_side=self._samples.chunk_side,
            at=(self.config.seed, index, attempt),
        )

    def _hash(self, generation_id: str) -> str:
        what = {
            "version": PLAN_VERSION,
            "config": asdict(self.config),
            "generation_id": generation_id,
            "rows": hashlib.sha256(self._rows.astype("<i4").tobytes()).hexdigest(),
        }
        return hashlib.sha256(canonical_json(what)).hexdigest()
