"""``report.html``: what a person reads first. One page, no network, no script, no date, no path."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any

from ingest.stack import REGRIDDED
from ingest.words import sentence
from shards.schema import HU_MAX, HU_MIN, Contract, Totals

MAX_PREVIEWS = 200
"""Volumes shown: beyond this the page would grow past what a browser opens at once."""
_SPACING_EDGES_MM = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0)


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


def render_report(data: ReportData) -> str:
    """The page, a function of ``data`` alone."""
    accepted = [row for row in data.rows if row["verdict"] == "accepted"]
    slice_mm = [row["spacing_zyx_mm"][0] for row in accepted]
    pixel_mm = [row["spacing_zyx_mm"][2] for row in accepted]
    page = Template(files("ingest").joinpath("report.template.html").read_text())
    return page.substitute(
        headline=f"{data.totals.samples} CT volume{'s' * (data.totals.samples != 1)}",
        accounting=_accounting(data.totals) + _regridded(accepted),
        cards=_cards(data.totals),
        refused=_refused(data.rows),
        slice_chart=_bars(*_binned(slice_mm), caption="Distance between slices as scanned, mm"),
        pixel_chart=_bars(*_binned(pixel_mm), caption="Pixel spacing as scanned, mm"),
        hu_chart=_bars(
            *_hu_bars(data.hu_histogram), caption="Stored voxels by HU, square-root scale"
        ),
        volumes=_volumes(data),
        contract=_contract(data.contract),
    )


def _accounting(totals: Totals) -> str:
    return (
        f"{totals.files_in:,} files found = {totals.files_used:,} used + {totals.files_refused:,} "
        f"refused. {totals.series_accepted:,} series accepted, {totals.series_refused:,} refused."
    )


def _regridded(accepted: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the volumes whose slices were no regular grid; empty where there are none."""
    counts = Counter(row["geometry"] for row in accepted if row["geometry"] in REGRIDDED)
    if not counts:
        return ""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
    return f" Put on a regular grid from the true slice positions: {kinds}."


def _cards(totals: Totals) -> str:
    facts = (
        ("volumes", f"{totals.samples:,}"),
        ("trainable", f"{totals.trainable:,}"),
        ("refused series and files", f"{totals.series_refused:,}"),
        ("shard data", f"{totals.shard_bytes / 2**20:,.1f} MiB"),
        ("voxels", f"{totals.voxels / 1e6:,.1f} M"),
    )
    return "".join(
        f"<div class=card><b>{value}</b><span>{name}</span></div>" for name, value in facts
    )


def _refused(rows: Sequence[Mapping[str, Any]]) -> str:
    """Table of reasons, the most frequent first."""
    series: Counter[str] = Counter()
    inputs: Counter[str] = Counter()
    for row in rows:
        if row["verdict"] == "refused":
            series[row["reason"]] += 1
            inputs[row["reason"]] += row["n_files"]
    if not series:
        return "<p>Nothing was refused.</p>"
    lines = [
        f"<tr><td>{html.escape(sentence(reason))}</td><td><code>{html.escape(reason)}</code></td>"
        f"<td class=n>{count:,}</td><td class=n>{inputs[reason]:,}</td></tr>"
        for reason, count in sorted(series.items(), key=lambda item: (-item[1], item[0]))
    ]
    head = "<tr><th>Why</th><th>Code</th><th class=n>Series</th><th class=n>Files</th></tr>"
    return f"<table>{head}{''.join(lines)}</table>"


def _binned(values: Sequence[float]) -> tuple[list[float], list[str]]:
    """Counts and labels over the spacing bins; the last bin is open."""
    edges = _SPACING_EDGES_MM
    counts = [0.0] * len(edges)
    for value in values:
        # A hair of tolerance keeps 2.5 mm computed from positions in the bin that 2.5 opens.
        counts[sum(value + 1e-4 >= edge for edge in edges[1:])] += 1
    return counts, [f"{edge:g}" for edge in edges]


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
    """Three planes of each volume, in the order of keys."""
    figures = []
    for row in sorted(data.samples, key=lambda r: str(r["key"])):
        if (png := data.previews.get(row["key"])) is None:
            continue
        shape = " \N{MULTIPLICATION SIGN} ".join(str(n) for n in row["shape_zyx"])
        spacing = " \N{MULTIPLICATION SIGN} ".join(f"{mm:.3g}" for mm in row["spacing_zyx_mm"])
        note = "" if row["trainable"] else " · too small to train on"
        figures.append(
            f'<figure class=volume><img alt="axial, coronal and sagittal plane" '
            f'src="data:image/png;base64,{png}"><figcaption><code>{html.escape(row["key"])}</code><br>'
            f"{shape} voxels (z, y, x) at {spacing} mm{note}</figcaption></figure>"
        )
    hidden = len(data.samples) - len(figures)
    more = f"<p>and {hidden:,} more</p>" if hidden else ""
    return f"<div class=grid>{''.join(figures)}</div>{more}"


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
