"""Batches of views from a dataset of shards: the loader that training uses."""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float

from coralbay.views import ViewRecipe
from shards.cache import CachingReader
from shards.chunk_file import WHOLE_BYTES
from shards.chunk_rows import DatasetChunks
from shards.chunk_tables import ChunkTables
from shards.dataset import Dataset
from shards.decoding import ChunkDecoder
from shards.fetcher import RangeFetcher
from shards.modes import choose
from shards.opening import file_entry
from shards.plan import Plan, PlanSamples
from shards.reading import open_fetcher
from shards.regions import chunks_per_axis
from shards.requests import RangeReader
from shards.schema import CHUNKS
from shards.sources import ChunkSource, RangeSource, StreamSource
from shards.stats import Stats
from train.errors import CheckpointError, UsageError
from train.loader.feed import Feed, FeedLimits, Loaded, Loader, Quarantined, Scheduler
from train.loader.params import N_PARAMS, Resampler
from train.loader.reference import ReferenceRenderer
from train.loader.ring import Event, SlotRing
from train.loader.settings import LoaderConfig

logger = logging.getLogger(__name__)

QUEUED_BATCHES = 3
"""Batches whose slots are taken while the next is collected: two in the graph, one handed over."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The views of a batch of sets, on the loader's device.

    Attributes:
        views: ``[globals, locals]``, values in [0, 1]; rows are view-major: view 0 of every set,
            then view 1.
        keys: sample of each set.
        indices: its position in the plan.
        epoch: of the first set.
    """

    views: list[Float[torch.Tensor, "_vb 1 _d _h _w"]]
    keys: list[str]
    indices: list[int]
    epoch: int


@runtime_checkable
class Renderer(Protocol):
    """Makes views of decoded sets."""

    def render(self, counts: Sequence[int]) -> tuple[list[torch.Tensor], Event | None]:
        """The next batch, a tensor for each count of views, and when its slots may go."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, kw_only=True)
class _Running:
    """What exists while batches are being made."""

    feed: Feed
    ring: SlotRing
    renderer: Renderer
    in_flight: deque[list[Loaded]]


class CTLoader:
    """Yields batches without end. A context manager; ``close`` stops its threads.

    Args:
        url: dataset folder or URL.
        views: what a set is.
        config: how to load.

    Attributes:
        dataset: the dataset read.
        tables: its chunk tables.
        chunks: where the stored chunks of each sample are.
        plan: the sequence of visits.
        choice: how chunks are read, and why.
        scheduler: from a position to the visit there.
        decoder: decodes regions.
        stats: counters, and time by stage (``plan``, ``fetch``, ``decode``; ``graph``: its waiting
            for decoded sets).

    Raises:
        ShardError: no usable dataset there.
        UsageError: fewer trainable volumes than a batch, or DALI is asked for and missing.
    """

    def __init__(self, url: str | Path, views: ViewRecipe, config: LoaderConfig) -> None:
        self.config = config
        self.views = views
        self.stats = Stats()
        self.dataset = Dataset.open(url)
        self.tables = self.dataset.chunk_tables(self.stats)
        samples = self._samples()
        self.chunks = DatasetChunks(self.dataset, samples, self.tables)
        self.plan = Plan(
            config.plan_config(views.box_side), samples, self.dataset.manifest.generation_id
        )
        self._check_enough(url)
        if config.loader == "dali":
            _require_dali()
        self.scheduler = Scheduler(
            plan=self.plan, samples=samples, views=views, tables=self._far_tables()
        )
        self.decoder = ChunkDecoder(self.profile, self.stats)
        self.choice = choose(config.stream.mode, self.plan, samples, self.chunks)
        logger.info("%s: %s", self.dataset.url, self.choice.sentence)
        self._step = 0
        self._quarantine: dict[Quarantined, int] = {}
        self._running: _Running | None = None

    @property
    def chunks_shape(self) -> tuple[int, ...]:
        """Shape of a slot, ``(nz, ny, nx, c, c, c)``."""
        side = self.dataset.chunk_side
        return (chunks_per_axis(self.views.box_side, side),) * 3 + (side,) * 3

    def _samples(self) -> PlanSamples:
        data = self.config.data
        return self.dataset.plan_samples(
            where=data.where,
            holdout=data.holdout,
            split=data.split if data.holdout else "all",
            split_seed=data.split_seed,
            chunks=self.tables,
        )

    @property
    def profile(self) -> str:
        """How the dataset's chunks are coded."""
        return self.dataset.manifest.contract.recorded.profile

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        running = self._running or self._start()
        counts = (self.views.global_.count, self.views.local.count)
        views, event = running.renderer.render(counts)
        loaded = running.in_flight.popleft()
        running.ring.release([item.slot for item in loaded], event)
        self.stats.add("graph", items=len(loaded))
        self._step += 1
        items = [item.visit.item for item in loaded]
        return Batch(
            views=views,
            keys=[item.visit.key for item in loaded],
            indices=[item.index for item in items],
            epoch=items[0].epoch,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts, as plain values; ranks differ in the quarantine alone."""
        next_index = self._step * self.plan.config.global_batch
        known = self._running.feed.quarantine if self._running else self._quarantine
        return {
            "seed": self.config.seed,
            "epoch": self.plan.item(next_index).epoch,
            "next_index": next_index,
            "plan_hash": self.plan.hash,
            # What was found while preparing later batches will be found again, at the same place.
            "quarantine": sorted(
                [lane, key] for (lane, key), found in known.items() if found < next_index
            ),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken, on as many ranks as divide the global batch.

        Raises:
            CheckpointError: the state is of another dataset, seed or plan.
        """
        if state["plan_hash"] != self.plan.hash:
            raise CheckpointError(
                f"{self.dataset.url}: not the data order of the checkpoint: the dataset was "
                "rebuilt or extended, or seed, global batch, visits or box side differ; go on with "
                "the dataset and settings the run started with, or start a new run"
            )
        self.close()
        self._step = state["next_index"] // self.plan.config.global_batch
        self._quarantine = {(lane, key): -1 for lane, key in state["quarantine"]}

    def start_at(self, step: int) -> None:
        """Go on at a step, counted from 0, whatever came before; no sample is known to be bad."""
        self.close()
        self._step, self._quarantine = step, {}

    def close(self) -> None:
        """Stop threads and free memory; iterating again goes on with the next batch."""
        running, self._running = self._running, None
        if running is not None:
            self._quarantine = {
                where: found
                for where, found in running.feed.quarantine.items()
                if found < self._step * self.plan.config.global_batch
            }
            running.feed.close()
            running.renderer.close()
        self.tables.close()

    def __enter__(self) -> CTLoader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_enough(self, url: str | Path) -> None:
        wanted, found = self.plan.config.global_batch, self.plan.samples_per_epoch
        if found < wanted:
            raise UsageError(
                f"{url}: {found} trainable volumes, fewer than the {wanted} sets of a batch; "
                "add volumes or use a smaller batch"
            )

    def _start(self) -> _Running:
        config = self.config
        ring = SlotRing(
            n_slots=QUEUED_BATCHES * config.batch_size + config.prefetch,
            chunks_shape=self.chunks_shape,
            params_shape=(self.views.n_views, N_PARAMS),
            pinned=config.device == "gpu",
            poison=config.poison,
        )
        source = self.source(self.open_fetcher(), self.stats)
        feed = Feed(
            scheduler=self.scheduler,
            source=source,
            loader=Loader(source, self.decoder, self.views, self.resampler),
            ring=ring,
            indices=self._indices(),
            limits=self._limits(),
            quarantine=self._quarantine,
            stats=self.stats,
        )
        in_flight: deque[list[Loaded]] = deque()

        def pull() -> list[Loaded]:
            with self.stats.timed("graph", "wait_up_s"):
                batch = [feed.next() for _ in range(config.batch_size)]
            in_flight.append(batch)
            return batch

        self._running = _Running(
            feed=feed, ring=ring, in_flight=in_flight, renderer=self.renderer(pull)
        )
        return self._running

    def open_fetcher(self) -> RangeFetcher:
        """What asks the storage, with threads and connections of its own."""
        store, stream = self.dataset.store, self.config.stream
        policy = replace(store.policy, in_flight=stream.in_flight)
        if stream.cache_dir and store.folder is not None:
            logger.warning("%s is a folder: it is read without a cache", self.dataset.url)
        cached = bool(stream.cache_dir) and store.folder is None
        return open_fetcher(store, policy, stats=self.stats, wrap=self._keep if cached else None)

    def _keep(self, reader: RangeReader) -> RangeReader:
        """Put the local cache around a reader."""
        stream = self.config.stream
        shards = {shard.name: shard for shard in self.dataset.manifest.shards}
        return CachingReader(reader, Path(stream.cache_dir), stream.cache_bytes, shards, self.stats)

    def source(self, fetcher: RangeFetcher, stats: Stats) -> ChunkSource:
        """The chosen way from visits to stored chunks."""
        if self.choice.mode == "stream":
            return StreamSource(self.plan, self.chunks, fetcher, stats)
        return RangeSource(self.chunks, fetcher, stats)

    def _far_tables(self) -> ChunkTables | None:
        """The chunk tables, if they are read a shard at a time."""
        size = file_entry(self.dataset.manifest, CHUNKS).bytes
        return self.tables if size > WHOLE_BYTES else None

    def _limits(self) -> FeedLimits:
        config, plan = self.config, self.plan.config
        # By stream, as far ahead as a lane's volumes stay: their next run is then on its way.
        turn = plan.spread * plan.visits * config.batch_size if self.choice.mode == "stream" else 0
        return FeedLimits(
            threads=config.threads,
            ahead=config.prefetch + config.batch_size,
            fetch_ahead=max(config.stream.in_flight, turn),
            held_bytes=config.stream.held_mib << 20,
            max_bad_samples=config.max_bad_samples,
        )

    @property
    def resampler(self) -> Resampler:
        """The operator that the views are resampled with."""
        return self.config.resampler or ("affine" if self.config.device == "gpu" else "resize")

    def _indices(self) -> Iterator[int]:
        rank, world = self.config.rank, self.config.world
        for step in itertools.count(self._step):
            yield from self.plan.rank_indices(step, rank, world)

    def renderer(self, pull: Callable[[], list[Loaded]]) -> Renderer:
        """What makes a batch of views of the items that ``pull`` gives."""
        if self.config.loader == "reference":
            return ReferenceRenderer(
                views=self.views,
                pull=pull,
                device=torch.device("cuda" if self.config.device == "gpu" else "cpu"),
                dtype=getattr(torch, self.config.precision),
            )
        from train.loader.graph import DaliRenderer

        return DaliRenderer(
            views=self.views,
            chunks_shape=self.chunks_shape,
            batch_size=self.config.batch_size,
            pull=lambda: [loaded.slot for loaded in pull()],
            device=self.config.device,
            resampler=self.resampler,
            precision=self.config.precision,
            threads=min(self.config.threads, os.cpu_count() or 1),
        )


def _require_dali() -> None:
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        raise UsageError(
            "NVIDIA DALI is not installed: `pip install 'coralbay[cuda13]'` (cuda12 for older "
            "drivers; Linux only), or use --loader reference"
        )
