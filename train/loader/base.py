"""Batches of views from a dataset of shards: the loader that training uses."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int16

from coralbay.views import ViewRecipe
from shards.decoding import ChunkDecoder
from shards.stats import Stats
from train.errors import CheckpointError
from train.loader.feed import Loaded, Quarantined
from train.loader.filling import choose_decode_on
from train.loader.inputs import Inputs
from train.loader.machine import require_dali, require_shared_memory
from train.loader.params import Resampler
from train.loader.process import ProcessSupply
from train.loader.reference import ReferenceRenderer
from train.loader.ring import Event
from train.loader.settings import LoaderConfig
from train.loader.slices import SliceRenderer
from train.loader.supply import FeedSettings, Supply, ThreadSupply

QUEUED_BATCHES = 3
"""Batches whose slots are taken while the next is collected: two in the graph, one handed over."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The views of a batch of sets, on the loader's device.

    Attributes:
        views: ``[globals, locals]``, values in [0, 1], or HU where int16 was asked for; rows are
            view-major: view 0 of every set, then view 1.
        keys: sample of each set.
        indices: its position in the plan.
        epoch: of the first set.
    """

    views: list[Float[torch.Tensor, "_vb 1 _d _h _w"] | Int16[torch.Tensor, "_vb 1 _d _h _w"]]
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

    supply: Supply
    renderer: Renderer
    in_flight: deque[list[Loaded]]


class CTLoader:
    """Yields batches without end. A context manager; ``close`` stops its threads, or subprocess.

    Args:
        url: dataset folder or URL.
        views: what a set is.
        config: how to load.

    Attributes:
        inputs: what is read.
        dataset: of the inputs.
        plan: of the inputs: the sequence of visits.
        decoder: decodes regions, where they are decoded in threads.
        decode_on: where chunks are decoded; ``gpu``: by the graph.
        stats: counters, and time by stage: ``plan``, ``fetch``, ``decode`` (``Waits`` says what
            the last two wait for), ``graph`` (up: for decoded sets; down: for the consumer).

    Raises:
        ShardError: no usable dataset there.
        UsageError: fewer trainable volumes than a batch, a filter or weights that do not go with
            the dataset, or DALI is asked for and missing.
    """

    def __init__(self, url: str | Path, views: ViewRecipe, config: LoaderConfig) -> None:
        self.config = config
        self.views = views
        self.stats = Stats()
        if config.loader == "dali":
            require_dali()
        if config.stream.feed == "subprocess":
            require_shared_memory()
        self.inputs = Inputs(url, views, config, self.stats)
        self.dataset, self.plan = self.inputs.dataset, self.inputs.plan
        self.decoder = ChunkDecoder(self.inputs.profile, self.stats)
        self.decode_on = choose_decode_on(config, self.inputs.profile)
        self._step = 0
        self._quarantine: dict[Quarantined, int] = {}
        self._running: _Running | None = None
        self._handed_over_s: float | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        running = self._running or self._start()
        counts = (self.views.global_.count, self.views.local.count)
        if self._handed_over_s is not None:
            now, thread = time.perf_counter(), threading.current_thread().name
            self.stats.record("graph", "wait_down_s", self._handed_over_s, now, thread=thread)
        with self.stats.timed("graph", "busy_s"):
            views, event = running.renderer.render(counts)
        loaded = running.in_flight.popleft()
        running.supply.release([item.slot for item in loaded], event)
        self.stats.add("graph", items=len(loaded))
        self._step += 1
        items = [item.visit.item for item in loaded]
        self._handed_over_s = time.perf_counter()
        return Batch(
            views=views,
            keys=[item.visit.key for item in loaded],
            indices=[item.index for item in items],
            epoch=items[0].epoch,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts, as plain values; ranks differ in the quarantine alone."""
        next_index = self._step * self.plan.config.global_batch
        known = self._running.supply.quarantine if self._running else self._quarantine
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
                "rebuilt or extended, or seed, global batch, visits, box side, filters or weights "
                "differ, or this version orders data in another way; go on with the dataset, "
                "settings and version that the run started with, or start a new run"
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
        running, self._running, self._handed_over_s = self._running, None, None
        if running is not None:
            self._quarantine = {
                where: found
                for where, found in running.supply.quarantine.items()
                if found < self._step * self.plan.config.global_batch
            }
            try:
                running.renderer.close()
            finally:
                # After what reads its slots.
                running.supply.close()
        self.inputs.close()

    def __enter__(self) -> CTLoader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> _Running:
        supply = self._open_supply()
        in_flight: deque[list[Loaded]] = deque()

        def pull() -> list[Loaded]:
            with self.stats.timed("graph", "wait_up_s"):
                batch = [supply.next() for _ in range(self.config.batch_size)]
            in_flight.append(batch)
            return batch

        try:
            renderer = self.renderer(pull)
        except BaseException:
            supply.close()
            raise
        self._running = _Running(supply=supply, in_flight=in_flight, renderer=renderer)
        return self._running

    def _open_supply(self) -> Supply:
        config = self.config
        settings = FeedSettings(
            views=self.views,
            config=config,
            resampler=self.resampler,
            decode_on=self.decode_on,
            step=self._step,
            quarantine=tuple(self._quarantine),
        )
        n_slots = QUEUED_BATCHES * config.batch_size + config.prefetch
        if config.stream.feed == "subprocess":
            return ProcessSupply(settings, self.inputs, n_slots, self.stats)
        return ThreadSupply(settings, self.inputs, self.decoder, n_slots, self.stats)

    @property
    def resampler(self) -> Resampler:
        """The operator that the views are resampled with."""
        return self.config.resampler or ("affine" if self.config.device == "gpu" else "resize")

    def renderer(self, pull: Callable[[], list[Loaded]], threads: int | None = None) -> Renderer:
        """What makes a batch of views of the items that ``pull`` gives.

        Args:
            pull: gives the items of the next batch.
            threads: of the graph on the CPU; None: as the settings say.
        """
        if self.config.loader == "reference":
            return ReferenceRenderer(
                views=self.views,
                pull=pull,
                device=torch.device("cuda" if self.config.device == "gpu" else "cpu"),
                dtype=getattr(torch, self.config.precision),
            )
        if self.config.loader == "slices":
            return SliceRenderer(
                views=self.views, pull=pull, dtype=getattr(torch, self.config.precision)
            )
        assert self.config.precision != "int16"  # the settings say so
        from train.loader.renderer import DaliRenderer

        return DaliRenderer(
            views=self.views,
            chunks_shape=self.inputs.chunks_shape,
            batch_size=self.config.batch_size,
            pull=lambda: [loaded.slot for loaded in pull()],
            device=self.config.device,
            decode_on=self.decode_on,
            resampler=self.resampler,
            precision=self.config.precision,
            threads=threads or min(self.config.threads, os.cpu_count() or 1),
            stats=self.stats,
        )
