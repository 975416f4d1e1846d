"""The guard of the hot path: green when nothing has changed, red for each slowdown planted here."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards.sources
import train.loader.inputs
import train.loader.visits
from benchmarks import guard, guard_flow
from benchmarks.guard import RECORD, compare, main, scenarios, storage
from benchmarks.guard_words import MEANING
from shards.bucket import ObjectStore
from shards.regions import Region, coalesce, cover
from train.loader.base import CTLoader
from train.loader.feed import Loader

RECORDED = json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    with storage(tmp_path_factory.mktemp("guard")) as found:
        yield found


@pytest.fixture
def changed(stored: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Which counters of a scenario differ from the record, with what is planted at that moment."""
    monkeypatch.setattr(guard_flow, "PATIENCE_S", 3.0)
    counters = RECORDED["counters"]

    def run(name: str) -> dict[str, tuple[int | None, int | None]]:
        found = {name: scenarios(*stored, counters)[name]()}
        changes = compare({"counters": {name: counters[name]}}, {"counters": found})
        return {counter: (was, now) for _, counter, was, now, _ in changes}

    return run


def test_nothing_is_red_on_a_machine_that_is_busy(changed):
    busy, buffer = threading.Event(), bytes(2**22)

    def work() -> None:
        while not busy.is_set():
            hashlib.sha256(buffer)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert changed("range s3") == {}
    finally:
        busy.set()
        for thread in threads:
            thread.join()


def test_memory_is_as_recorded(changed):
    for name in ("memory range folder", "memory range s3", "memory gpu profile"):
        assert changed(name) == {}


def test_a_missed_coalesce_is_red(changed, monkeypatch):
    monkeypatch.setattr(shards.sources, "coalesce", partial(coalesce, max_gap=0))
    red = changed("range folder")
    assert red["gets"][1] > red["gets"][0]
    assert red["ranges"][1] > red["ranges"][0]


def test_fewer_requests_are_red_as_well(changed, monkeypatch):
    wide = partial(coalesce, max_gap=2**24, max_range=2**26)
    monkeypatch.setattr(shards.sources, "coalesce", wide)
    red = changed("stream folder")
    assert red["gets"][1] < red["gets"][0]


def test_a_serial_fetch_is_red(changed, monkeypatch):
    open_fetcher = train.loader.inputs.open_fetcher

    def one_at_a_time(store: Any, policy: Any, **more: Any) -> Any:
        return open_fetcher(store, replace(policy, in_flight=1), **more)

    monkeypatch.setattr(train.loader.inputs, "open_fetcher", one_at_a_time)
    assert changed("range s3") == {"peak_in_flight": (32, 1)}


def see_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every chunk of a region for seen."""
    monkeypatch.setattr(
        train.loader.visits, "seen_chunks", lambda draws, origin, grid: np.ones(grid.count**3, bool)
    )


def test_unseen_chunks_decoded_are_red(changed, monkeypatch):
    see_all(monkeypatch)
    red = changed("range folder")
    assert red["chunks"][1] > 1.2 * red["chunks"][0]
    assert red["bytes_asked"][1] > red["bytes_asked"][0]


def test_whole_volumes_decoded_are_red(changed, monkeypatch):
    def everything(start: Any, side: int, shape: tuple[int, int, int], chunk: int) -> Region:
        touched = cover(start, side, shape, chunk)
        every = np.arange(np.prod([-(-length // chunk) for length in shape]))
        return replace(touched, places=every % touched.places[-1], chunks=every)

    monkeypatch.setattr(train.loader.visits, "cover", everything)
    see_all(monkeypatch)
    red = changed("range folder")
    assert red["chunks"][1] > red["chunks"][0]
    assert red["voxels_decoded"][1] > red["voxels_decoded"][0]
    assert red["bytes_asked"][1] > red["bytes_asked"][0]


def test_hedging_is_red(changed, monkeypatch):
    eager = {"hedge_floor_s": 0.0, "hedge_cold_s": 0.0, "hedge_share": 0.9}
    monkeypatch.setattr(guard_flow, "quiet", lambda policy: replace(policy, **eager))
    red = changed("range s3")
    assert red["hedges"][1] > 0
    assert red["gets"][1] > red["gets"][0]


def with_more(monkeypatch: pytest.MonkeyPatch, more: Any) -> None:
    """Load as before, and do something more for each set."""
    load = Loader.load

    def loading(self: Any, visit: Any, fetched: Any, slot: Any) -> None:
        load(self, visit, fetched, slot)
        more(fetched, slot)

    monkeypatch.setattr(Loader, "load", loading)


def test_an_extra_copy_of_what_is_decoded_is_red(changed, monkeypatch):
    def copy(fetched: Any, slot: Any) -> None:
        slot.chunks[:] = slot.chunks.copy()

    with_more(monkeypatch, copy)
    was, now = changed("memory range folder")["decode_kib"]
    # 8 sets of 27 chunks of 64³, two bytes a voxel.
    assert now - was == 8 * 27 * 512


def test_an_allocation_for_each_chunk_is_red(changed, monkeypatch):
    def scratch() -> None:
        np.empty((64, 64, 64), dtype=np.int16)

    def each_chunk(fetched: Any, slot: Any) -> None:
        for _ in fetched.stored():
            scratch()

    with_more(monkeypatch, each_chunk)
    red = changed("memory range folder")
    # All but the first of a set at least: the last line of one is the first of the next.
    assert red["decode_blocks"][1] - red["decode_blocks"][0] > 80


def test_a_copy_of_what_is_read_is_red(changed, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *ask: bytes(bytearray(pread(*ask))))
    assert changed("memory range folder").keys() == {"read_extra_kib"}


def test_a_copy_of_an_answer_is_red(changed, monkeypatch):
    get_range = ObjectStore.get_range

    async def copying(*ask: Any) -> memoryview:
        return memoryview(bytes(await get_range(*ask)))

    monkeypatch.setattr(ObjectStore, "get_range", copying)
    assert changed("memory range s3").keys() == {"read_extra_kib"}


def test_a_copy_of_a_batch_is_red(changed, monkeypatch):
    pytest.importorskip("nvidia.dali")
    renderer = CTLoader.renderer

    def cloning(self: Any, *given: Any) -> Any:
        made = renderer(self, *given)
        render = made.render

        def rendered(counts: Any) -> Any:
            groups, event = render(counts)
            return [group.clone() for group in groups], event

        made.render = rendered
        return made

    monkeypatch.setattr(CTLoader, "renderer", cloning)
    red = changed("views")
    assert red.keys() == {"torch_writes", "torch_bytes_written"}
    was, now = red["torch_bytes_written"]
    # 8 sets of 2 views of 64³ and 8 of 40³, two bytes a voxel.
    assert now - was == 8 * 2 * (2 * 64**3 + 8 * 40**3)


def test_the_command_says_what_changed_and_the_likely_cause(monkeypatch, tmp_path, capsys):
    record = tmp_path / "guard.json"
    found = {name: RECORDED[name] for name in ("data", "plan_version", "versions", "python")}

    def counting(**counters: int) -> None:
        now = found | {"counters": {"range folder": counters}}
        monkeypatch.setattr(guard, "measure", lambda recorded: now)

    counting(gets=92, chunks=1111)
    assert main(["--file", str(record)]) == 2
    assert "nothing is recorded" in capsys.readouterr().err
    assert main(["--file", str(record), "--record", "first"]) == 0
    assert json.loads(record.read_text())["why"] == "first"
    assert main(["--file", str(record)]) == 0
    capsys.readouterr()
    counting(gets=120, chunks=1111, bytes_copied=7)
    assert main(["--file", str(record)]) == 1
    said = capsys.readouterr().out
    assert "gets" in said
    assert "requests are sent twice" in said
    assert "a new counter" in said
    assert "chunks" not in said.split("likely cause")[1].split("why")[0].replace("chunks:", "")


def test_another_input_is_named(monkeypatch, tmp_path, capsys):
    record = tmp_path / "guard.json"
    record.write_text(json.dumps(RECORDED))
    now = json.loads(json.dumps(RECORDED))
    now["data"]["balanced"]["sha256"] = "0"
    now["plan_version"] += 1
    now["versions"]["numcodecs"] = "9"
    now["counters"]["range folder"]["bytes_asked"] += 1
    monkeypatch.setattr(guard, "measure", lambda recorded: now)
    assert main(["--file", str(record)]) == 1
    said = capsys.readouterr().out
    assert "The input is not what was recorded" in said
    assert "The plan has another version" in said
    assert "numcodecs was" in said


def test_every_counter_is_explained():
    named = {name for counters in RECORDED["counters"].values() for name in counters}
    assert named == set(MEANING)
    docs = (RECORD.parents[2] / "docs/benchmarks.md").read_text()
    assert [name for name in named if f"`{name}`" not in docs] == []


def test_the_data_has_what_the_hot_path_must_cope_with():
    data = RECORDED["data"]["balanced"]
    assert data["shards"] > 1
    assert data["absent_chunks"] > 0
    sets_an_epoch = data["volumes"] * guard_flow.VISITS
    assert RECORDED["counters"]["range folder"]["sets"] > 2 * sets_an_epoch
