"""``report.html``: what a person reads first. One page, no network, no script, no date, no path."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any

from ingest.exclude import count_excluded
from ingest.report_lists import flagged_html, refused_html, tally
from shards.schema import HU_MAX, HU_MIN, Contract, Totals

MAX_PREVIEWS = 240
"""Volumes shown: about 30 kB each, so that a browser opens the page at once. They are the first by
key, and keys are keyed digests: a fair sample of all."""
PREVIEWS_PER_PAGE = 24
"""Volumes that open at once; no other file is needed for the rest, so none can go stale."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the page shows."""

    rows: Sequence[Mapping[str, Any]]
    """Of ``series.parquet``."""
    samples: Sequence[Mapping[str, Any]]
    """Of ``index.parquet``."""
    previews: Mapping[str, str]
    """PNG in base64 by key."""
    hu_histogram: Sequence[int]
    """Stored voxels a bin of equal width, over the whole HU range."""
    totals: Totals
    contract: Contract
    exclude_sha256: str = ""
    """Digest of the exclusion list; empty where there was none."""
    generation: int = 1
    """Of the dataset; a later one is named."""
    withdrawn: int = 0
    """Samples whose bytes are still in the shards."""


def render_report(data: ReportData) -> str:
    """The page, a function of ``data`` alone."""
    rows = tally(data.rows)
    page = Template(files("ingest").joinpath("report.template.html").read_text())
    return page.substitute(
        headline=f"{data.totals.samples:,} CT volume{'s' * (data.totals.samples != 1)}",
        accounting=_accounting(data.totals)
        + _regridded(rows.geometry)
        + _labelled(data.samples)
        + _excluded(data)
        + _generation(data),
        cards=_cards(data.totals),
        refused=refused_html(rows.refused),
        flagged=flagged_html(rows.flagged),
        slice_chart=_bars(*rows.slice_mm.bars, caption="Distance between slices as scanned, mm"),
        pixel_chart=_bars(*rows.pixel_mm.bars, caption="Pixel spacing as scanned, mm"),
        hu_chart=_bars(
            *_hu_bars(data.hu_histogram), caption="Stored voxels by HU, square-root scale"
        ),
        volumes=_volumes(data),
        contract=_contract(data.contract),
    )


def scaled(number: float, step: int, units: Sequence[str]) -> str:
    """A large number in a unit in which it is short.

    >>> scaled(2_500_000, 1000, ("", "thousand", "million"))
    '2.5 million'
    """
    power = 0
    while number >= step and power < len(units) - 1:
        number /= step
        power += 1
    return f"{number:,.{min(power, 1)}f} {units[power]}".strip()


def _accounting(totals: Totals) -> str:
    return (
        f"{totals.files_in:,} files found = {totals.files_used:,} used + {totals.files_refused:,} "
        f"refused. {totals.series_accepted:,} series accepted, {totals.series_refused:,} refused."
    )


def _regridded(counts: Mapping[str, int]) -> str:
    """A sentence on the volumes whose slices were no regular grid; empty where there are none."""
    if not counts:
        return ""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
    return f" Put on a regular grid from the true slice positions: {kinds}."


def _labelled(samples: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the volumes with labels; empty where there are none."""
    count = sum(row["labelled"] for row in samples)
    return f" Stored with labels: {count:,}." if count else ""


def _excluded(data: ReportData) -> str:
    """A sentence on the exclusion list; empty where there was none."""
    if not data.exclude_sha256:
        return ""
    counts = count_excluded(data.rows)
    kinds = ", ".join(f"{count:,} by {kind}" for kind, count in counts.items())
    return f" Excluded by the list with SHA-256 {data.exclude_sha256}: {kinds}."


def _generation(data: ReportData) -> str:
    """A sentence on a dataset that was changed; empty for a first build."""
    if data.generation == 1:
        return ""
    left = f"; {data.withdrawn:,} withdrawn, in the shards until `ingest compact`"
    return f" Generation {data.generation}{left if data.withdrawn else ''}."


def _cards(totals: Totals) -> str:
    facts = (
        ("volumes", f"{totals.samples:,}"),
        ("trainable", f"{totals.trainable:,}"),
        ("refused series and files", f"{totals.series_refused:,}"),
        ("shard data", scaled(totals.shard_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))),
        ("voxels", scaled(totals.voxels, 1000, ("", "thousand", "million", "billion", "trillion"))),
    )
    return "".join(
        f"<div class=card><b>{value}</b><span>{name}</span></div>" for name, value in facts
    )


def _hu_bars(histogram: Sequence[int]) -> tuple[list[float], list[str]]:
    """Square roots, as air outnumbers bone a thousandfold; a label about every 500 HU."""
    step = (HU_MAX - HU_MIN + 1) / max(1, len(histogram))
    labels = [f"{round(HU_MIN + n * step)}" if n % 8 == 0 else "" for n in range(len(histogram))]
    return [count**0.5 for count in histogram], labels


def _bars(heights: Sequence[float], labels: Sequence[str], caption: str) -> str:
    """A bar chart as inline SVG; each label stands under the left edge of its bar."""
    width, height, base = 420.0, 150.0, 130.0
    top = max([*heights, 1e-9])
    step = width / max(1, len(heights))
    parts = []
    for n, (value, label) in enumerate(zip(heights, labels, strict=True)):
        tall = value / top * (base - 14)
        if value > 0:
            parts.append(
                f'<rect x="{n * step + 1:.1f}" y="{base - tall:.1f}" width="{step - 2:.1f}" '
                f'height="{tall:.1f}"/>'
            )
        if label:
            parts.append(f'<text x="{n * step:.1f}" y="{base + 14:.1f}">{label}</text>')
    parts.append(f'<line x1="0" x2="{width}" y1="{base}" y2="{base}"/>')
    return (
        f'<figure><svg viewBox="0 -4 {width + 24} {height + 4}" role="img" '
        f'aria-label="{html.escape(caption)}">{"".join(parts)}</svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _volumes(data: ReportData) -> str:
    """Three planes of each volume, in the order of keys, a page of them at a time."""
    shown = sorted(
        (row for row in data.samples if row["key"] in data.previews),
        key=lambda row: str(row["key"]),
    )
    shown = shown[:MAX_PREVIEWS]
    pages = []
    for start in range(0, len(shown), PREVIEWS_PER_PAGE):
        page = shown[start : start + PREVIEWS_PER_PAGE]
        figures = "".join(_volume(row, data.previews[row["key"]]) for row in page)
        pages.append(
            f"<details{' open' if start == 0 else ''}><summary>Volumes {start + 1} to "
            f"{start + len(page)}</summary><div class=grid>{figures}</div></details>"
        )
    hidden = len(data.samples) - len(shown)
    more = f"<p>and {hidden:,} more; <code>ingest inspect</code> shows them</p>" if hidden else ""
    return "".join(pages) + more


def _volume(row: Mapping[str, Any], png: str) -> str:
    shape = " \N{MULTIPLICATION SIGN} ".join(str(n) for n in row["shape_zyx"])
    spacing = " \N{MULTIPLICATION SIGN} ".join(f"{mm:.3g}" for mm in row["spacing_zyx_mm"])
    note = "" if row["trainable"] else " · too small to train on"
    return (
        f'<figure class=volume><img alt="axial, coronal and sagittal plane" '
        f'src="data:image/png;base64,{png}"><figcaption><code>{html.escape(row["key"])}</code><br>'
        f"{shape} voxels (z, y, x) at {spacing} mm{note}</figcaption></figure>"
    )


def _contract(contract: Contract) -> str:
    """What weights trained on these shards rely on, and how the shards were made."""
    must, record = contract.must_match, contract.recorded
    spacing = "each volume's own"
    if must.spacing_zyx_mm is not None:
        spacing = (
            " \N{MULTIPLICATION SIGN} ".join(f"{mm:g}" for mm in must.spacing_zyx_mm)
            + " mm (z, y, x)"
        )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    facts = (
        ("HU range", f"{must.hu_range[0]} to {must.hu_range[1]}"),
        ("Spacing", spacing),
        (
            "Orientation",
            f"axes {', '.join(must.axis_order)} increase toward {', '.join(must.orientation)}",
        ),
        ("Contract", contract.sha256),
        ("Resampling", record.resampler),
        ("Cropped to the body", "yes" if record.body_crop else "no"),
        ("Codec profile", record.profile),
        ("Made with", versions),
    )
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in facts)
    return f"<table>{rows}</table>"
