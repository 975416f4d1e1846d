"""The table for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from train.profile.result import ProfileResult, StageRate

LIMITS = {
    "read": "bare reads",
    "codec": "bare codec",
    "memcpy": "memcpy",
    "h2d": "copies to the GPU",
    "cached_batches": "training on cached batches",
}
UNITS = {"plan": "thread", "fetch": "in flight", "decode": "threads", "graph": "threads"}


def render(result: ProfileResult) -> RenderableType:
    """The result: rates, waits, facts, and what to do."""
    parts: list[RenderableType] = [_stages(result), _run(result), "\n".join(_facts(result))]
    if result.headspace is not None or result.consumer is not None:
        parts.append("\n".join(_headspace(result)))
    parts.append(f"Bottleneck: {result.bottleneck.sentence}")
    return Group(*parts)


def _stages(result: ProfileResult) -> Table:
    table = Table(title=f"{result.sets_per_s:.1f} sets/s end to end", title_justify="left")
    table.add_column("alone")
    for heading in ("sets/s", "GB/s", "of its limit", "sets/s at"):
        table.add_column(heading, justify="right")
    ratios, limits = result.ratios, result.limits
    against = {
        "fetch": f"{ratios.fetch_of_read:.0%} of read {limits.read:.2f}",
        "decode": f"{ratios.decode_of_codec:.0%} of codec {limits.codec:.2f}\n"
        f"{ratios.decode_of_memcpy:.0%} of memcpy {limits.memcpy:.2f}",
    }
    for name, rate in result.stages.items():
        gb_per_s = "" if rate.gb_per_s is None else f"{rate.gb_per_s:.2f}"
        limit = against.get(name, "")
        table.add_row(name, f"{rate.sets_per_s:.1f}", gb_per_s, limit, _sweep(name, rate))
    return table


def _sweep(name: str, rate: StageRate) -> str:
    """Rates by setting, the present one marked."""
    points = [
        f"{'[bold]' if point.at == rate.at else ''}{point.at}: {short(point.sets_per_s)}"
        f"{'[/bold]' if point.at == rate.at else ''}"
        for point in rate.sweep
    ]
    return f"{'  '.join(points)}  {unit(name, rate)}"


def unit(name: str, rate: StageRate) -> str:
    """What the numbers of a stage's sweep count."""
    return "thread" if [point.at for point in rate.sweep] == [1] else UNITS[name]


def short(rate: float) -> str:
    """Three digits.

    >>> short(1234.5), short(23.456), short(0.0123)
    ('1234', '23.5', '0.0123')
    """
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _run(result: ProfileResult) -> Table:
    """Where the time of the run went, and what waited for what."""
    table = Table(title="in the run", title_justify="left")
    table.add_column("")
    for heading in ("consumer's time", "busy", "waits for the one before", "for the one after"):
        table.add_column(heading, justify="right")
    busy = {
        "plan": "{:.2f} threads",
        "fetch": "{:.1f} sets on their way",
        "decode": "{:.2f} threads",
        "graph": "{:.0%} of its thread",
    }
    up = {"decode": "{:.1f} slots, for bytes", "graph": "{:.0%}, for sets"}
    down = {"fetch": "{:.1f} sets, for a slot", "decode": "{:.1f} sets, decoded"}
    for name, rate in result.stages.items():
        table.add_row(
            name,
            f"{result.time[name]:.0%}",
            busy[name].format(rate.run.busy),
            up[name].format(rate.run.wait_up) if name in up else "",
            down[name].format(rate.run.wait_down) if name in down else "",
        )
    table.add_row("consumer", f"{result.time['consumer']:.0%}", "", "", "")
    return table


def _facts(result: ProfileResult) -> Iterator[str]:
    shuffle = result.shuffle
    of = result.ratios.loader_of
    loader_of = ", ".join(f"{short(of[name])} of {LIMITS[name]}" for name in of)
    yield (
        f"{result.loader} loader, {result.resampler}, {result.device}, batch {result.batch_size}, "
        f"{result.threads} threads, {result.in_flight} reads in flight, feed in {result.feed}; "
        f"{result.cores_used:.1f} of {result.cpu_count} cores used"
    )
    yield (
        f"data wait {result.data_wait:.0%} of the consumer's time; end to end "
        f"{short(result.ratios.loader_of_slowest_stage)} of the slowest stage alone, {loader_of}"
    )
    yield (
        f"{result.mode}; amplification: read {result.read_amplification:.2f}, "
        f"decode {result.decode_amplification:.2f}, requests {result.request_amplification:.2f}; "
        f"{result.retries} retries, {result.hedges} hedges"
    )
    yield (
        f"shuffle: {shuffle.repeated_subjects} subjects twice in one of {shuffle.batches} batches; "
        f"a batch draws from {shuffle.shards_per_batch:.0%} of the shards that it could; order in "
        f"the dataset and in the epoch correlate by {shuffle.file_order:.2f}; "
        f"{shuffle.neighbours_again:.0%} follow the same volume in the next epoch; visits of a "
        f"volume are {shuffle.visit_distance} steps apart"
    )
    yield (
        f"coverage: the outermost voxels of an axis are in {result.coverage.evenness:.0%} as many "
        "views as its average voxel"
    )
    load = f"load of the machine before: {result.load_before:.1f}"
    yield f"measured in {result.whole_s:.0f} s; {load}"


def _headspace(result: ProfileResult) -> Iterator[str]:
    found, consumer = result.headspace, result.consumer
    if consumer is not None:
        yield (
            f"headspace {consumer.headspace:.2f} for a consumer of {consumer.sets_per_s:g} sets/s; "
            f"without a pause the loader gives {consumer.loader_sets_per_s:.1f}"
        )
    if found is not None:
        yield (
            f"headspace {found.ratio:.3f}: {found.preset} on {found.device} takes "
            f"{found.steps_per_s:.2f} steps/s with the loader, {found.cached_steps_per_s:.2f} with "
            f"cached batches (medians of {found.pairs} pairs of blocks of {found.steps} steps of "
            f"{found.batch_size} sets); data wait {found.data_wait:.1%}"
        )
