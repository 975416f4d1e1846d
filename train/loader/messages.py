"""What a loader and its subprocess tell each other, over a ``multiprocessing`` connection.

The subprocess also sends ``logging.LogRecord``, to be handled where the user has set up logging.
"""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass

from shards.stats import Snapshot
from train.errors import TrainError
from train.loader.feed import Quarantined
from train.loader.slots import SlotLayout
from train.loader.supply import FeedSettings
from train.loader.visits import Visit

# To the subprocess.


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The first message: what to load, and where to."""

    url: str
    plan_hash: str
    """Of the order that the loader has; the subprocess must find the same."""
    settings: FeedSettings
    layout: SlotLayout
    n_slots: int
    memory: int
    """File descriptor of the slots' memory."""
    most_spans: int | None
    """See ``Stats.most_spans``."""
    log_level: int
    parent: int
    """Process id of the loader: without it the subprocess has nobody to work for."""

    @property
    def nbytes(self) -> int:
        """Of the slots' memory."""
        return self.n_slots * self.layout.nbytes


@dataclass(frozen=True)
class Freed:
    """Slots that nobody reads any more."""

    numbers: list[int]


@dataclass(frozen=True)
class Stop:
    """End in order; the last counts are still sent."""


# From the subprocess.


@dataclass(frozen=True, kw_only=True)
class Ready:
    """An item is loaded."""

    visit: Visit
    slot: int
    """Number of the slot."""
    came_s: float
    """See ``Loaded``."""
    ready_s: float
    """When the feed gave it."""
    found: list[tuple[Quarantined, int]]
    """Added to the quarantine since the message before."""


@dataclass(frozen=True)
class Counted:
    """What was counted since it was last sent."""

    snapshot: Snapshot


@dataclass(frozen=True)
class Failed:
    """The feed cannot go on."""

    error: BaseException
    found: list[tuple[Quarantined, int]]

    @classmethod
    def of(cls, error: BaseException, found: list[tuple[Quarantined, int]]) -> Failed:
        """With an error that survives the way, and says where it comes from."""
        trace = "".join(traceback.format_exception(error))
        try:
            copy = pickle.loads(pickle.dumps(error))
            same = type(copy) is type(error) and str(copy) == str(error)
        except Exception:  # whatever an exception class of some library makes of it
            same = False
        if not same:
            error = TrainError(f"{type(error).__name__}: {error}")
        error.add_note(f"In the loader's subprocess:\n{trace}")
        return cls(error, found)
