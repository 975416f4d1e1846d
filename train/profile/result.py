"""What was measured. A set is all views of one base box."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from shards.quality import Shuffle
from shards.stats import Span
from train.coverage import Coverage

STAGES = ("plan", "fetch", "decode", "graph")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A stage alone, so many at work at once."""

    at: int
    """Requests in flight for ``fetch``, threads for the others."""
    sets_per_s: float


@dataclass(frozen=True, kw_only=True)
class StageUse:
    """How a stage spent the run, in seconds a second: mean numbers of threads, or of sets."""

    busy: float
    """``plan``, ``decode``, ``graph``: threads at work; ``fetch``: sets on their way."""
    wait_up: float
    """``decode``: slots waiting for bytes; ``graph``: its thread, for decoded sets."""
    wait_down: float
    """``fetch``: sets there, waiting for a slot and a thread; ``decode``: decoded sets waiting for
    the graph; ``graph``: batches handed over, until the consumer asks again."""


@dataclass(frozen=True, kw_only=True)
class StageRate:
    """One stage alone, with everything it needs at hand, and in the run."""

    sets_per_s: float
    """As the loader is set."""
    gb_per_s: float | None
    """Bytes read for ``fetch``, bytes of voxels for ``decode``, None for the others."""
    at: int
    """As in ``Point``."""
    sweep: tuple[Point, ...]
    run: StageUse

    def faster(self, times: float = 1.15) -> Point | None:
        """The least setting above the present one that comes near the best, if it gives as much."""
        above = [point for point in self.sweep if point.at > self.at]
        best = max((point.sets_per_s for point in above), default=0.0)
        if best < times * self.sets_per_s:
            return None
        return next(point for point in above if point.sets_per_s >= 0.9 * best)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine gives for the same bytes and threads with nothing around it, GB/s."""

    read: float
    """The same byte ranges from the same storage, thrown away."""
    memcpy: float
    """Memory to memory, bytes of voxels."""
    codec: float
    """The bare decompressor on the same chunks, bytes of voxels."""
    h2d: float | None
    """Page-locked memory to the GPU, bytes of slots; None without a GPU."""
    cached_batches: float | None
    """Sets a second that the training of ``headspace`` takes when batches cost nothing."""


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Measured over possible."""

    fetch_of_read: float
    decode_of_memcpy: float
    decode_of_codec: float
    loader_of_slowest_stage: float
    """Sets a second end to end, over those of the slowest stage alone."""
    loader_of: dict[str, float]
    """Sets a second end to end, over what each limit alone would allow."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """What to improve first: a stage, or ``consumer`` when the loader keeps up."""

    name: str
    sentence: str
    gain: float | None
    """About how many times faster what the sentence names makes the loader; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A consumer that pretends to train at a fixed rate."""

    sets_per_s: float
    """What it would take."""
    headspace: float
    """What it got, of that."""
    loader_sets_per_s: float
    """What the loader gives a consumer without a pause."""


@dataclass(frozen=True, kw_only=True)
class Headspace:
    """Training steps with the loader, and with batches that are there already."""

    preset: str
    device: str
    ratio: float
    """Steps a second with the loader over those with cached batches; 1: the loader costs nothing.
    """
    steps_per_s: float
    """With the loader."""
    cached_steps_per_s: float
    data_wait: float
    """Share of the time with the loader that steps waited for a batch."""
    batch_size: int
    pairs: int
    """Blocks of each kind, taken in turns; all numbers are medians of their pairs."""
    steps: int
    """Of a block."""


@dataclass(frozen=True, kw_only=True)
class ProfileResult:
    """How a loader performs."""

    sets_per_s: float
    """End to end, as the consumer saw it."""
    sets: int
    seconds: float
    data_wait: float
    """Share of the consumer's time spent waiting for a batch."""
    time: dict[str, float]
    """Where the consumer's time went: itself, and what it waited for; adds up to 1."""
    stages: dict[str, StageRate]
    limits: Limits
    limits_sets_per_s: dict[str, float]
    """What each limit alone would allow."""
    ratios: Ratios
    decode_amplification: float
    """Voxels decoded over voxels that some view of their set reads."""
    read_amplification: float
    """Bytes read over stored bytes of the touched chunks; below 1 where visits share what is read.
    """
    request_amplification: float
    """Requests over one a set and one for each further 8 MiB of its touched chunks; below 1 where
    visits share what is read."""
    mode: str
    """The way in, and why."""
    requests_per_set: float
    bytes_per_set: float
    retries: int
    """Requests of the run that were made again."""
    hedges: int
    """Requests of the run that were made twice, because an answer was late."""
    shuffle: Shuffle
    """Of the first two epochs."""
    coverage: Coverage
    """Of volumes by views."""
    bottleneck: Bottleneck
    consumer: Consumer | None
    headspace: Headspace | None
    batch_size: int
    threads: int
    in_flight: int
    """Requests at a time; threads that read, for a folder."""
    feed: str
    """Where planning, fetching and decoding run: ``threads``, or a ``subprocess``."""
    device: str
    loader: str
    resampler: str
    cpu_count: int
    """Cores that this process may use."""
    cores_used: float
    """By this process and its children, end to end."""
    load_before: float
    """Load average of the machine, of the last minute, before anything was measured."""
    whole_s: float
    """Everything took so long."""
    spans: tuple[Span, ...] = ()
    """Pieces of the end-to-end part, if they were asked for; never in the JSON."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        record = asdict(replace(self, spans=()))
        del record["spans"]
        return record
