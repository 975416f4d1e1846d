"""From a position in the plan to everything about the set there except its voxels."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float64
from numpy import ndarray

from coralbay.draws import ViewDraws, draw_views
from coralbay.placement import Around
from coralbay.views import ViewRecipe
from shards.chunk_tables import ChunkTables
from shards.plan import Item, Plan, PlanSamples
from shards.regions import Region, chunks_per_axis, cover
from shards.rng import VIEWS, uniforms
from train.loader.seen import Grid, seen_chunks

TABLES_AHEAD = 8
"""Volumes of a lane from which on the chunk tables are read ahead."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Everything about one item except its voxels."""

    item: Item
    key: str
    region: Region
    draws: ViewDraws


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """From a position in the plan to the visit it stands for. Pure; any position, in any order."""

    plan: Plan
    samples: PlanSamples
    views: ViewRecipe
    tables: ChunkTables | None = None
    """Read for coming visits in the background, where reading them takes time."""
    whole_boxes: bool = False
    """Want all chunks of a box, not only those that a view sees."""

    def visit(self, index: int, attempt: int) -> Visit:
        """The visit at a position; ``attempt`` counts the samples found unreadable there."""
        item = self.plan.item(index, attempt)
        self._read_ahead(item)
        start, side = item.box_start_zyx, self.views.box_side
        z, y, x = self.samples.shapes[item.sample].tolist()
        around = Around.of(
            box_start_zyx=start, lean_zyx=item.lean_zyx, shape_zyx=(z, y, x), box_side=side
        )
        region = cover(start, side, (z, y, x), self.samples.chunk_side)
        draws = draw_views(self.views, self._uniforms(item), around)
        if not self.whole_boxes:
            region = region.only(seen_chunks(draws, region.origin_zyx, self._grid))
        return Visit(item=item, key=str(self.samples.keys[item.sample]), region=region, draws=draws)

    @property
    def _grid(self) -> Grid:
        """Of a slot."""
        chunk_side = self.samples.chunk_side
        return Grid(count=chunks_per_axis(self.views.box_side, chunk_side), side=chunk_side)

    def _read_ahead(self, item: Item) -> None:
        if self.tables is not None and not item.visit:
            coming = item.volume + TABLES_AHEAD * self.plan.config.global_batch
            self.tables.prefetch([int(self.samples.shard_number[self.plan.sample_of(coming)])])

    def _uniforms(self, item: Item) -> Float64[ndarray, " n"]:
        seed, wanted = self.plan.config.seed, self.views.n_uniforms
        return uniforms(seed, VIEWS, item.index, item.attempt, wanted)
