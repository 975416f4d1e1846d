"""Runs the DALI graphs and hands their outputs to torch without a copy."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from torch.utils.dlpack import from_dlpack

from coralbay.noise import bank_side, noise_bank
from coralbay.views import ViewRecipe
from shards.stats import Stats
from train.loader.filling import DecodeOn
from train.loader.graph import BANK, Device, build_regions, build_views
from train.loader.params import Resampler
from train.loader.slots import Slot

Precision = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Decoded:
    """A batch on its way into the graphs of views."""

    regions: list[Any]
    """Of each set, (z, y, x, 1), HU; DALI's memory."""
    params: Float32[ndarray, "b v p"]
    """Of each set and view, packed as ``params`` says."""


class DaliRenderer:
    """Makes batches of views of decoded slots.

    Args:
        views: what a set is.
        chunks_shape: ``(nz, ny, nx, c, c, c)`` of a slot.
        batch_size: sets a batch.
        pull: called once a batch, ``graph.QUEUE_DEPTH`` batches ahead; gives the next slots, which
            must stay untouched until the event that comes with that batch.
        device: where views are made and delivered.
        decode_on: ``gpu`` if slots hold stored chunks.
        resampler: which operator resamples views that are not turned.
        precision: of the views. DALI has no bfloat16: one pass in torch converts.
        threads: CPU threads of each graph.
        stats: where to count ``bytes_joined``, what that pass writes; 0 otherwise, as what DALI
            wrote is delivered.
    """

    def __init__(
        self,
        *,
        views: ViewRecipe,
        chunks_shape: tuple[int, ...],
        batch_size: int,
        pull: Callable[[], Sequence[Slot]],
        device: Device,
        resampler: Resampler,
        decode_on: DecodeOn = "cpu",
        precision: Precision = "float16",
        threads: int = 2,
        stats: Stats | None = None,
    ) -> None:
        self._gpu = device == "gpu"
        self._pull = pull
        self._slots: Sequence[Slot] = ()
        self._dtype = getattr(torch, precision)
        self._stats = stats or Stats()
        self._regions = build_regions(
            chunks_shape=chunks_shape,
            batch_size=batch_size,
            pull=lambda: self._slots,
            device=device,
            decode_on=decode_on,
            threads=threads,
        )
        self._counts = (views.global_.count, views.local.count)
        self._held: deque[list[Any]] = deque()
        self._in_use: deque[tuple[torch.cuda.Event, Any]] = deque()
        # Each graph asks twice for each batch, all at their own time.
        batches = iter(itertools.tee(map(self._next, itertools.count()), 4))
        self._graphs = []
        bank = _device_bank(views, device) if views.noise_p else None
        for first, spec in ((0, views.global_), (views.global_.count, views.local)):
            graph = build_views(
                recipe=views,
                size=spec.size,
                batch_size=spec.count * batch_size,
                regions=_regions_of(next(batches), spec.count),
                params=_params_of(next(batches), slice(first, first + spec.count)),
                device=device,
                resampler=resampler,
                half=precision == "float16",
                threads=threads,
            )
            if bank is not None:
                graph.feed_input(BANK, [bank] * (spec.count * batch_size))
            self._graphs.append(graph)
        self._bank = bank

    def render(self, counts: Sequence[int]) -> tuple[list[torch.Tensor], torch.cuda.Event | None]:
        """The next batch.

        Args:
            counts: how many views form one tensor: those of the recipe's kinds.

        Returns:
            A tensor ``(count * batch, 1, d, h, w)`` for each count, view-major, and the event after
            which the slots are not read any more (None: they are not already). On a GPU the
            tensors belong to the stream that is current now.
        """
        assert tuple(counts) == self._counts, "views are delivered by kind"
        stream = torch.cuda.current_stream() if self._gpu else None
        outputs = [graph.run(stream)[0] for graph in self._graphs]
        groups = [self._deliver(from_dlpack(output.as_tensor())) for output in outputs]
        regions = self._held.popleft()
        if not self._gpu:
            return groups, None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        # DALI may reuse memory once nobody refers to it, so not before the stream is past it.
        self._in_use.append((event, (regions, outputs)))
        while self._in_use and self._in_use[0][0].query():  # type: ignore[no-untyped-call]
            self._in_use.popleft()
        return groups, event

    def close(self) -> None:
        """Stop DALI's threads and free its memory, except for views that were delivered."""
        if self._gpu:
            torch.cuda.synchronize()
        self._graphs.clear()
        self._regions = None
        self._held.clear()
        self._in_use.clear()

    def _next(self, number: int) -> _Decoded:
        self._slots = self._pull()
        stream = torch.cuda.current_stream() if self._gpu else None
        output = self._regions.run(stream)[0]
        regions = [output[n] for n in range(len(self._slots))]
        if self._gpu:
            # As torch's, so that the next graph waits for the stream that they were made on.
            regions = [from_dlpack(region) for region in regions]
        self._held.append(regions)
        return _Decoded(regions=regions, params=np.stack([slot.params for slot in self._slots]))

    def _deliver(self, views: torch.Tensor) -> torch.Tensor:
        """(views, d, h, w, 1) as (views, 1, d, h, w), of the precision asked for."""
        views = views.view(len(views), 1, *views.shape[1:4])
        converted = views.to(self._dtype)
        self._stats.count(bytes_joined=0 if converted is views else converted.nbytes)
        return converted


def _regions_of(batches: Any, count: int) -> Callable[[], list[Any]]:
    """The region of each view, view-major: those of all sets once for each view."""
    return lambda: next(batches).regions * count


def _params_of(batches: Any, views: slice) -> Callable[[], Float32[ndarray, "n p"]]:
    """The parameters of each view, view-major."""

    def source() -> Float32[ndarray, "n p"]:
        params = next(batches).params[:, views]
        return np.concatenate(params.swapaxes(0, 1))

    return source


def _device_bank(views: ViewRecipe, device: Device) -> Any:
    bank = noise_bank(bank_side(views.sizes))
    return torch.from_numpy(bank.copy()).cuda() if device == "gpu" else bank
