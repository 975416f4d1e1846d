"""This project's loader as a subject of the streaming benchmarks, in a process of its own.

``regions`` hands over decoded regions without making views; ``first`` times a batch from nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.stream_protocol import Arrived, Delivered, keep_answers_apart, say, serve


def no_views_loader(url: str, options: argparse.Namespace) -> Any:
    """A ``CTLoader`` whose batches are decoded and dropped; the renderer keeps the last one."""
    from coralbay.recipes import small
    from train.loader.base import CTLoader

    class Regions(CTLoader):
        """Everything of the loader except the views."""

        def renderer(self, pull: Callable[[], list[Any]]) -> Any:
            self.last = NoViews(pull, self.views.box_side, options.copy)
            return self.last

    return Regions(url, small().views, loader_config(options, loader="reference", whole_boxes=True))


def loader_config(options: argparse.Namespace, **more: Any) -> Any:
    """The loader's default settings but for mode, visits and batch."""
    from train.data import StreamConfig
    from train.loader.settings import LoaderConfig

    if options.threads:
        more["threads"] = options.threads
    return LoaderConfig(
        batch_size=options.batch,
        visits=options.k,
        stream=StreamConfig(mode=options.mode),
        **more,
    )


class NoViews:
    """Takes batches as a renderer does, and makes nothing of them."""

    def __init__(self, pull: Callable[[], list[Any]], side: int, copy: bool) -> None:
        self._pull = pull
        self._side = side
        self._copy = copy
        self.delivered: list[Delivered] = []

    def render(self, counts: Sequence[int]) -> tuple[list[Any], None]:
        """Nothing; ``delivered`` are the regions of the batch."""
        self.delivered = [self._deliver(loaded) for loaded in self._pull()]
        return [], None

    def close(self) -> None:
        """Nothing to free."""

    def _deliver(self, loaded: Any) -> Delivered:
        from train.loader.reference import base_box

        # Only a copy outlives the slot, which is used again after this batch.
        box = base_box(loaded, self._side).copy() if self._copy else None
        visit = loaded.visit
        start = visit.item.box_start_zyx
        return Delivered(partial(_same, box), visit.key, start)


def _same(found: Any) -> Any:
    return found


def regions(options: argparse.Namespace) -> Iterator[Arrived]:
    """Decoded regions, a batch at a time."""
    with no_views_loader(options.url, options) as loader:
        for _ in loader:
            yield Arrived(len(loader.last.delivered), partial(_same, loader.last.delivered))


def first_batch(options: argparse.Namespace) -> None:
    """Times from nothing to a batch, for one new process."""
    start = time.perf_counter()
    import train.loader.graph  # noqa: F401  # DALI, which the loader imports when it starts
    from coralbay.recipes import small
    from train.loader.base import CTLoader

    imported = time.perf_counter()
    with CTLoader(options.url, small().views, loader_config(options)) as loader:
        opened = time.perf_counter()
        batch = next(loader)
        done = time.perf_counter()
        # Read before close: what runs ahead is then still being fetched.
        counters = loader.stats.counters()
        shapes = [list(view.shape) for view in batch.views]
    say(
        import_s=imported - start,
        open_s=opened - imported,
        first_batch_s=done - imported,
        mode=loader.inputs.choice.mode,
        counters=counters,
        shapes=shapes,
    )


def main() -> None:
    """Run as a script."""
    keep_answers_apart()
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("regions", "first"))
    parser.add_argument("--mode", choices=("auto", "stream", "range"), required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, help="the loader's default if left out")
    parser.add_argument("--copy", action="store_true", help="cut each box out of its chunks")
    parser.add_argument("url")
    options = parser.parse_args()
    if options.what == "first":
        first_batch(options)
    else:
        serve(regions(options), loader=json.dumps(vars(options)))


if __name__ == "__main__":
    main()
