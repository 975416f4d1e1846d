import io
from types import SimpleNamespace

import pytest
from rich.console import Console

import ingest.terminal
from ingest.errors import Reason
from ingest.scan import ScanResult
from ingest.series import Series
from ingest.sources import FileRef
from ingest.spool import Outcome
from ingest.terminal import TOLD_PER_REASON, Terminal
from ingest.work import GroupResult


def terminal(*, is_terminal=False, **options):
    console = Console(
        file=io.StringIO(), force_terminal=is_terminal, width=200, highlight=False, soft_wrap=True
    )
    return Terminal(console, **options)


def text(one):
    return one.console.file.getvalue()


def series(n):
    return Series(
        series_id=f"{n}", subject_id="s", study_id="t", source_kind="other",
        refs=(FileRef(path=f"/raw/{n}.txt"),), reason=Reason.NOT_MEDICAL_IMAGE, n_files=1,
    )  # fmt: skip


def refuse(one, count):
    with one:
        for n in range(count):
            one.refused(series(n), Outcome(reason="not_medical_image"))
        one.refused(series(999), Outcome(reason="blank"))
    return text(one).splitlines()


def test_many_refusals_of_a_reason_are_counted_not_named():
    lines = refuse(terminal(), TOLD_PER_REASON + 1234)
    assert sum("refused not_medical_image: /raw/" in line for line in lines) == TOLD_PER_REASON
    assert lines[-1] == "refused not_medical_image: 1,234 more like these (--verbose names them)"
    assert "refused blank: /raw/999.txt" in lines


def test_verbose_names_them_all():
    lines = refuse(terminal(verbose=True), TOLD_PER_REASON + 5)
    assert len(lines) == TOLD_PER_REASON + 5 + 1


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(ingest.terminal.time, "monotonic", lambda: now.s)
    return now


def result(number, series, peak):
    return GroupResult(
        build_sha256="b", number=number, shard=None, peak_bytes=peak,
        outcomes={f"{number} {n}": Outcome(reason="ok") for n in range(series)},
    )  # fmt: skip


def test_plain_lines_say_rate_and_time_left_now_and_then(clock):
    one = terminal()
    with one:
        for count in range(1, 4001):
            clock.s += 0.01
            one.files(count)
        one.planned(ScanResult(series=(), n_files=4000), 4)
        for done in range(1, 5):
            clock.s += 20
            one.built(result(done, 10, peak=done % 3 * 10**9))
            one.group_done(done, 4)
    lines = text(one).splitlines()
    assert lines[0] == "scanned 3,000 files, 100 files/s"
    assert lines[1] == "scanned 4000 files: 0 series and stray files, 100 files/s"
    # After 20, 40, 60 and 80 s; a line is due every 30 s, and at the end.
    assert lines[2:] == [
        "built 2 of 4 shards, 0.50 series/s, 0.0 MB/s, about 40 s left",
        "built 4 of 4 shards, 0.50 series/s, 0.0 MB/s, about 0 s left",
    ]
    assert one.peak_bytes == 2 * 10**9


def test_a_terminal_has_a_bar_with_a_rate_and_time_left(monkeypatch):
    one = terminal(is_terminal=True)
    with one:
        for count in range(1, 101):
            one.files(count)
        one.planned(ScanResult(series=(), n_files=100), 2)
        one.built(result(0, 3, peak=1))
        one.group_done(1, 2)
        one._bar.refresh()
    shown = text(one)
    assert "building shards" in shown
    assert "1/2" in shown
    assert "series/s" in shown
