"""The `coralbay` command: parse, set up logging, call one function, map errors to exit codes.

Exit codes: 0 done (or stopped by SIGTERM, with a checkpoint), 1 failed, 2 usage; 130 after Ctrl-C,
as shells expect. Heavy packages are imported by the command that needs them, so help is instant.
"""

from __future__ import annotations

import errno
import json
import logging
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from train.commands import Command, Pretrain, ProfileLoader, Resume
from train.data import StreamConfig
from train.errors import TrainError, UsageError

if TYPE_CHECKING:
    from train.metrics import StepRecord
    from train.run import FitSummary

logger = logging.getLogger(__name__)

SMOOTHED_STEPS = 20
"""Steps over which a terminal's data wait is taken: a single one jumps between 0 and 100 %."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    console = Console(stderr=True)
    _set_up_logging(console)
    from shards.errors import NotADatasetError, ShardError

    try:
        command = tyro.cli(
            Command,
            prog="coralbay",
            description="Pretrain CT foundation models from shards, and profile the loader.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        match command:
            case Pretrain():
                return _pretrain(command, console)
            case Resume():
                return _resume(command, console)
            case ProfileLoader():
                return _profile_loader(command)
    except (UsageError, NotADatasetError) as exc:
        return _complain(exc, 2)
    except (TrainError, ShardError) as exc:
        return _complain(exc, 1)
    except (OSError, RuntimeError) as exc:
        return _complain_of_machine(exc)


def _pretrain(command: Pretrain, console: Console) -> int:
    from train.presets import configure
    from train.run import start

    config = configure(
        command.preset,
        command.shards,
        total_steps=command.total_steps,
        batch_size=command.batch_size,
        seed=command.seed,
        device=command.device,
        loader=command.loader,
        threads=command.threads,
        checkpoint_every=command.checkpoint_every,
        data=command.data.config(),
        stream=command.stream,
    )
    with _watching(console) as watch:
        summary = start(config, command.run, steps=command.steps, watch=watch)
    return _finish(summary, watch, as_json=command.json)


def _resume(command: Resume, console: Console) -> int:
    from train.run import resume

    with _watching(console) as watch:
        summary = resume(
            command.run,
            steps=command.steps,
            watch=watch,
            # Nothing given: as the run was started.
            stream=None if command.stream == StreamConfig() else command.stream,
            shards=command.shards or None,
            accept_new_data=command.accept_new_data,
        )
    return _finish(summary, watch, as_json=command.json)


def _profile_loader(command: ProfileLoader) -> int:
    from train.profile.cli import run_profile

    return run_profile(command)


class _Watch:
    """Shows a run as it goes, and asks it to stop when a signal has come."""

    def __init__(self, progress: Progress | None) -> None:
        self.signal: int | None = None
        self._last: deque[StepRecord] = deque(maxlen=SMOOTHED_STEPS)
        self._progress = progress
        self._task = progress.add_task("pretraining", total=None) if progress else None

    @property
    def should_stop(self) -> bool:
        """Whether to save a checkpoint and end after the present step."""
        return self.signal is not None

    def step(self, record: StepRecord, last_step: int) -> None:
        """Show one finished step: on a terminal its data wait is that of the last steps."""
        self._last.append(record)
        if self._progress is not None and self._task is not None:
            text = _shown(record.loss, self.data_wait)
            self._progress.update(
                self._task, completed=record.step, total=last_step, description=text
            )
        else:
            text = _shown(record.loss, record.data_wait)
            logger.info("step %d/%d  %s", record.step, last_step, text)

    @property
    def data_wait(self) -> float:
        """Share of the time of the last steps that went into waiting for data."""
        waited = sum(record.data_s for record in self._last)
        return waited / max(1e-9, waited + sum(record.step_s for record in self._last))


def _shown(loss: float, data_wait: float) -> str:
    return f"loss {loss:.3f}  data wait {data_wait:.0%}"


@contextmanager
def _watching(console: Console) -> Iterator[_Watch]:
    """A progress bar on a terminal, a line a step elsewhere; SIGINT and SIGTERM ask to stop."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console) if console.is_terminal else None
    watch = _Watch(progress)

    def on_signal(number: int, frame: FrameType | None) -> None:
        watch.signal = number
        # A second signal means now: it is not caught.
        signal.signal(number, signal.SIG_DFL)
        logger.warning("%s: saving a checkpoint after this step", signal.Signals(number).name)

    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, on_signal) for number in caught}
    try:
        if progress is None:
            yield watch
        else:
            with progress:
                yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(summary: FitSummary, watch: _Watch, *, as_json: bool) -> int:
    done = f"step {summary.step} of {summary.total_steps}, loss {summary.loss:.3f}"
    print(f"{'stopped' if watch.should_stop else 'done'}: {done}")
    print(f"checkpoint  {summary.checkpoint}")
    print(f"metrics     {summary.metrics}")
    print(f"loss curve  {summary.plot}")
    if summary.step < summary.total_steps:
        print(f"go on with  coralbay resume {summary.run}")
    if as_json:
        print(json.dumps(asdict(summary), default=str))
    return 130 if watch.signal == signal.SIGINT else 0


def _set_up_logging(console: Console) -> None:
    """Rich lines on a terminal, plain ones elsewhere; always on standard error."""
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False)
        form = "%(message)s"
    else:
        handler = logging.StreamHandler(sys.stderr)
        form = "%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=[handler], force=True)


def _complain_of_machine(exc: OSError | RuntimeError) -> int:
    """One line where the machine is too small for a sound run; all else is a bug and raised."""
    import torch

    if isinstance(exc, torch.OutOfMemoryError):
        way_out = "use a smaller --batch-size or --preset, or a larger GPU"
        return _complain(f"out of GPU memory; {way_out}", 1)
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        where = exc.filename or "the run folder"
        way_out = "make room, then go on with `coralbay resume`: the last checkpoint is whole"
        return _complain(f"{where}: {exc.strerror}; {way_out}", 1)
    raise exc


def _complain(what: object, code: int) -> int:
    print(f"coralbay: {what}", file=sys.stderr)
    return code
