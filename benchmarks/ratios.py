"""Compares the ratios of a run with the recorded ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.scenarios import Ratio

Verdict = Literal["as recorded", "better", "REGRESSION", "TOO BUSY", "NOT MEASURED"]
RED: tuple[Verdict, ...] = ("REGRESSION", "NOT MEASURED")
ROUNDED = 1e-9
"""Numbers of JSON that differ by less are the same."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ratio, then and now."""

    name: str
    recorded: float
    now: float | None
    tolerance: float
    verdict: Verdict


def compare(ratios: Sequence[Ratio], recorded: Any, now: Any, *, busy: bool = False) -> list[Row]:
    """A row for each number that the record has and a ratio names.

    Args:
        ratios: which numbers.
        recorded: JSON of the record.
        now: JSON of the run.
        busy: others had the machine's cores: what was lost by the clock on the wall is not judged.

    Raises:
        ValueError: a ratio names nothing in the record.
    """
    rows = []
    for ratio in ratios:
        found = list(_find(recorded, ratio.path))
        if not found:
            raise ValueError(f"the record has no {'/'.join(ratio.path)}; record it anew")
        for path, was in found:
            value = _at(now, path)
            verdict = judge(ratio, was, value)
            if busy and ratio.wall_clock and verdict == "REGRESSION":
                verdict = "TOO BUSY"
            rows.append(
                Row(
                    name=" ".join(path),
                    recorded=was,
                    now=value,
                    tolerance=ratio.tolerance,
                    verdict=verdict,
                )
            )
    return rows


def judge(ratio: Ratio, recorded: float, now: float | None) -> Verdict:
    """What to say of a number."""
    if now is None:
        return "NOT MEASURED"
    room = ratio.tolerance * abs(recorded) + ROUNDED
    gained = (now - recorded) * (-1 if ratio.better == "lower" else 1)
    if gained < -room or (ratio.better == "same" and gained > room):
        return "REGRESSION"
    return "better" if gained > room else "as recorded"


def table(rows: Sequence[Row]) -> list[str]:
    """Lines for people."""
    width = max(len(row.name) for row in rows)
    lines = [f"  {'ratio':{width}}{'recorded':>12}{'now':>12}{'may lose':>10}"]
    for row in rows:
        now = "-" if row.now is None else f"{row.now:.4g}"
        line = f"  {row.name:{width}}{row.recorded:12.4g}{now:>12}{row.tolerance:10.0%}"
        lines.append(line + f"   {row.verdict}")
    return lines


def _find(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Where numbers are that a path with ``*`` names, and what they are."""
    if not path:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield (), float(value)
    elif isinstance(value, list):
        # By their number.
        yield from _find({str(n): one for n, one in enumerate(value)}, path)
    elif isinstance(value, dict):
        keys = list(value) if path[0] == "*" else [path[0]] if path[0] in value else []
        for key in keys:
            for rest, number in _find(value[key], path[1:]):
                yield (key, *rest), number


def _at(value: Any, path: tuple[str, ...]) -> float | None:
    found = list(_find(value, path))
    return found[0][1] if found else None
