"""Which samples a run takes and how it reads them: settings without a word of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from train.errors import UsageError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples come, and how often: part of a run's data order."""

    where: str = ""
    """Takes the samples for which this holds, e.g. ``slice_mm <= 3 and contrast``."""
    weights: dict[str, float] = field(default_factory=dict)
    """Shares of the sources in an epoch, relative to each other; empty: every volume once."""
    holdout: float = 0.0
    """Share of the subjects that is kept apart."""
    split: Literal["train", "held_out", "all"] = "train"
    """``train``: without the subjects kept apart; ``held_out``: those alone."""
    split_seed: int = 0
    """Decides which subjects are kept apart."""

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UsageError(f"holdout {self.holdout}: give a share from 0 to below 1")
        if self.split == "held_out" and not self.holdout:
            raise UsageError("split held_out: say which share of the subjects with holdout")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How samples are read: changes no batch, and may be another with every call."""

    mode: Literal["auto", "stream", "range"] = "auto"
    """Whole volumes a run at a time, the touched chunks alone, or what takes less."""
    in_flight: int = 32
    """Requests to the storage at a time."""
    held_mib: int = 2048
    """Stored bytes held ahead of their turn: above this, no more is asked for ahead."""
    cache_dir: str = ""
    """Where shards from a remote storage are kept, in a folder that processes may share."""
    cache_gib: float = 100.0
    """Most that the folder may hold."""
    decode_on: Literal["auto", "cpu", "gpu"] = "auto"
    """Where chunks are decoded; auto: on the GPU if DALI can, which takes shards of profile gpu."""
    feed: Literal["threads", "subprocess"] = "threads"
    """Where fetching and decoding run: threads of this process, or a subprocess."""

    def __post_init__(self) -> None:
        for name in ("in_flight", "held_mib"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: give 1 or more")
        if not self.cache_gib > 0:
            raise UsageError(f"cache_gib {self.cache_gib:g}: give more than 0")

    @property
    def cache_bytes(self) -> int:
        """Most that the cache may hold."""
        return int(self.cache_gib * GIB)


def parse_weights(given: Sequence[str]) -> dict[str, float]:
    """``NAME=WEIGHT`` words as a mapping.

    Raises:
        UsageError: not of that form, or a name comes twice.

    >>> parse_weights(["lidc=1", "own=2.5"])
    {'lidc': 1.0, 'own': 2.5}
    """
    weights: dict[str, float] = {}
    for word in given:
        name, _, value = word.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"--weights {word}: give SOURCE=NUMBER, e.g. lidc=2")
        if name in weights:
            raise UsageError(f"--weights: source {name!r} comes twice")
        weights[name] = weight
    return weights
