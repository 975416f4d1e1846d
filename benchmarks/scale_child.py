"""One measured step of ``benchmarks.scale``, in a process of its own.

Memory is the most that was resident (``VmHWM``; ``ru_maxrss`` would remember the parent),
interpreter and imports included, and given without them too. Nothing heavy is imported before the
clock of the imports starts.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

FILTER = "slice_mm <= 3 and contrast and source in ['site-01', 'site-02', 'site-03']"
ITEMS = 1000
GLOBAL_BATCH = 64 * 8
"""64 GPUs, 8 sets each."""
BOX_SIDE = 129


def main() -> None:
    """Run step ``argv[1]`` on the dataset ``argv[2]``; print what it took as a JSON line."""
    step, url = sys.argv[1:]
    result: dict[str, Any] = {"bare_mb": _peak_mb()}
    start = time.perf_counter()
    import shards.dataset  # noqa: F401

    result |= {"import_s": time.perf_counter() - start, "imports_mb": _peak_mb()}
    start, cpu = time.perf_counter(), time.process_time()
    result |= STEPS[step](url)
    result |= {
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": _peak_mb(),
    }
    print(json.dumps(result))


def _peak_mb() -> float:
    return _status_mb("VmHWM")


def _now_mb() -> float:
    return _status_mb("VmRSS")


def _status_mb(field: str) -> float:
    with open("/proc/self/status") as file:
        [line] = (line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def manifest(url: str) -> dict[str, Any]:
    """The manifest alone."""
    from shards.opening import read_manifest
    from shards.store import open_store

    return {"shards": len(read_manifest(open_store(url), url).shards)}


def plan(url: str) -> dict[str, Any]:
    """What the gate is on: all that is known before the first box is drawn."""
    from shards.dataset import Dataset

    samples = Dataset.open(url).plan_samples()
    return {"samples": int(samples.trainable.sum())}


def plan_filtered(url: str) -> dict[str, Any]:
    """The same with a filter and a split by subject."""
    from shards.dataset import Dataset

    samples = Dataset.open(url).plan_samples(where=FILTER, holdout=0.05, split="train")
    return {"samples": int(samples.trainable.sum())}


def items(url: str) -> dict[str, Any]:
    """From nothing to the first visits of a rank, chunk tables of their shards included."""
    from shards.chunk_rows import DatasetChunks
    from shards.dataset import Dataset
    from shards.modes import choose, whole_boxes
    from shards.plan import Plan, PlanConfig
    from shards.regions import cover
    from shards.sources import spans_of_box, spans_of_run
    from shards.stats import Stats

    marks = [time.perf_counter()]
    stats = Stats()
    dataset = Dataset.open(url)
    with dataset.chunk_tables(stats) as tables:
        samples = dataset.plan_samples(chunks=tables)
        marks.append(time.perf_counter())
        config = PlanConfig(seed=0, global_batch=GLOBAL_BATCH, box_side=BOX_SIDE)
        planned = Plan(config, samples, dataset.manifest.generation_id)
        planned.sample_of(0)
        marks.append(time.perf_counter())
        for index in range(ITEMS):
            planned.item(index)
        marks.append(time.perf_counter())
        counted = stats.counters()
        rows = DatasetChunks(dataset, samples, tables)
        chosen = choose("auto", planned, rows, whole_boxes(planned, samples))
        streamed, ranged, volumes = [], [], 0
        for index in range(0, GLOBAL_BATCH, 2):  # first visits of every other lane
            run = planned.run_ahead(index)
            streamed += spans_of_run(rows, run)
            volumes += len(run)
            item = planned.item(index)
            shape = tuple(samples.shapes[item.sample].tolist())
            region = cover(item.box_start_zyx, BOX_SIDE, shape, samples.chunk_side)
            ranged += spans_of_box(rows, item.sample, region)
    sets = {"stream": volumes * config.visits, "range": GLOBAL_BATCH // 2}
    names = ("load_s", "order_s", "items_s")
    spent = {n: b - a for n, a, b in zip(names, marks, marks[1:], strict=False)}
    return spent | {
        "items": ITEMS,
        "table_requests": counted["table_requests"],
        "table_bytes": counted["table_bytes"],
        "mode": chosen.mode,
        "ways": {
            way: {
                "requests": len(spans) / sets[way],
                "bytes": sum(span.stop - span.start for span in spans) / sets[way],
            }
            for way, spans in (("stream", streamed), ("range", ranged))
        },
    }


def footer(url: str) -> dict[str, Any]:
    """The chunk table opened, and one shard's rows read."""
    from shards.dataset import Dataset
    from shards.stats import Stats

    dataset, stats = Dataset.open(url), Stats()
    dataset.plan_samples()
    before = _now_mb()
    start = time.perf_counter()
    tables = dataset.chunk_tables(stats)
    opened = time.perf_counter()
    tables.row(len(dataset) // 2)
    return {
        "open_s": opened - start,
        "first_row_s": time.perf_counter() - opened,
        "added_mb": _now_mb() - before,
        **stats.counters(),
    }


def footer_by_pyarrow(url: str) -> dict[str, Any]:
    """The same footer, parsed by pyarrow as usual."""
    import pyarrow.parquet as pq

    before = _now_mb()
    file = pq.ParquetFile(f"{url}/chunks.parquet")
    return {
        "row_groups": file.metadata.num_row_groups,
        "footer_bytes": file.metadata.serialized_size,
        "added_mb": _now_mb() - before,
    }


STEPS = {
    step.__name__: step
    for step in (manifest, plan, plan_filtered, items, footer, footer_by_pyarrow)
}

if __name__ == "__main__":
    main()
