"""The wheel ships the four packages and nothing else, and works where it is installed."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"ingest", "shards", "coralbay", "train"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", target, wheel], check=True, capture_output=True)
    return target


def run_elsewhere(installed: Path, *command: str) -> str:
    """Run in a folder that is not the checkout, with the wheel's own files first on the path."""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *command],
        check=True,
        capture_output=True,
        text=True,
        cwd=installed,
        env=env,
    )
    return done.stdout


def test_top_level_names_are_exactly_the_four_packages(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == PACKAGES


def test_every_module_and_type_marker_is_shipped(wheel: Path) -> None:
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        assert f"{package}/py.typed" in shipped
        expected = {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py")}
        assert expected <= shipped


def test_names_belong_to_this_distribution_alone(installed: Path) -> None:
    code = (
        "import importlib.metadata as m, json;"
        "d = m.packages_distributions();"
        f"print(json.dumps({{n: sorted(set(d[n])) for n in {sorted(PACKAGES)}}}))"
    )
    assert json.loads(run_elsewhere(installed, "-c", code)) == {n: ["coralbay"] for n in PACKAGES}


@pytest.mark.parametrize("command", ["ingest", "coralbay"])
def test_the_command_runs_from_the_wheel(installed: Path, command: str) -> None:
    where = run_elsewhere(installed, "-c", "import ingest; print(ingest.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    assert "usage" in run_elsewhere(installed, str(installed / "bin" / command), "--help").lower()
