"""Errors of a run. Every message is one line: what, where, and what to do.

TrainError                 the run cannot go on (exit code 1)
├── UsageError             arguments, paths or settings that cannot work (exit code 2)
├── BadDataError           more samples are unreadable than a run may go on without
├── FeedDiedError          the subprocess that fetches and decodes has ended by itself
├── CheckpointError        a checkpoint that cannot be loaded
└── NonFiniteError         a loss or gradient that is not finite; the weights were not touched
"""


class TrainError(Exception):
    """The run cannot go on; ``str()`` says what, where and what to do."""


class UsageError(TrainError):
    """Arguments, paths or settings that cannot work together."""


class BadDataError(TrainError):
    """More samples turned out unreadable than the run's budget allows."""


class FeedDiedError(TrainError):
    """The subprocess that fetches and decodes was killed, or failed before it could say why."""


class CheckpointError(TrainError):
    """A checkpoint is missing, incomplete, corrupt, or of another format version."""


class NonFiniteError(TrainError):
    """A loss or gradient is NaN or infinite. Raised before the optimiser step."""
