"""Presets: named functions that return a complete configuration; flags change paths and sizes.

Batch sizes and lengths are our choice; what belongs to the method is in ``coralbay.recipes``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from coralbay import recipes
from train.config import RunConfig
from train.errors import UsageError


def tiny(shards: str) -> RunConfig:
    """A demonstration on two CPU cores: minutes, and a loss curve rather than a model."""
    return RunConfig(
        shards=shards,
        preset="tiny",
        # 5e-4 at a batch of 2: scaled down from 256 as the recipe says, nothing would move.
        recipe=replace(recipes.tiny(), lr_per_256=0.064),
        batch_size=2,
        total_steps=100,
        checkpoint_every=10,
    )


def small(shards: str) -> RunConfig:
    """F = 48 on one GPU."""
    return RunConfig(
        shards=shards,
        preset="small",
        recipe=recipes.small(),
        batch_size=16,
        total_steps=100_000,
        threads=8,
        checkpoint_every=1_000,
    )


def base(shards: str) -> RunConfig:
    """F = 96 on one large GPU."""
    return replace(small(shards), preset="base", recipe=recipes.base())


def large(shards: str) -> RunConfig:
    """F = 192, the size believed to be the released one."""
    return replace(small(shards), preset="large", recipe=recipes.large(), batch_size=8)


PRESETS: dict[str, Callable[[str], RunConfig]] = {
    "tiny": tiny,
    "small": small,
    "base": base,
    "large": large,
}


def check_preset(preset: str, flag: str = "--preset") -> None:
    """Refuse a name that is no preset's.

    Raises:
        UsageError: no such preset; the nearest name is given.
    """
    if preset not in PRESETS:
        near = get_close_matches(preset, PRESETS, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"{flag} {preset}: no such preset; did you mean {near!r}? ({', '.join(PRESETS)})"
        )


def configure(preset: str, shards: str, **changes: Any) -> RunConfig:
    """The configuration of a preset, with the flags that were given.

    Args:
        preset: a key of ``PRESETS``.
        shards: folder or URL of the dataset.
        **changes: fields of ``RunConfig``; None leaves the preset's value.

    Raises:
        UsageError: no such preset (the nearest name is given), or values out of range.
    """
    check_preset(preset)
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(PRESETS[preset](shards), **given)
