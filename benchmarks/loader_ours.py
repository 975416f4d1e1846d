"""This project's loader as a subject of the loader benchmark, in a process of its own.

``slices``, ``dali`` and ``reference`` deliver crops; ``regions`` decoded regions without views.
``decode`` and ``codec`` decode the same chunks from memory: by the loader's decoder, and by nothing
but the codec.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.crops import BATCH, BOX_SIDE, KINDS
from benchmarks.stream_protocol import Arrived, Delivered, keep_answers_apart, serve
from coralbay.views import ViewRecipe, ViewSpec, identity_recipe
from shards.codec import CRC_BYTES
from shards.schema import FILL_HU

N_REGIONS = 48
"""Regions in memory for ``decode`` and ``codec``; they take turns."""
N_SLOTS = 8
"""Slots that they are decoded into: together larger than the caches, as those of the loader are."""


def recipe() -> ViewRecipe:
    """The sets that all loaders deliver."""
    (_, large), (_, small) = KINDS
    views = identity_recipe(global_size=large, local_size=small, box_side=BOX_SIDE)
    wanted = [ViewSpec(size=side, extent=(side, side), count=n) for n, side in KINDS]
    assert [views.global_, views.local] == wanted
    return views


def loader_of(options: argparse.Namespace, **more: Any) -> Any:
    """A ``CTLoader`` for the identity recipe, as the command line says."""
    from train.loader.base import CTLoader
    from train.loader.settings import LoaderConfig

    if options.visits:
        more["visits"] = options.visits
    if options.threads:
        more["threads"] = options.threads
    return CTLoader(options.url, recipe(), LoaderConfig(batch_size=BATCH, **more))


def crops(options: argparse.Namespace) -> Iterator[Arrived]:
    """Batches as the loader delivers them."""
    with loader_of(options, loader=options.what, precision=options.precision) as loader:
        for batch in loader:
            yield Arrived(len(batch.keys), partial(_crops_of, loader, batch))


def _crops_of(loader: Any, batch: Any) -> list[Delivered]:
    """Each crop, and from where the plan and the draws say that it comes."""
    visits = [loader.inputs.scheduler.visit(index, 0) for index in batch.indices]
    found = []
    first = 0
    for views in batch.views:
        count = len(views) // len(visits)
        for row, view in enumerate(views):
            visit = visits[row % len(visits)]
            draws = visit.draws.start_zyx[first + row // len(visits)]
            z, y, x = (draws + visit.item.box_start_zyx).astype(int).tolist()
            found.append(Delivered(view[0].numpy, visit.key, (z, y, x)))
        first += count
    return found


def regions(options: argparse.Namespace) -> Iterator[Arrived]:
    """Decoded base boxes, all of them, which go back as they come."""
    from train.loader.base import CTLoader

    class Regions(CTLoader):
        def renderer(self, pull: Callable[[], list[Any]]) -> Any:
            self.last = _NoViews(pull)
            return self.last

    with loader_of(options, loader="reference", whole_boxes=True) as plain:
        config = plain.config
    with Regions(options.url, recipe(), config) as loader:
        for batch in loader:
            yield Arrived(len(batch.keys), loader.last.boxes)


class _NoViews:
    """Takes batches as a renderer does, and makes nothing of them."""

    def __init__(self, pull: Callable[[], list[Any]]) -> None:
        self._pull = pull
        self._batch: list[Any] = []

    def render(self, counts: Sequence[int]) -> tuple[list[Any], None]:
        self._batch = self._pull()
        return [], None

    def boxes(self) -> list[Delivered]:
        """Of the last batch: its slots stay as they are until the next one is asked for."""
        return [box for one in self._batch for box in _region(one.visit, one.slot.chunks)]

    def close(self) -> None:
        """Nothing to free."""


def decode(options: argparse.Namespace) -> Iterator[Arrived]:
    """Regions from memory into slots, by the loader's decoder."""
    with loader_of(options, loader="reference", whole_boxes=True) as loader:
        visits, fetched = _in_memory(loader)
        for number in itertools.count():
            slot, n = _SLOTS[number % N_SLOTS], number % N_REGIONS
            loader.decoder.decode(fetched[n], slot)
            yield Arrived(1, partial(_region, visits[n], slot))


def codec(options: argparse.Namespace) -> Iterator[Arrived]:
    """The same chunks into the same slots, by the codec alone."""
    from numcodecs import blosc

    blosc.use_threads = False
    with loader_of(options, loader="reference", whole_boxes=True) as loader:
        visits, fetched = _in_memory(loader)
        bodies = [
            [(place, chunk[:-CRC_BYTES]) for place, chunk in found.stored()] for found in fetched
        ]
        for number in itertools.count():
            slot, n = _SLOTS[number % N_SLOTS], number % N_REGIONS
            flat = slot.reshape(-1, *slot.shape[3:])
            for place, body in bodies[n]:
                blosc.decompress(body, flat[place])
            yield Arrived(1, partial(_region, visits[n], slot, fetched[n].absent))


_SLOTS: list[Any] = []


def _in_memory(loader: Any) -> tuple[list[Any], list[Any]]:
    """Visits and their stored chunks; makes the slots that they go to."""
    source = loader.inputs.source(loader.inputs.open_fetcher(), loader.stats)
    visits = [loader.inputs.scheduler.visit(index, 0) for index in range(N_REGIONS)]
    fetched = [source.fetch(visit.item, visit.region) for visit in visits]
    for found in fetched:
        found.wait()
    _SLOTS[:] = [
        np.full(loader.inputs.chunks_shape, FILL_HU, dtype=np.int16) for _ in range(N_SLOTS)
    ]
    return visits, fetched


def _region(visit: Any, slot: Any, absent: Sequence[int] = ()) -> list[Delivered]:
    """The base box in a slot; ``absent``: places that the codec alone leaves as they were."""
    slot.reshape(-1, *slot.shape[3:])[list(absent)] = FILL_HU
    shape = [n * side for n, side in zip(slot.shape[:3], slot.shape[3:], strict=True)]
    whole = slot.transpose(0, 3, 1, 4, 2, 5).reshape(shape)
    box = tuple(slice(int(o), int(o) + BOX_SIDE) for o in visit.region.origin_zyx)
    return [Delivered(lambda: whole[box], visit.key, visit.item.box_start_zyx)]


WAYS = {"regions": regions, "decode": decode, "codec": codec}


def main() -> None:
    """Run as a script."""
    keep_answers_apart()
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("slices", "dali", "reference", *WAYS))
    parser.add_argument("--precision", choices=("int16", "float16", "float32"), default="float16")
    parser.add_argument("--visits", type=int, help="the loader's default if left out")
    parser.add_argument("--threads", type=int, help="the loader's default if left out")
    parser.add_argument("url")
    options = parser.parse_args()
    serve(WAYS.get(options.what, crops)(options), loader="ours", what=options.what)


if __name__ == "__main__":
    main()
