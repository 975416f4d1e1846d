"""What each way in asks for, exactly, and that both give the stored bytes."""

import itertools
from concurrent.futures import Future

import numpy as np
import pytest

from shards.chunk_rows import DatasetChunks
from shards.dataset import Dataset
from shards.errors import CorruptShardError
from shards.fetched import Fetched, Part
from shards.modes import choose, whole_boxes
from shards.plan import Plan, PlanConfig
from shards.regions import cover
from shards.sources import RangeSource, StreamSource
from shards.stats import Stats
from shards.testing import write_toy_dataset

BOX = 65


class FileFetcher:
    """Answers at once from a folder, and notes what was asked."""

    def __init__(self, folder):
        self.folder, self.asked, self.fresh = folder, [], 0

    def submit(self, path, offset, nbytes, priority=0, *, fresh=False):
        self.asked.append((priority, path, offset, nbytes))
        self.fresh += fresh
        answer = Future()
        data = (self.folder / path).read_bytes()[offset : offset + nbytes]
        answer.set_result(memoryview(data))
        return answer

    def close(self):
        pass


class Setup:
    def __init__(self, folder, **config):
        self.dataset = Dataset.open(folder)
        self.tables = self.dataset.chunk_tables()
        self.samples = self.dataset.plan_samples(chunks=self.tables)
        self.rows = DatasetChunks(self.dataset, self.samples, self.tables)
        settings = {"seed": 1, "global_batch": 2, "box_side": BOX, "visits": 2} | config
        self.plan = Plan(PlanConfig(**settings), self.samples, "g")
        self.fetcher = FileFetcher(folder)
        self.stats = Stats()

    def region(self, item):
        shape = tuple(self.samples.shapes[item.sample].tolist())
        return cover(item.box_start_zyx, BOX, shape, 64)

    def run(self, mode, sets, world=1, rank=0):
        """Fetch the first sets of a rank; the items and what came."""
        source = (
            StreamSource(self.plan, self.rows, self.fetcher, self.stats)
            if mode == "stream"
            else RangeSource(self.rows, self.fetcher, self.stats)
        )
        steps = (self.plan.rank_indices(step, rank, world) for step in itertools.count())
        found = []
        for index in itertools.islice(itertools.chain.from_iterable(steps), sets):
            item = self.plan.item(index)
            found.append((item, source.fetch(item, self.region(item))))
            source.done(item)
        self.held = source.held_bytes
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 16, shape=(70, 100, 130), per_shard=8)


@pytest.mark.parametrize("mode", ["range", "stream"])
def test_pieces_are_the_stored_chunks(folder, mode):
    setup = Setup(folder)
    for item, fetched in setup.run(mode, 40):
        region = setup.region(item)
        offsets, nbytes = setup.rows.chunks(item.sample)
        data = (folder / setup.rows.shard(item.sample)).read_bytes()
        stored = {place: bytes(chunk) for place, chunk in fetched.stored()}
        assert sorted([*stored, *fetched.absent]) == sorted(region.places.tolist())
        for chunk, place in zip(region.chunks.tolist(), region.places.tolist(), strict=True):
            if chunk < 0 or not nbytes[chunk]:
                assert place in fetched.absent
            else:
                start = int(offsets[chunk])
                assert stored[place] == data[start : start + int(nbytes[chunk])]


# An epoch is 16 volumes, so 32 sets; runs of 4 of about 0.5 MB each, in 2 shards of 8.
GATES = {
    # mode: (requests, bytes) of an epoch; a change of either is a change of what a run costs.
    "range": (32, 15_505_117),
    "stream": (4, 8_021_873),
}


@pytest.mark.parametrize("mode", GATES)
def test_requests_and_bytes_of_an_epoch(folder, mode):
    setup = Setup(folder)
    setup.run(mode, 32)
    counters = setup.stats.counters()
    asked = setup.fetcher.asked
    assert counters["ranges"] == len(asked)
    assert counters["bytes_asked"] == sum(nbytes for *_, nbytes in asked)
    assert (counters["ranges"], counters["bytes_asked"]) == GATES[mode]
    assert setup.held == 0


def test_a_stream_reads_each_byte_once_an_epoch_over_all_ranks(folder):
    """Whatever the number of ranks; only what lies between volumes may come twice."""
    stored = sum(int(Setup(folder).rows.chunks(n)[1].sum()) for n in range(16))
    for world in (1, 2, 4, 8):
        setup = Setup(folder, global_batch=8)
        for rank in range(world):
            # A block of 8 steps, which is two epochs with both visits.
            setup.run("stream", 64 // world, world, rank)
        total = setup.stats.counters()["bytes_asked"]
        assert 2 * stored <= total <= 2 * stored * 1.05


def test_a_stream_asks_for_what_comes_first_first(folder):
    setup = Setup(folder)
    setup.run("stream", 2)
    priorities = [priority for priority, *_ in setup.fetcher.asked]
    assert priorities == [0, 1]
    # With shorter ranges than a run: the volumes of later turns have later priorities.
    small = Setup(folder)
    with pytest.MonkeyPatch.context() as patch:
        from shards import regions, sources

        patch.setattr(sources, "coalesce", lambda a, n: regions.coalesce(a, n, max_range=2**20))
        small.run("stream", 1)
    assert [priority for priority, *_ in small.fetcher.asked] == [0, 4]


def test_a_replacement_is_read_by_range(folder):
    setup = Setup(folder)
    source = StreamSource(setup.plan, setup.rows, setup.fetcher, setup.stats)
    item = setup.plan.item(0, 1)
    source.fetch(item, setup.region(item))
    assert len(setup.fetcher.asked) == 1
    assert source.held_bytes > 0
    source.done(item)
    assert source.held_bytes == 0
    source.fetch_again(item, setup.region(item))
    assert setup.fetcher.fresh == 1


def test_the_cheaper_way_is_chosen_and_said(folder):
    many, one = Setup(folder, visits=4), Setup(folder, visits=1)
    chosen = choose("auto", many.plan, many.rows, whole_boxes(many.plan, many.samples))
    assert chosen.mode == "stream"
    assert chosen.sentence.startswith("stream, the cheaper way: ")
    assert chosen.stream.cost < chosen.range.cost
    forced = choose("range", many.plan, many.rows, whole_boxes(many.plan, many.samples))
    assert forced.sentence.startswith("range, as asked: ")
    # What was counted beforehand is what a run asks for.
    many.run("stream", 64)
    counters = many.stats.counters()
    assert chosen.stream.bytes == pytest.approx(counters["bytes_asked"] / 64, rel=0.02)
    assert chosen.stream.requests == pytest.approx(counters["ranges"] / 64, rel=0.02)
    # A single box of a large volume is read by range.
    large = write_toy_dataset(folder.parent / "large", 4, shape=(60, 300, 300), per_shard=4)
    one = Setup(large, visits=1)
    assert choose("auto", one.plan, one.rows, whole_boxes(one.plan, one.samples)).mode == "range"


def test_a_chunk_table_that_is_too_short_is_said(folder):
    from shards.sources import touched

    setup = Setup(folder)
    region = setup.region(setup.plan.item(0))
    with pytest.raises(CorruptShardError, match="needs more than the 2 chunks listed"):
        touched(region, np.ones(2, np.int32), 0)


def test_fetched_is_done_when_all_ranges_are():
    first, second = Future(), Future()
    parts = [
        Part(range=first, places=[0, 2], starts=[0, 1], nbytes=[1, 2]),
        Part(range=second, places=[1], starts=[0], nbytes=[1]),
    ]
    fetched = Fetched(parts=parts, absent=[3])
    calls = []
    fetched.when_done(lambda: calls.append(1))
    first.set_result(memoryview(b"xyz"))
    assert calls == []
    second.set_exception(OSError("reset"))
    assert calls == [1]
    fetched.wait()
    stored = fetched.stored()
    assert [(n, bytes(chunk)) for n, chunk in (next(stored), next(stored))] == [
        (0, b"x"),
        (2, b"yz"),
    ]
    with pytest.raises(OSError, match="reset"):
        next(stored)
    Fetched(parts=[], absent=[0]).when_done(lambda: calls.append(2))
    assert calls == [1, 2]
