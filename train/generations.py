"""Which generations of its dataset a run was trained on, and what changed since."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from shards.schema import Manifest, converter
from train.errors import UsageError
from train.files import write_json

logger = logging.getLogger(__name__)

GENERATIONS = "data.json"
"""Name in the run folder."""


@dataclass(frozen=True, kw_only=True)
class UsedGeneration:
    """One generation of a dataset, as far as it takes to say how another one differs."""

    from_step: int
    """The first step that was done with it, counted from 0."""
    generation: int
    generation_id: str
    shards: dict[str, int]
    """Samples of each shard, by its SHA-256."""
    tombstones: list[str]

    @classmethod
    def of(cls, manifest: Manifest, from_step: int) -> UsedGeneration:
        """What a manifest says."""
        return cls(
            from_step=from_step,
            generation=manifest.generation,
            generation_id=manifest.generation_id,
            shards={shard.sha256: shard.samples for shard in manifest.shards},
            tombstones=list(manifest.tombstones),
        )


def read_used(run: Path) -> list[UsedGeneration]:
    """The generations of a run, oldest first; none when it was begun before they were recorded.

    Raises:
        UsageError: the record cannot be read.
    """
    path = run / GENERATIONS
    if not path.exists():
        return []
    try:
        return converter.structure(json.loads(path.read_bytes()), list[UsedGeneration])
    except Exception as exc:
        raise UsageError(f"{path}: cannot be read ({type(exc).__name__}); restore it") from exc


def write_used(run: Path, used: list[UsedGeneration]) -> None:
    """Record the generations of a run."""
    write_json(run / GENERATIONS, converter.unstructure(used))


def check_generation(run: Path, shards: str, began_with: str, now: Manifest) -> None:
    """Make sure that a dataset is what a run was trained on last.

    Args:
        run: folder of the run.
        shards: where the dataset is.
        began_with: generation id of the run's own record.
        now: manifest of the dataset.

    Raises:
        UsageError: it is not; the message says what changed and how to go on.
    """
    used = read_used(run)
    if now.generation_id == (used[-1].generation_id if used else began_with):
        return
    if used:
        numbers = f"is generation {now.generation}, {run} used generation {used[-1].generation}"
        what = f"{numbers} ({what_changed(used[-1], now)})"
    else:
        what = f"is not the generation that {run} began with"
    raise UsageError(
        f"{shards}: {what}; `coralbay resume {run} --shards URL` takes a copy of the one it used, "
        "--accept-new-data goes on with this one, in a new order from the next step on"
    )


def accept_generation(run: Path, began_with: str, now: Manifest, done: int) -> None:
    """Record that a run goes on with another generation after ``done`` steps, if it is another."""
    used = read_used(run)
    if now.generation_id == (used[-1].generation_id if used else began_with):
        return
    # What was accepted at this very step before has never been used.
    before = [generation for generation in used if generation.from_step < done]
    write_used(run, [*before, UsedGeneration.of(now, done)])
    logger.warning("%s: generation %d from step %d on", run, now.generation, done + 1)


def what_changed(old: UsedGeneration, now: Manifest) -> str:
    """In words, what a dataset has more and less than it had."""
    new = UsedGeneration.of(now, 0)
    changes = [
        _shards(new, new.shards.keys() - old.shards.keys(), "more"),
        _shards(old, old.shards.keys() - new.shards.keys(), "fewer"),
        _samples(len(set(new.tombstones) - set(old.tombstones)), "withdrawn"),
        _samples(len(set(old.tombstones) - set(new.tombstones)), "no longer withdrawn"),
    ]
    return ", ".join(change for change in changes if change) or "the same samples in another order"


def _shards(generation: UsedGeneration, which: set[str], how: str) -> str:
    if not which:
        return ""
    samples = sum(generation.shards[sha256] for sha256 in which)
    return f"{len(which)} shard{'s' * (len(which) != 1)} {how} ({samples} samples)"


def _samples(count: int, how: str) -> str:
    return f"{count} sample{'s' * (count != 1)} {how}" if count else ""
