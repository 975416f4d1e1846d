"""``metrics.jsonl``: one line a step, written as the step ends, in line with the checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from shards.schema import converter
from train.errors import TrainError
from train.files import write_durably


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did. ``step`` counts finished steps, so the first record has ``step`` 1."""

    step: int
    epoch: int
    """Epoch of the batch's first set."""
    index: int
    """Place of the batch's first set in the data order."""
    sets: int
    """View sets (2 + 8 views of one base box) in the batch."""
    loss: float
    teacher_entropy: float
    """Of the teacher's targets, divided by log(prototypes): 1 is uniform, below .1 is collapse."""
    level_variance: tuple[float, ...]
    """Variance over the batch of each level of the teacher's vector, shallow to deep."""
    grad_norm: float
    """L2 norm of all gradients before clipping."""
    lr: float
    wd: float
    momentum: float
    """EMA momentum of the teacher."""
    teacher_temp: float
    data_s: float
    """Seconds spent waiting for the batch."""
    step_s: float
    """Seconds of everything else in the step."""

    @property
    def data_wait(self) -> float:
        """Share of the step's wall time spent waiting for data, 0 to 1."""
        return self.data_s / max(self.data_s + self.step_s, 1e-9)

    @property
    def sets_per_s(self) -> float:
        """View sets trained on a second, waiting included."""
        return self.sets / max(self.data_s + self.step_s, 1e-9)


_DERIVED = ("data_wait", "sets_per_s")


class MetricsLog:
    """Appends records to a JSON-lines file; each line reaches the file as its step ends."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        """Open ``path``, dropping every record after ``resume_step`` (0 for a new run).

        A run killed between two checkpoints leaves lines of steps that will be done again.
        """
        kept = [r for r in read_metrics(path) if r.step <= resume_step] if path.exists() else []
        lines = "".join(_line(record) for record in kept)
        write_durably(path, lambda file: file.write(lines.encode()))
        self._file = path.open("a", buffering=1)

    def append(self, record: StepRecord) -> None:
        """Write one line."""
        self._file.write(_line(record))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[StepRecord]:
    """All records of a run, in order. A last line cut short by a kill is left out.

    Raises:
        TrainError: another line is not a record.
    """
    lines = path.read_text().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            stored = {name: value for name, value in values.items() if name not in _DERIVED}
            records.append(converter.structure(stored, StepRecord))
        except Exception as exc:  # json and cattrs raise an open family: any means "not a record"
            if number == len(lines):
                break
            raise TrainError(
                f"{path}, line {number}: not a metrics record; move the file away to go on"
            ) from exc
    return records


def _line(record: StepRecord) -> str:
    derived = {name: getattr(record, name) for name in _DERIVED}
    return json.dumps(asdict(record) | derived) + "\n"
