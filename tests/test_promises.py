"""`docs/promises.md` points at tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMISES = (ROOT / "docs/promises.md").read_text()
TESTS = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PROMISES)
ROWS = [line for line in PROMISES.splitlines() if line.startswith("| ") and "---" not in line]


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_named_tests_exist(path: str, name: str) -> None:
    source = (ROOT / path).read_text()
    if name:
        assert re.search(rf"^\s*def {name}\b", source, re.MULTILINE), f"{path} has no {name}"


def test_every_promise_names_what_shows_it() -> None:
    bare = [row for row in ROWS if not re.search(r"`(tests/|make |benchmarks/)", row)]
    # The headings of the tables are the only rows without a test, a benchmark or a target.
    assert {row.split("|")[1].strip() for row in bare} == {"promise"}
