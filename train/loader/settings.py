"""How a loader loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shards.plan import PlanConfig
from train.data import DataConfig, StreamConfig
from train.errors import UsageError
from train.loader.machine import require_gpu
from train.loader.params import Resampler


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How to load; the first part decides what comes, the second how fast."""

    batch_size: int
    """Sets a batch on this rank."""
    rank: int = 0
    world: int = 1
    seed: int = 0
    visits: int = 2
    """Base boxes drawn from a volume each epoch."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which samples come."""

    stream: StreamConfig = field(default_factory=StreamConfig)
    """How they are read."""
    whole_boxes: bool = False
    """Read and decode a base box also where no view looks: for those who cut views themselves."""
    threads: int = 8
    """Sets decoded at a time, and the graph's CPU threads (at most one a core)."""
    prefetch: int = 8
    """Sets kept ready beyond the batches in the graph."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where views are made and delivered."""
    loader: Literal["dali", "reference", "slices"] = "dali"
    """``slices``: on the CPU, plain crops alone, several times faster than DALI there."""
    resampler: Resampler | None = None
    """None: ``affine`` on a GPU, ``resize`` on a CPU, where it is several times faster."""
    precision: Literal["float16", "bfloat16", "float32", "int16"] = "float16"
    """Of the views; ``int16``: HU as stored, by ``slices`` alone; bfloat16 costs DALI's views a
    pass more, as DALI cannot write it."""
    max_bad_samples: int = 10
    """Distinct samples that may turn out unreadable before the run stops."""
    poison: bool = False
    """Fill freed slots with garbage: shows a slot that is freed too early. For tests."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "world", "visits", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: give 1 or more")
        if not 0 <= self.rank < self.world:
            raise UsageError(f"rank {self.rank}: not one of {self.world} ranks")
        if self.device == "gpu":
            require_gpu()
        if self.loader == "slices" and self.device == "gpu":
            raise UsageError("loader slices: it cuts on the CPU; use device cpu, or loader dali")
        if self.precision == "int16" and self.loader != "slices":
            raise UsageError(f"precision int16: loader {self.loader} windows HU; use slices")

    def plan_config(self, box_side: int) -> PlanConfig:
        """What decides the sequence, together with the data."""
        return PlanConfig(
            seed=self.seed,
            global_batch=self.batch_size * self.world,
            visits=self.visits,
            box_side=box_side,
            weights=tuple(sorted(self.data.weights.items())),
        )
