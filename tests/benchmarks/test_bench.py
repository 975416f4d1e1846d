"""`make bench`: ratios against the record, planted regressions, the registry, what is missing."""

import argparse
import copy
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench
from benchmarks.bench import RESULTS, main, missing
from benchmarks.ratios import compare, judge
from benchmarks.scenarios import SCENARIOS, Ratio, Scenario, by_name

RECORD = {
    "wire": {"nginx": {"range": {"efficiency": 0.8, "passed": True}}, "emulator": {"skipped": "x"}},
    "counters": {"k=1": {"range": {"gets": 7.5}}},
}
RATIOS = (
    Ratio(path=("wire", "*", "*", "efficiency"), tolerance=0.25, wall_clock=True),
    Ratio(path=("counters", "*", "*", "gets"), tolerance=0.0, better="same"),
)

NOT_RECORDED = {"gpu"}
"""Nobody has run these in full yet."""


def verdicts(efficiency: float, gets: float, **how: bool) -> list[str]:
    now = copy.deepcopy(RECORD)
    now["wire"]["nginx"]["range"]["efficiency"] = efficiency
    now["counters"]["k=1"]["range"]["gets"] = gets
    return [row.verdict for row in compare(RATIOS, RECORD, now, **how)]


def test_a_ratio_within_its_tolerance_is_as_recorded():
    assert verdicts(0.61, 7.5) == ["as recorded", "as recorded"]


def test_a_planted_regression_is_red():
    assert verdicts(0.59, 7.5) == ["REGRESSION", "as recorded"]
    # Exact counters are red in both directions.
    assert verdicts(0.8, 7.4) == ["as recorded", "REGRESSION"]
    assert verdicts(0.8, 7.6) == ["as recorded", "REGRESSION"]


def test_where_others_have_the_cores_only_the_clock_on_the_wall_is_not_judged():
    assert verdicts(0.59, 7.4, busy=True) == ["TOO BUSY", "REGRESSION"]


@pytest.mark.parametrize(
    ("better", "now", "verdict"),
    [
        ("higher", 1.2, "better"),
        ("higher", 0.8, "REGRESSION"),
        ("lower", 0.8, "better"),
        ("lower", 1.2, "REGRESSION"),
        ("lower", None, "NOT MEASURED"),
    ],
)
def test_the_direction_counts(better, now, verdict):
    assert judge(Ratio(path=(), tolerance=0.1, better=better), 1.0, now) == verdict


def test_what_is_recorded_and_not_measured_is_named():
    found = compare(RATIOS, RECORD, {"wire": {}})
    assert [row.verdict for row in found] == ["NOT MEASURED", "NOT MEASURED"]


def test_lists_are_gone_through_by_number():
    record = {"threads": [{"n": 1.0}, {"n": 2.0}]}
    rows = compare((Ratio(path=("threads", "*", "n"), tolerance=0.1),), record, {"threads": []})
    assert [row.name for row in rows] == ["threads 0 n", "threads 1 n"]


def test_a_ratio_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match="the record has no speed"):
        compare((Ratio(path=("speed",), tolerance=0.1),), RECORD, RECORD)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_exists_and_its_record_has_its_ratios(scenario):
    assert find_spec(scenario.command[0]), scenario.command
    assert "{out}" in scenario.command
    record = RESULTS / scenario.result
    if not record.exists():
        assert scenario.name in NOT_RECORDED, f"{record.name} is not recorded"
        return
    rows = compare(scenario.ratios, json.loads(record.read_text()), {})
    assert len(rows) >= len(scenario.ratios)
    assert not any(row.name.endswith(("_s", "per_s", "seconds")) for row in rows)


def test_all_that_is_recorded_belongs_to_something():
    known = {scenario.result for scenario in SCENARIOS} | {"guard.json"}
    assert {path.name for path in RESULTS.glob("*.json")} <= known


def test_the_list_names_every_scenario(capsys):
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{scenario.name}: {scenario.measures}" in said for scenario in SCENARIOS)


def test_an_unknown_scenario_is_a_line(capsys):
    assert main(["nothing"]) == 2
    assert "no scenario 'nothing'; there are stream," in capsys.readouterr().err


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a scenario whose benchmark writes the given numbers, against ``RECORD``."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results/one.json").write_text(json.dumps(RECORD))
    one = Scenario(
        name="one",
        measures="nothing",
        command=("benchmarks.one", "{out}"),
        result="one.json",
        ratios=RATIOS,
        minutes=0,
    )
    monkeypatch.setattr(bench, "SCENARIOS", (one,))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))

    def run(efficiency: float) -> int:
        now = copy.deepcopy(RECORD)
        now["wire"]["nginx"]["range"]["efficiency"] = efficiency

        def execute(scenario: Scenario, options: argparse.Namespace, out: Path) -> int:
            out.write_text(json.dumps(now))
            return 1  # an aim of its own that it misses

        monkeypatch.setattr(bench, "execute", execute)
        return main(["--results", str(tmp_path / "results"), "--data", str(tmp_path)])

    return run


def test_the_command_fails_on_a_regression_with_a_table(planted, monkeypatch, capsys):
    assert planted(0.8) == 0
    assert "2 ratios, 0 red" in capsys.readouterr().out
    assert planted(0.2) == 1
    said = capsys.readouterr().out
    assert "wire nginx range efficiency" in said
    assert "REGRESSION" in said
    assert json.loads(said.splitlines()[-1])["one"]["red"] == ["wire nginx range efficiency"]
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    assert planted(0.2) == 3
    assert "1 not judged" in capsys.readouterr().out


def test_a_benchmark_without_a_result_is_red(planted, monkeypatch, capsys, tmp_path):
    planted(0.8)
    monkeypatch.setattr(bench, "execute", lambda *_: 1)
    assert main(["--results", str(tmp_path / "results"), "--data", str(tmp_path)]) == 1
    assert "FAILED: benchmarks.one ended with 1" in capsys.readouterr().out


def test_the_quick_form_is_run_with_what_it_asks_for(monkeypatch, tmp_path):
    ran = []

    def run(command: list[str], **how: Any) -> Any:
        ran.append(command)
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    options = argparse.Namespace(
        peers="/p/python", envs=Path("/e"), ct_data=Path("/ct"), data=tmp_path
    )
    assert bench.execute(by_name("stream"), options, Path("/out.json")) == 0
    assert ran[0][:3] == [sys.executable, "-m", "benchmarks.stream"]
    assert ran[0][-2:] == ["--out", "/out.json"]
    assert not any("{" in word for word in ran[0])


def test_what_is_missing_is_said(tmp_path):
    there = argparse.Namespace(peers=sys.executable, ct_data=tmp_path)
    nothing = argparse.Namespace(peers="", ct_data=tmp_path / "none")
    stream = by_name("stream")
    assert missing(stream, there) is None
    assert "no real CT" in str(missing(stream, nothing))
    no_peers = argparse.Namespace(peers="", ct_data=tmp_path)
    assert "no environment of peers" in str(missing(stream, no_peers))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_commands_have_flags_that_exist(scenario):
    module, *words = scenario.command
    source = (Path(__file__).parents[2] / f"{module.replace('.', '/')}.py").read_text()
    flags = [word for word in words if word.startswith("--")]
    assert [flag for flag in flags if f'"{flag}"' not in source] == []
