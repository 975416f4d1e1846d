import base64
import io
import re
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ingest.errors import Reason
from ingest.montage import HIGH_HU, LOW_HU, grey, montage, planes_of, png_bytes, strip
from ingest.report import MAX_PREVIEWS, PREVIEWS_PER_PAGE, ReportData, render_report
from ingest.report_lists import EXAMPLES
from ingest.words import SENTENCES
from shards.schema import Contract, MustMatch, Recorded, Totals

VOID = {"meta", "img", "br", "rect", "line"}


class Page(HTMLParser):
    """Fails on tags that do not nest; keeps the text, tags and links."""

    def __init__(self, source):
        super().__init__()
        self.open, self.words, self.tags, self.links = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def row(reason="ok", n_files=1, spacing=(2.5, 0.7, 0.7), key=None, **more):
    return {
        "series_id": "s",
        "detail": "",
        "n_slices": 0,
        "flags": [],
        "verdict": "accepted" if reason == "ok" else "refused",
        "reason": reason,
        "n_files": n_files,
        "spacing_zyx_mm": spacing if reason == "ok" else None,
        "geometry": "uniform" if reason == "ok" else "",
        "key": key,
    } | more


def sample(key, trainable=True):
    return {
        "key": key,
        "shape_zyx": [40, 50, 60],
        "spacing_zyx_mm": [1.5, 1.5, 1.5],
        "trainable": trainable,
        "labelled": False,
    }


def data(rows, samples=(), previews=(), histogram=(0,) * 64, versions=None):
    used = sum(r["n_files"] for r in rows if r["verdict"] == "accepted")
    files = sum(r["n_files"] for r in rows)
    return ReportData(
        rows=rows,
        samples=samples,
        previews=dict(previews),
        hu_histogram=histogram,
        totals=Totals(
            samples=len(samples), trainable=len(samples), shard_bytes=3 << 20, voxels=2_500_000,
            files_in=files, files_used=used, files_refused=files - used,
            series_accepted=sum(r["verdict"] == "accepted" for r in rows),
            series_refused=sum(r["verdict"] == "refused" for r in rows),
        ),
        contract=Contract(
            must_match=MustMatch(),
            recorded=Recorded(
                resampler="antialias", body_crop=True, profile="balanced", versions=versions or {}
            ),
        ),
    )  # fmt: skip


def blocks():
    """A volume with one mark a corner: front left top, and nothing else."""
    hu = np.full((20, 30, 40), -1000, np.int16)
    hu[-5:, :5, -5:] = 1000  # S end, A end (y runs to P), L end.
    return hu


def test_reasons_are_counted_and_said_in_words():
    rows = [row("localizer"), row("localizer"), row("tilted", n_files=28), row(n_files=40)]
    text = " ".join(Page(render_report(data(rows, [sample("k")]))).words)
    assert "70 files found = 40 used + 30 refused" in text
    assert "1 series accepted, 3 refused" in text
    # The more frequent reason comes first, with its series and its files.
    assert re.search(r"scout.*?localizer\s+2\s+2\s.*gantry.*?tilted\s+1\s+28\s", text, re.S)


def test_what_was_regridded_is_counted():
    def taken(geometry):
        return row() | {"geometry": geometry}

    rows = [taken("tilted"), taken("uniform"), taken("missing_slices"), taken("tilted")]
    text = " ".join(Page(render_report(data(rows, []))).words)
    assert "true slice positions: 1 missing_slices, 2 tilted." in text
    assert "regular grid" not in " ".join(Page(render_report(data([row()], []))).words)


def test_flagged_series_say_what_was_measured():
    rows = [
        row(flags=["tilted"], detail="tilt of 18.5 degrees", series_id="a1"),
        row(flags=["tilted", "lossy"], detail="<b>", series_id="a2"),
        row(),
    ]
    page = render_report(data(rows, []))
    text = " ".join(Page(page).words)
    assert re.search(r"tilted\s+2 series.*a1\s+tilt of 18.5 degrees.*lossy\s+1 series", text, re.S)
    assert "&lt;b&gt;" in page
    assert "Nothing was noticed" in render_report(data([row()], []))


def test_examples_are_the_first_by_id_whatever_the_order():
    rows = [row("localizer", series_id=f"s{n:03d}", detail=f"d{n}.") for n in range(EXAMPLES + 5)]
    page = render_report(data(rows, []))
    assert page == render_report(data(rows[::-1], []))
    assert "s000" in page
    assert f"s{EXAMPLES - 1:03d}" in page
    assert f"s{EXAMPLES:03d}" not in page
    assert "and 5 more in" in page


class Many(Sequence):
    """Rows of a large dataset, made as they are read: the test holds none of them."""

    def __init__(self, count, make):
        self.count, self.make = count, make

    def __len__(self):
        return self.count

    def __getitem__(self, n):
        if n >= self.count:
            raise IndexError
        return self.make(n)


def test_page_and_memory_do_not_grow_with_the_archive(unchecked):
    reasons = [reason for reason in Reason if reason != Reason.OK]
    long = "x" * 200

    def series(n):
        if n % 3:
            return row(flags=[f"flag_{n % 30}"], series_id=f"{n:024x}", detail=long)
        return row(reasons[n % len(reasons)], series_id=f"{n:024x}", detail=long)

    keys = [f"k{n:04d}" for n in range(MAX_PREVIEWS)]

    def page(count):
        totals = data([], [sample(k) for k in keys], {k: "QUJD" * 10_000 for k in keys})
        tracemalloc.start()
        html = render_report(replace(totals, rows=Many(count, series)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return html, peak

    small, small_peak = page(3_000)
    large, large_peak = page(30_000)
    assert len(large) < 1.01 * len(small) < 20 << 20
    assert large_peak < 1.1 * small_peak


def test_every_reason_has_its_sentence():
    assert set(SENTENCES) == set(Reason)
    for words in SENTENCES.values():
        assert words.endswith(".")
    assert len(set(SENTENCES.values())) == len(SENTENCES)


def test_the_page_stands_alone_and_text_is_escaped():
    hostile = "<script>alert(1)</script>"
    page = render_report(
        data([row(key="k")], [sample("k")], {"k": "QUJD"}, versions={"numpy": hostile})
    )
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "$" not in page  # Nothing of the template is left over.


def test_an_empty_dataset_is_no_error():
    assert "Nothing was refused" in render_report(data([]))


def test_bars_are_as_high_as_their_counts():
    spacings = [(5.0, 0.7, 0.7)] * 4 + [(2.5, 0.7, 0.7)] * 2 + [(40.0, 0.7, 0.7)]
    page = render_report(data([row(spacing=s) for s in spacings]))
    chart = page.split("<svg")[1]  # The first: distance between slices.
    bars = re.findall(r'<rect x="([\d.]+)".*?height="([\d.]+)"', chart)
    left = {float(x): float(h) for x, h in bars}
    labels = {text: float(x) for x, text in re.findall(r'<text x="([\d.]+)"[^>]*>([^<]*)<', chart)}
    full = left[labels["5"] + 1]
    assert left[min(left, key=lambda x: abs(x - 1 - labels["2.5"]))] == pytest.approx(
        full / 2, abs=0.1
    )
    assert left[min(left, key=lambda x: abs(x - 1 - labels["10"]))] == pytest.approx(
        full / 4, abs=0.1
    )
    assert len(bars) == 3


def test_hu_histogram_is_drawn_over_the_whole_range():
    histogram = [0] * 64
    histogram[16] = 400  # -1024 + 16 * 64 = 0 HU.
    histogram[0] = 100
    chart = render_report(data([], histogram=histogram)).split("<svg")[3]
    bars = {
        float(x): float(h) for x, h in re.findall(r'<rect x="([\d.]+)".*?height="([\d.]+)"', chart)
    }
    labels = {text: float(x) for x, text in re.findall(r'<text x="([\d.]+)"[^>]*>([^<]*)<', chart)}
    assert set(labels) >= {"-1024", "0", "1024", "2560"}
    at = {
        text: h for x, h in bars.items() for text, left in labels.items() if abs(x - 1 - left) < 0.1
    }
    assert at["0"] == pytest.approx(2 * at["-1024"], abs=0.2)  # Square roots of 400 and 100.


def test_previews_are_capped_and_the_rest_counted():
    keys = [f"k{n:04d}" for n in range(MAX_PREVIEWS + 7)]
    page = render_report(
        data([], [sample(k) for k in reversed(keys)], {k: "QUJD" for k in keys[:MAX_PREVIEWS]})
    )
    assert page.count("<img") == MAX_PREVIEWS
    assert "and 7 more" in page
    pages = page.split("<summary>Volumes ")[1:]
    assert [part.count("<img") for part in pages] == [PREVIEWS_PER_PAGE] * 10
    assert page.count("<details open>") == 1  # the browser lays out one page of them at a time
    assert page.index("k0000") < page.index("k0001") < page.index("k0199")


def test_small_volumes_say_that_they_are_not_trained_on():
    page = render_report(data([], [sample("k", trainable=False)], {"k": "QUJD"}))
    assert "too small to train on" in page


def test_planes_stand_as_radiologists_expect():
    """A mark in front, at the top, on the patient's left."""
    hu = np.full((21, 31, 41), -1000, np.int16)
    hu[10, 0, 40] = hu[20, 15, 40] = hu[20, 0, 20] = 1000
    axial, coronal, sagittal = map(grey, planes_of(hu))
    assert np.argwhere(axial == 255).tolist() == [
        [0, 40]
    ]  # Top (anterior), right (left of patient).
    assert np.argwhere(coronal == 255).tolist() == [[0, 40]]  # Top (superior), right.
    assert np.argwhere(sagittal == 255).tolist() == [[0, 0]]  # Top, left (anterior).


def test_grey_levels_span_the_window():
    hu = np.array(
        [[[LOW_HU - 100, LOW_HU, (LOW_HU + HIGH_HU) // 2, HIGH_HU, HIGH_HU + 100]]], np.int16
    )
    assert grey(planes_of(hu)[0]).tolist() == [[0, 0, 127, 255, 255]]


def test_strip_is_true_to_scale():
    """40 × 30 × 20 mm of bone in voxels of unequal sides: the picture shows millimetres."""
    hu = np.full((20, 15, 40), 1000, np.int16)  # 20 × 2 mm high, 15 × 2 mm deep, 40 × 0.5 mm wide.
    picture = np.asarray(strip(hu, (2.0, 2.0, 0.5), 80)) == 255
    sizes = []
    for left in (0, 84, 168):
        lit = np.argwhere(picture[:, left : left + 80])
        sizes.append(tuple((lit.max(axis=0) - lit.min(axis=0) + 1).tolist()))
    # 2 pixels a mm: axial 30 × 20 mm, coronal 40 × 20, sagittal 40 × 30.
    assert sizes == [(60, 40), (80, 40), (80, 60)]


def test_montage_shows_every_volume_and_png_is_the_same_every_time():
    sheet = montage([(f"k{n}", blocks(), (1.0, 1.0, 1.0), None) for n in range(5)], side=60)
    assert png_bytes(sheet) == png_bytes(sheet.copy())
    again = Image.open(io.BytesIO(png_bytes(sheet)))
    assert again.size == sheet.size
    assert "date" not in str(again.info).lower()
    width, height = strip(blocks(), (1, 1, 1), 60).size
    assert sheet.width > 2 * width
    assert sheet.height > 3 * height
    with pytest.raises(ValueError, match="no volume"):
        montage([])


def test_preview_is_a_png_of_the_planes():
    from ingest.sample import PREVIEW_SIDE, preview

    image = Image.open(io.BytesIO(base64.b64decode(preview(blocks(), (1.0, 1.0, 1.0)))))
    assert (image.format, image.mode, image.height) == ("PNG", "L", PREVIEW_SIDE)
