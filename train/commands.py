"""What can be asked of the `coralbay` command; no heavy import, so that help is instant."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.data import DataConfig, StreamConfig, parse_weights

Count = Annotated[
    int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the preset's)")
]
"""A number that the preset gives unless the flag does."""
Steps = Annotated[
    int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: to the end)")
]
"""How far to go in one call."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which samples to take."""

    where: str = ""
    """Take only samples for which this holds, e.g. 'slice_mm <= 3 and contrast'."""
    weights: tuple[str, ...] = ()
    """Shares of the sources, e.g. lidc=1 own=3; every volume once an epoch when left out."""
    holdout: float = 0.0
    """Keep this share of the subjects apart, never to be trained on."""
    split_seed: int = 0
    """Which subjects that is."""

    def config(self) -> DataConfig:
        """As a setting of a run."""
        return DataConfig(
            where=self.where,
            weights=parse_weights(self.weights),
            holdout=self.holdout,
            split_seed=self.split_seed,
        )


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pretrain on a dataset of shards, into a new run folder."""

    shards: str
    """Dataset: a folder, or a URL (s3://, gs://, az://, file://)."""
    run: Path
    """Run folder to make: configuration, metrics, checkpoints, loss.png."""
    preset: str
    """Where every other setting comes from: tiny, small, base or large."""
    steps: Steps = None
    """Steps to do now; `coralbay resume` goes on."""
    total_steps: Count = None
    """Length of the run, which the schedules span."""
    batch_size: Count = None
    """View sets a step."""
    seed: int = 0
    """Of everything random: weights, data order, views."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train and make views; auto takes CUDA when there is one."""
    loader: Literal["dali", "reference"] = "dali"
    """How to make views; reference needs no DALI and is slower."""
    threads: Count = None
    """Threads that decode."""
    checkpoint_every: Count = None
    """Steps between checkpoints."""
    data: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)
    stream: Annotated[StreamConfig, tyro.conf.arg(name="")] = field(default_factory=StreamConfig)
    json: bool = False
    """End with one line of JSON on standard output."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run exactly where its newest checkpoint stopped."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    steps: Steps = None
    """Steps to do now."""
    shards: str = ""
    """Where the dataset is now, if it has moved."""
    accept_new_data: bool = False
    """Go on with another generation of the dataset, in a new order from this step on."""
    stream: Annotated[StreamConfig, tyro.conf.arg(name="")] = field(default_factory=StreamConfig)
    json: bool = False
    """End with one line of JSON on standard output."""


@dataclass(frozen=True, kw_only=True)
class ProfileLoader:
    """Measure the loader: sets a second, each stage alone, the bottleneck and what would help."""

    url: tyro.conf.Positional[str]
    """Dataset: a folder, or a URL (s3://, gs://, az://, file://)."""
    preset: str = "small"
    """Whose views to make: tiny, small, base or large."""
    seconds: float = 10.0
    """How long to measure end to end; stages and limits take about as long again, a consumer half
    as long, headspace as long (or some 10 training steps, if those take longer)."""
    batch_size: Count = None
    """View sets a batch; at most the number of volumes."""
    consumer_sets_per_s: float | None = None
    """Pretend to train at this rate; batches are taken as fast as they come when left out."""
    headspace: str | None = None
    """Also take training steps of this preset: with the loader, and with cached batches."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to make views; auto takes CUDA when there is one."""
    loader: Literal["dali", "reference"] = "dali"
    """How to make views; reference needs no DALI and is slower."""
    threads: Count = None
    """Threads that decode."""
    data: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)
    stream: Annotated[StreamConfig, tyro.conf.arg(name="")] = field(default_factory=StreamConfig)
    png: Path | None = None
    """Draw a second of the run by thread, and each stage against its limits."""
    trace: Path | None = None
    """Write the run as trace events, for ui.perfetto.dev or chrome://tracing."""
    json: bool = False
    """End with one line of JSON on standard output."""


Command = (
    Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
    | Annotated[Resume, tyro.conf.subcommand("resume")]
    | Annotated[ProfileLoader, tyro.conf.subcommand("profile-loader")]
)
