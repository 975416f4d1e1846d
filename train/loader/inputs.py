"""What a loader reads: a dataset, the plan over it, and the way to its chunks."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from coralbay.views import ViewRecipe
from shards.cache import CachingReader
from shards.chunk_file import WHOLE_BYTES
from shards.chunk_rows import DatasetChunks
from shards.chunk_tables import ChunkTables
from shards.dataset import Dataset
from shards.errors import SelectionError
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
from train.data import DataConfig
from train.errors import UsageError
from train.loader.filling import PROFILE, spare_bytes
from train.loader.params import N_PARAMS
from train.loader.settings import LoaderConfig
from train.loader.slots import SlotLayout
from train.loader.visits import Scheduler

logger = logging.getLogger(__name__)


class Inputs:
    """Opens a dataset for a loader.

    Args:
        url: dataset folder or URL.
        views: what a set is.
        config: how to load.
        stats: where requests and bytes are counted.

    Attributes:
        dataset: the dataset read.
        tables: its chunk tables.
        chunks: where the stored chunks of each sample are.
        samples: what planning knows of each.
        plan: the sequence of visits.
        choice: how chunks are read, and why.
        scheduler: from a position to the visit there.

    Raises:
        ShardError: no usable dataset there.
        UsageError: fewer trainable volumes than a batch, or a filter or weights that do not go with
            the dataset.
    """

    def __init__(
        self, url: str | Path, views: ViewRecipe, config: LoaderConfig, stats: Stats
    ) -> None:
        self._config = config
        self._views = views
        self._stats = stats
        self.dataset = Dataset.open(url)
        self.tables = self.dataset.chunk_tables(stats)
        try:
            self.samples = self._samples()
            generation_id = self.dataset.manifest.generation_id
            self.plan = Plan(config.plan_config(views.box_side), self.samples, generation_id)
        except SelectionError as exc:
            raise UsageError(f"{url}: {exc}") from exc
        self._check_enough(url)
        self.chunks = DatasetChunks(self.dataset, self.samples, self.tables)
        self.scheduler = Scheduler(
            plan=self.plan,
            samples=self.samples,
            views=views,
            tables=self._far_tables(),
            whole_boxes=config.whole_boxes,
        )
        self.choice = choose(
            config.stream.mode,
            self.plan,
            self.chunks,
            lambda index: self.scheduler.visit(index, 0).region,
        )
        logger.info("%s: %s", url, self.choice.sentence)

    @property
    def chunks_shape(self) -> tuple[int, ...]:
        """Shape of a slot, ``(nz, ny, nx, c, c, c)``."""
        side = self.dataset.chunk_side
        return (chunks_per_axis(self._views.box_side, side),) * 3 + (side,) * 3

    @property
    def slot_layout(self) -> SlotLayout:
        """What a slot holds."""
        on_gpu = self.profile == PROFILE and self._config.device == "gpu"
        return SlotLayout(
            chunks_shape=self.chunks_shape,
            params_shape=(self._views.n_views, N_PARAMS),
            spare_bytes=spare_bytes(self.chunks_shape) if on_gpu else 0,
        )

    @property
    def profile(self) -> str:
        """How the dataset's chunks are coded."""
        return self.dataset.manifest.contract.recorded.profile

    def open_fetcher(self, in_flight: int | None = None) -> RangeFetcher:
        """What asks the storage, with threads and connections of its own.

        Args:
            in_flight: requests at a time; None: as the settings say.
        """
        store, stream = self.dataset.store, self._config.stream
        policy = replace(store.policy, in_flight=in_flight or stream.in_flight)
        if stream.cache_dir and store.folder is not None:
            logger.warning("%s is a folder: it is read without a cache", self.dataset.url)
        cached = bool(stream.cache_dir) and store.folder is None
        return open_fetcher(store, policy, stats=self._stats, wrap=self._keep if cached else None)

    def source(self, fetcher: RangeFetcher, stats: Stats) -> ChunkSource:
        """The chosen way from visits to stored chunks."""
        if self.choice.mode == "stream":
            return StreamSource(self.plan, self.chunks, fetcher, stats)
        return RangeSource(self.chunks, fetcher, stats)

    def close(self) -> None:
        """End what works in the background; asking again goes on."""
        self.tables.close()

    def _keep(self, reader: RangeReader) -> RangeReader:
        """Put the local cache around a reader."""
        stream = self._config.stream
        shards = {shard.name: shard for shard in self.dataset.manifest.shards}
        folder = Path(stream.cache_dir)
        return CachingReader(reader, folder, stream.cache_bytes, shards, self._stats)

    def _samples(self) -> PlanSamples:
        data = self._config.data
        return self.dataset.plan_samples(
            where=data.where,
            holdout=data.holdout,
            split=data.split if data.holdout else "all",
            split_seed=data.split_seed,
            chunks=self.tables,
        )

    def _far_tables(self) -> ChunkTables | None:
        """The chunk tables, if they are read a shard at a time."""
        size = file_entry(self.dataset.manifest, CHUNKS).bytes
        return self.tables if size > WHOLE_BYTES else None

    def _check_enough(self, url: str | Path) -> None:
        wanted, found = self.plan.config.global_batch, self.plan.samples_per_epoch
        if found < wanted:
            raise UsageError(
                f"{url}: {found} trainable volumes{_chosen(self._config.data)}, fewer than the "
                f"{wanted} sets of a batch; add volumes or use a smaller batch"
            )


def _chosen(data: DataConfig) -> str:
    """Which settings left samples out, for messages."""
    asked = {"where": data.where, "holdout": data.holdout, "weights": data.weights}
    names = [name for name, value in asked.items() if value]
    return f" by {', '.join(names)}" if names else ""
