"""The README's figure: drawn from the records in the repository, with nothing else in it."""

import json
import re
from importlib.metadata import version

import pytest

from benchmarks.figure import FIGURE, RESULTS, draw, main, panels

LOADER = {
    "machine": {"cpu": "AMD EPYC"},
    "runs": {
        "1.5mm": {
            "rounds": 7,
            "cases": {
                name: {"loader": name.split(",")[0], "form": form, "ours_over_it": ratio}
                for name, form, ratio in [
                    ("ours, tuned", "tuned", 1.0),
                    ("bare codec, part", "part", 0.3),
                    ("zarr-python, ordinary", "ordinary", 9.0),
                    ("zarr-python, one read", "one read", 5.5),
                    ("litdata, ordinary", "ordinary", 9.5),
                    ("litdata, one read", "one read", 2.0),
                ]
            },
        }
    },
}

EXPECTED = (
    ("litdata", 9.5),
    ("its best: one read", 2.0),
    ("zarr-python", 9.0),
    ("its best: one read", 5.5),
)


@pytest.fixture
def results(tmp_path):
    (tmp_path / "stream.json").write_bytes((RESULTS / "stream.json").read_bytes())
    return tmp_path


def test_the_figure_in_the_repository_is_drawn_from_its_results():
    assert main(["--check"]) == 0
    drawn_by = re.search(r"Matplotlib v([\d.]+\d)", FIGURE.read_text())
    if drawn_by and drawn_by[1] == version("matplotlib"):
        assert draw(panels(RESULTS)) == FIGURE.read_bytes()
    assert "docs/images/throughput.svg" in (RESULTS.parents[1] / "README.md").read_text()


def test_other_results_need_another_figure(results, tmp_path, capsys):
    out = tmp_path / "figure.svg"
    assert main(["--check", "--results", str(results), "--out", str(out)]) == 1
    assert main(["--results", str(results), "--out", str(out)]) == 0
    assert main(["--check", "--results", str(results), "--out", str(out)]) == 0
    stream = json.loads((results / "stream.json").read_text())
    stream["regions"]["medians"]["ours stream"]["regions_per_s"] += 1
    (results / "stream.json").write_text(json.dumps(stream))
    assert main(["--check", "--results", str(results), "--out", str(out)]) == 1
    assert "not drawn from these results" in capsys.readouterr().out


def test_the_same_results_give_the_same_bytes():
    assert draw(panels(RESULTS)) == draw(panels(RESULTS))


def test_only_recorded_numbers_are_shown():
    recorded = json.loads((RESULTS / "stream.json").read_text())
    regions, wire = panels(RESULTS)[-2:]
    rates = {row["regions_per_s"] for row in recorded["regions"]["medians"].values()}
    assert {value for _, value in regions.bars} == rates
    shares = [way["efficiency"] for ways in recorded["wire"].values() for way in ways.values()]
    assert [value for _, value in wire.bars] == shares
    assert recorded["machine"]["cpu"] in regions.note


def test_peers_are_shown_as_usual_and_in_their_best_form(results):
    (results / "loader.json").write_text(json.dumps(LOADER))
    first = panels(results)[0]
    assert first.bars == EXPECTED
    assert set(first.pale) == {"its best: one read"}
    assert draw(panels(results)).startswith(b"<?xml")
