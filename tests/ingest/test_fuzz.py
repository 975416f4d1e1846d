"""The fuzzer's first 500 cases, its last long run, and that it sees what it is there to see."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ingest.pipeline
from tests.fuzz import run
from tests.fuzz.check import own_box, run_case, unharmed
from tests.fuzz.harm import Case, make_case
from tests.fuzz.seeds import NAMES, seed

LAST = Path(run.__file__).with_name("last_run.json")


def test_500_cases() -> None:
    """Harmed DICOM, NIfTI and archives through scan and build, in two processes."""
    tally = run.fuzz(run=1, cases=500, workers=2)
    assert tally.failures == []
    assert tally.cases == 500
    assert set(tally.seeds) == set(NAMES)
    # Not all is refused, and not all passes: the cases are worth something.
    assert tally.content["equal"] > 20
    assert len(tally.reasons) > 8


def test_the_last_long_run_found_nothing() -> None:
    record = json.loads(LAST.read_text())
    assert record["failures"] == []
    assert record["cases"] >= record["distinct_places"] >= 10_000
    assert set(record["cases_by_seed"]) == set(NAMES)
    assert sum(record["cases_by_seed"].values()) == record["cases"]


def test_a_case_is_a_function_of_its_number() -> None:
    one, again, other = make_case(1, 7), make_case(1, 7), make_case(2, 7)
    assert (one.files, one.harm, one.place) == (again.files, again.harm, again.place)
    assert one.files != other.files


# ---------------------------------------------------------------- the fuzzer sees what is wrong


@pytest.fixture
def case() -> Case:
    """Nothing harmed."""
    return Case(0, seed("explicit"), "cut", 0, (), dict(seed("explicit").files), "", False)


@pytest.fixture
def problems(case, tmp_path):
    """Run the case; the problems as one text."""
    return lambda: " | ".join(run_case(case, own_box(tmp_path, 0)).problems)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_the_unharmed(name: str, tmp_path) -> None:
    chosen = seed(name)
    case = Case(0, chosen, "bit", 0, (), dict(chosen.files), "", False)
    result = run_case(case, own_box(tmp_path, 0))
    assert result.problems == []
    assert result.content == ([] if name.startswith("bomb") else ["equal"])


def test_a_traceback_is_seen(problems, monkeypatch) -> None:
    monkeypatch.setattr(ingest.pipeline, "plan_build", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in problems()


def test_a_lost_file_is_seen(problems, monkeypatch) -> None:
    real = ingest.pipeline.scan

    def lossy(*args, **kwargs):
        found = real(*args, **kwargs)
        return replace(found, n_files=found.n_files + 1)

    monkeypatch.setattr(ingest.pipeline, "scan", lossy)
    assert "do not add up" in problems()


@pytest.mark.parametrize("where", ["../stray", "../../escaped"])
def test_a_write_outside_is_seen(where, problems, monkeypatch) -> None:
    real = ingest.pipeline.plan_build

    def writes(raw, *args):
        (Path(raw[0]) / where).write_text("x")
        return real(raw, *args)

    monkeypatch.setattr(ingest.pipeline, "plan_build", writes)
    assert "outside OUT" in problems()


def test_a_blank_volume_is_seen(problems, monkeypatch) -> None:
    from tests.fuzz import check

    class Blank:
        def __init__(self, sample) -> None:
            self.hu, self.affine, self.meta = np.zeros_like(sample.hu), sample.affine, sample.meta

    truth = unharmed(False)
    monkeypatch.setattr(check.Dataset, "open", lambda out: [Blank(truth)])
    assert "blank" in problems()


def sleeps(*_: object) -> None:
    """A worker that hangs at its first case."""
    time.sleep(60)


def dies(run: int, indices: range, at, *_: object) -> None:
    """A worker that dies at each case."""
    at[0] = indices[0]
    raise SystemExit(7)


def test_a_hang_is_seen(monkeypatch) -> None:
    monkeypatch.setattr(run, "work", sleeps)
    monkeypatch.setattr(run, "START_S", -run.LIMIT_S)
    tally = run.fuzz(run=1, cases=1, workers=1)
    assert [f["problems"] for f in tally.failures] == [[f"a hang: more than {run.LIMIT_S:g} s"]]


def test_a_crash_is_seen_and_the_rest_is_run(monkeypatch) -> None:
    monkeypatch.setattr(run, "work", dies)
    tally = run.fuzz(run=1, cases=3, workers=1)
    assert [f["index"] for f in tally.failures] == [0, 1, 2]
    assert "exit code 7" in str(tally.failures[0]["problems"])
