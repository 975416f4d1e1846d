"""Two ways from a visit to the stored chunks of its box: by range, and by stream.

*Range* asks for the chunks that the box touches. *Stream* asks for whole volumes, a run of
neighbours at a time in long ranges, ahead of their turn, and keeps them until their last visit has
been made. Both give the same chunks; they differ in bytes and requests alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

from shards.errors import CorruptShardError
from shards.fetched import Bytes, Fetched, Part
from shards.fetcher import RangeFetcher
from shards.plan import Item, Plan
from shards.regions import OUTSIDE, ByteRange, Region, coalesce
from shards.stats import Stats

Mode = Literal["stream", "range"]


@runtime_checkable
class ChunkRows(Protocol):
    """Where the stored chunks of each sample are."""

    def chunks(self, sample: int) -> tuple[Int64[ndarray, " _n"], Int32[ndarray, " _n"]]:
        """Offsets in the shard, and bytes (0: absent), of a sample's chunks in C order."""

    def shard(self, sample: int) -> str:
        """Name of the sample's shard."""


@runtime_checkable
class ChunkSource(Protocol):
    """Gives the chunks of visits."""

    mode: Mode

    def fetch(self, item: Item, region: Region) -> Fetched:
        """Ask for the chunks of a visit; visits come in the order of the plan."""

    def fetch_again(self, item: Item, region: Region) -> Fetched:
        """Ask once more for what came damaged, from the storage itself."""

    def done(self, item: Item) -> None:
        """A visit is over: what it alone needed may go."""

    @property
    def held_bytes(self) -> int:
        """Stored bytes asked for ahead and kept."""

    def close(self) -> None:
        """Stop asking; what is still on its way fails."""


class RangeSource:
    """By range. Used from one thread, except ``fetch_again``.

    Args:
        rows: where chunks are.
        fetcher: asks for them.
        stats: where to count ``ranges`` asked for and ``bytes_asked``.
    """

    mode: Mode = "range"

    def __init__(self, rows: ChunkRows, fetcher: RangeFetcher, stats: Stats) -> None:
        self._rows = rows
        self._fetcher = fetcher
        self._stats = stats
        self._held: dict[int, int] = {}
        self._held_bytes = 0

    def fetch(self, item: Item, region: Region) -> Fetched:
        """See ``ChunkSource``."""
        fetched, nbytes = self._ask(item, region, fresh=False)
        self._held[item.index] = nbytes
        self._held_bytes += nbytes
        return fetched

    def fetch_again(self, item: Item, region: Region) -> Fetched:
        """See ``ChunkSource``."""
        return self._ask(item, region, fresh=True)[0]

    def done(self, item: Item) -> None:
        """See ``ChunkSource``."""
        self._held_bytes -= self._held.pop(item.index, 0)

    @property
    def held_bytes(self) -> int:
        """See ``ChunkSource``."""
        return self._held_bytes

    def close(self) -> None:
        """See ``ChunkSource``."""
        self._fetcher.close()

    def _ask(self, item: Item, region: Region, *, fresh: bool) -> tuple[Fetched, int]:
        offsets, nbytes = self._rows.chunks(item.sample)
        wanted, sizes = touched(region, nbytes, item.sample)
        at, places = offsets[region.chunks[wanted]], region.places[wanted]
        path, total = self._rows.shard(item.sample), 0
        parts: list[Part] = []
        spans = coalesce(at, sizes)
        for span in spans:
            length = span.stop - span.start
            total += length
            answer = self._fetcher.submit(path, span.start, length, item.index, fresh=fresh)
            own = list(span.pieces)
            parts.append(_part(answer, places[own], at[own] - span.start, sizes[own]))
        self._stats.count(ranges=len(spans), bytes_asked=total)
        self._stats.add("fetch", items=1, nbytes=total)
        return Fetched(parts=parts, absent=_absent(region, wanted)), total


@dataclass(frozen=True, kw_only=True, eq=False)
class _Held:
    """A volume whose chunks were all asked for."""

    ranges: dict[int, Bytes]
    """By number in the run, those that hold a chunk of the volume."""
    range_of: Int32[ndarray, " n"]
    """Number of each chunk's range; -1 where nothing is stored."""
    start: Int64[ndarray, " n"]
    """Offset of each chunk in its range."""
    nbytes: Int32[ndarray, " n"]

    def parts(self, chunks: Int64[ndarray, " w"], places: Int64[ndarray, " w"]) -> list[Part]:
        """Stored chunks and where they go, by the range that brings them."""
        number = self.range_of[chunks]
        parts = []
        for n in np.unique(number).tolist():
            own = np.flatnonzero(number == n)
            mine = chunks[own]
            parts.append(_part(self.ranges[n], places[own], self.start[mine], self.nbytes[mine]))
        return parts

    @property
    def stored_bytes(self) -> int:
        """Of all chunks."""
        return int(self.nbytes.sum())


class StreamSource:
    """By stream. Used from one thread, except ``fetch_again``.

    Args:
        plan: says what each lane takes next.
        rows: where chunks are.
        fetcher: asks for them.
        stats: as for ``RangeSource``.
    """

    mode: Mode = "stream"

    def __init__(self, plan: Plan, rows: ChunkRows, fetcher: RangeFetcher, stats: Stats) -> None:
        self._plan = plan
        self._rows = rows
        self._fetcher = fetcher
        self._stats = stats
        self._by_range = RangeSource(rows, fetcher, stats)
        self._held: dict[int, _Held] = {}
        self._held_bytes = 0

    def fetch(self, item: Item, region: Region) -> Fetched:
        """See ``ChunkSource``; a replacement is read by range."""
        if item.attempt:
            return self._by_range.fetch(item, region)
        if item.volume not in self._held:
            self._ask_for_run(item)
        held = self._held[item.volume]
        wanted, _ = touched(region, held.nbytes, item.sample)
        parts = held.parts(region.chunks[wanted], region.places[wanted])
        self._stats.add("fetch", items=1)
        return Fetched(parts=parts, absent=_absent(region, wanted))

    def fetch_again(self, item: Item, region: Region) -> Fetched:
        """See ``ChunkSource``."""
        return self._by_range.fetch_again(item, region)

    def done(self, item: Item) -> None:
        """See ``ChunkSource``."""
        self._by_range.done(item)
        if item.visit == self._plan.config.visits - 1 and item.volume in self._held:
            self._held_bytes -= self._held.pop(item.volume).stored_bytes

    @property
    def held_bytes(self) -> int:
        """See ``ChunkSource``."""
        return self._held_bytes + self._by_range.held_bytes

    def close(self) -> None:
        """See ``ChunkSource``."""
        self._fetcher.close()

    def _ask_for_run(self, item: Item) -> None:
        """Ask for a volume and for those of its run that its lane takes next."""
        step = self._plan.config.global_batch
        tables = [self._rows.chunks(sample) for sample in self._plan.run_ahead(item.volume)]
        stored = _stored(tables)
        spans = coalesce(stored.offsets, stored.nbytes)
        path = self._rows.shard(item.sample)
        # One loop over ranges, none over chunks: a run has hundreds of those.
        range_of = np.empty(len(stored.offsets), dtype=np.int32)
        start = np.empty(len(stored.offsets), dtype=np.int64)
        answers: dict[int, Bytes] = {}
        for n, span in enumerate(spans):
            rows = list(span.pieces)
            range_of[rows], start[rows] = n, stored.offsets[rows] - span.start
            # The first of its volumes to come says how urgent a range is.
            priority = item.index + int(stored.owner[rows].min()) * step
            answers[n] = self._fetcher.submit(path, span.start, span.stop - span.start, priority)
        total = sum(span.stop - span.start for span in spans)
        self._stats.count(ranges=len(spans), bytes_asked=total)
        self._stats.add("fetch", nbytes=total)
        for n, (_, nbytes) in enumerate(tables):
            own = np.flatnonzero(stored.owner == n)
            chunks = stored.chunk[own]
            held = _Held(
                ranges={r: answers[r] for r in np.unique(range_of[own]).tolist()},
                range_of=_spread(range_of[own], chunks, len(nbytes)),
                start=_spread(start[own], chunks, len(nbytes)),
                nbytes=nbytes,
            )
            self._held[item.volume + n * step] = held
            self._held_bytes += held.stored_bytes


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The stored chunks of some volumes, one after another."""

    offsets: Int64[ndarray, " n"]
    nbytes: Int32[ndarray, " n"]
    owner: Int64[ndarray, " n"]
    """Whose, as a position in the list of volumes."""
    chunk: Int64[ndarray, " n"]
    """Number in the volume."""


def _stored(tables: Sequence[tuple[ndarray, ndarray]]) -> _Stored:
    numbers = [np.flatnonzero(nbytes) for _, nbytes in tables]
    pairs = list(zip(tables, numbers, strict=True))
    return _Stored(
        offsets=np.concatenate([offsets[there] for (offsets, _), there in pairs]),
        nbytes=np.concatenate([nbytes[there] for (_, nbytes), there in pairs]),
        owner=np.repeat(np.arange(len(tables)), [len(there) for there in numbers]),
        chunk=np.concatenate(numbers),
    )


def _spread(values: ndarray, places: Int64[ndarray, " n"], size: int) -> ndarray:
    """``values`` at their places, -1 elsewhere."""
    spread = np.full(size, -1, dtype=values.dtype)
    spread[places] = values
    return spread


def _part(
    answer: Bytes,
    places: Int64[ndarray, " w"],
    starts: Int64[ndarray, " w"],
    nbytes: Int32[ndarray, " w"],
) -> Part:
    return Part(
        range=answer, places=places.tolist(), starts=starts.tolist(), nbytes=nbytes.tolist()
    )


def _absent(region: Region, wanted: Int64[ndarray, " w"]) -> list[int]:
    """Places of a region where nothing is stored."""
    places: list[int] = np.delete(region.places, wanted).tolist()
    return places


def touched(
    region: Region, nbytes: Int32[ndarray, " c"], sample: int
) -> tuple[Int64[ndarray, " w"], Int32[ndarray, " w"]]:
    """Rows of a region whose chunk is stored, and the stored bytes of each.

    Raises:
        CorruptShardError: the chunk table lists fewer chunks than the region needs.
    """
    if region.chunks.max() >= len(nbytes):
        raise CorruptShardError(
            f"sample {sample}: its shape needs more than the {len(nbytes)} chunks listed; "
            "check the dataset with `ingest verify`"
        )
    sizes = np.where(region.chunks == OUTSIDE, 0, nbytes[region.chunks])
    wanted = np.flatnonzero(sizes)
    return wanted, sizes[wanted]


def spans_of_box(rows: ChunkRows, sample: int, region: Region) -> list[ByteRange]:
    """What a visit by range asks for."""
    offsets, nbytes = rows.chunks(sample)
    wanted, sizes = touched(region, nbytes, sample)
    return coalesce(offsets[region.chunks[wanted]], sizes)


def spans_of_run(rows: ChunkRows, samples: list[int]) -> list[ByteRange]:
    """What a run's volumes take by stream."""
    stored = _stored([rows.chunks(sample) for sample in samples])
    return coalesce(stored.offsets, stored.nbytes)
