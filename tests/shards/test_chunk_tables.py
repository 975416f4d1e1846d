"""The chunk table read lazily: as it is written, with few requests, by many threads."""

import io
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import chunk_file, chunk_groups
from shards.chunk_file import TAIL_BYTES, ChunkFile, slices
from shards.chunk_tables import ChunkTables, Ragged
from shards.dataset import Dataset
from shards.errors import CorruptShardError
from shards.schema import CHUNKS_SCHEMA, INDEX
from shards.stats import Stats
from shards.tables import parquet_bytes
from shards.testing import toy_volume, withdraw, write_dataset

SHAPES = [(34, 40, 66), (70, 40, 66), (34, 34, 34), (66, 66, 66), (34, 40, 66)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    volumes = {f"k{n}": toy_volume(shape, n) for n, shape in enumerate(SHAPES)}
    return write_dataset(tmp_path_factory.mktemp("toy"), volumes, per_shard=2)


@pytest.fixture
def folder(built, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(built, tmp_path / "copy")


@pytest.fixture
def lazy(monkeypatch):
    """Even a small table is read a shard at a time."""
    monkeypatch.setattr(chunk_groups, "WHOLE_BYTES", 0)


def test_ragged():
    rows = Ragged(np.arange(6), np.array([0, 2, 2, 6]))
    assert [row.tolist() for row in rows] == [[0, 1], [], [2, 3, 4, 5]]
    assert rows[-1].tolist() == [2, 3, 4, 5]
    assert [row.tolist() for row in rows[1:]] == [[], [2, 3, 4, 5]]
    with pytest.raises(IndexError):
        rows[3]


def groups_of(n, key="k{}"):
    """Row groups of 0 to 2 samples of 0 to 3 chunks."""
    rng = np.random.default_rng(n)

    def sample(number):
        chunks = int(rng.integers(0, 4))
        return {
            "key": key.format(number),
            "chunk_offsets": rng.integers(0, 2**33, chunks).tolist(),
            "chunk_nbytes": rng.integers(0, 2**20, chunks).tolist(),
            "air_mask": (rng.random(chunks) < 0.5).tolist(),
        }

    return [[sample(10 * g + s) for s in range((g + 1) % 3)] for g in range(n)]


def was_cut(file):
    return file._footer.whole is None


@pytest.mark.parametrize("n", [1, 2, 14, 15, 16, 127, 128, 300])
def test_each_row_group_is_what_pyarrow_reads(n):
    groups = groups_of(n)
    data = parquet_bytes(groups, CHUNKS_SCHEMA)
    file = ChunkFile(slices(data), len(data), n)
    assert was_cut(file)
    whole = pq.ParquetFile(io.BytesIO(data))
    for number in [*range(0, n, 7), n - 1, 0]:
        table = file.table(number)
        assert table.equals(whole.read_row_group(number))
        assert table.schema.equals(CHUNKS_SCHEMA)
        assert table.to_pylist() == groups[number]


def test_a_table_without_row_groups():
    data = parquet_bytes([], CHUNKS_SCHEMA)
    assert ChunkFile(slices(data), len(data), 0)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"store_schema": False}, "k{}"),
        ({}, "\x00\x19L&{}"),  # looks like the beginning of a row group
        ({}, "\x19\x1c\x18\x0cARROW:schema{}"),  # and this like what follows the last
    ],
)
def test_a_footer_that_cannot_be_cut_is_parsed_whole(settings, key):
    groups = groups_of(20, key)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, CHUNKS_SCHEMA, compression="zstd", **settings) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(rows, CHUNKS_SCHEMA), row_group_size=10)
    file = ChunkFile(slices(sink.getvalue()), len(sink.getvalue()), 20)
    assert [file.table(n).to_pylist() for n in range(20)] == groups


def test_a_key_that_looks_like_a_row_group_is_noticed():
    data = parquet_bytes(groups_of(20, "\x00\x19L&{}"), CHUNKS_SCHEMA)
    footer = chunk_file._read_footer(slices(data), len(data))
    if footer.count(b"\x00\x19L&") > 19:  # where statistics hold the keys
        assert not was_cut(ChunkFile(slices(data), len(data), 20))


def test_what_is_no_chunk_table():
    groups = groups_of(5)
    data = parquet_bytes(groups, CHUNKS_SCHEMA)
    with pytest.raises(CorruptShardError, match="5 row groups for 6 shards"):
        ChunkFile(slices(data), len(data), 6)
    for broken in (data[:-1], data[100:] + b"1234", b"PAR1PAR1", b"x" * 40, b""):
        with pytest.raises((CorruptShardError, pa.ArrowException)):
            ChunkFile(slices(broken), len(broken), 5)
    other = parquet_bytes([[{"key": "a"}]], pa.schema([("key", pa.string())]))
    with pytest.raises(CorruptShardError, match="columns are not those"):
        ChunkFile(slices(other), len(other), 1)


def test_any_damage_to_the_footer_is_an_error_or_changes_nothing():
    """One byte at a time, over all that is not a name."""
    data = parquet_bytes(groups_of(16), CHUNKS_SCHEMA)
    nbytes = len(chunk_file._read_footer(slices(data), len(data)))
    rng = np.random.default_rng(0)
    for at in rng.integers(len(data) - 8 - nbytes, len(data), 400).tolist():
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        try:
            file = ChunkFile(slices(bytes(broken)), len(broken), 16)
            tables = [file.table(n) for n in range(16)]
        except (CorruptShardError, pa.ArrowException, OSError, ValueError):
            continue
        assert all(isinstance(table, pa.Table) for table in tables)


def check_rows(tables, built):
    rows = pq.read_table(built / "chunks.parquet").to_pylist()
    assert len(tables) == len(rows) == len(SHAPES)
    for n, row in enumerate(rows):
        assert tables.keys[n] == row["key"]
        assert tables.offsets[n].tolist() == row["chunk_offsets"]
        assert tables.nbytes[n].tolist() == row["chunk_nbytes"]
        assert tables.air_mask[n].tolist() == row["air_mask"]


def test_rows_are_those_of_the_file(built):
    check_rows(Dataset.open(built).chunk_tables(), built)


def test_rows_are_those_of_the_file_when_read_lazily(built, lazy):
    check_rows(Dataset.open(built).chunk_tables(), built)


def test_planning_reads_the_chunk_table_when_it_is_asked_for(built, monkeypatch):
    opened = Dataset.open(built)
    samples = opened.plan_samples()
    assert "_own_chunks" not in vars(opened)
    expected = pq.read_table(built / "chunks.parquet")["air_mask"].to_pylist()
    assert [samples.air_mask[n].tolist() for n in range(5)] == expected
    tables = opened.chunk_tables()
    assert opened.plan_samples(chunks=tables).air_mask is tables.air_mask


def test_small_tables_cost_one_request_and_others_one_a_shard(built, lazy, monkeypatch):
    stats = Stats()
    tables = Dataset.open(built).chunk_tables(stats)
    size = (built / "chunks.parquet").stat().st_size
    assert size < TAIL_BYTES
    assert stats.counters() == {"table_requests": 1, "table_bytes": size}
    metadata = pq.read_metadata(built / "chunks.parquet")
    for sample in (2, 3, 2, 3):
        tables.row(sample)
    group = metadata.row_group(1)
    group_bytes = sum(group.column(n).total_compressed_size for n in range(4))
    assert stats.counters() == {"table_requests": 2, "table_bytes": size + group_bytes}

    monkeypatch.setattr(chunk_file, "TAIL_BYTES", 100)
    stats.reset()
    Dataset.open(built).chunk_tables(stats)
    footer = metadata.serialized_size + 8
    assert stats.counters() == {"table_requests": 2, "table_bytes": footer}

    monkeypatch.setattr(chunk_groups, "WHOLE_BYTES", size)
    stats.reset()
    whole = Dataset.open(built).chunk_tables(stats)
    check_rows(whole, built)
    assert stats.counters() == {"table_requests": 1, "table_bytes": size}


def counted(opened, cache_bytes=10**9, gate=None):
    """Chunk tables and the list of shards that they have read."""
    read = []

    def one(shard):
        read.append(shard)
        if gate is not None:
            gate.wait(10)
        return opened.chunk_table([shard])

    tables = ChunkTables(read=one, index=opened.index_file, chunk_side=64, cache_bytes=cache_bytes)
    return tables, read


def test_the_least_recently_used_tables_are_dropped(built):
    opened = Dataset.open(built)
    tables, read = counted(opened)
    sizes = []
    for sample in (0, 2, 4):
        tables.row(sample)
        sizes.append(tables.kept_bytes)
    assert sizes[0] > 0
    tables, read = counted(opened, cache_bytes=sizes[1])
    for sample in (0, 2, 1, 4, 1, 4, 2):
        tables.row(sample)
        assert tables.kept_bytes <= sizes[1]
    assert read == [0, 1, 2, 1]
    # One is kept in any case: the samples of a shard are asked for one after another.
    tables, read = counted(opened, cache_bytes=0)
    for sample in (0, 1, 0, 2, 3):
        tables.row(sample)
    assert read == [0, 1]


def test_rows_outlive_the_cache(built):
    tables, _ = counted(Dataset.open(built), cache_bytes=0)
    row = tables.row(0)
    tables.row(2)
    tables.row(4)
    assert row.offsets.tolist() == tables.row(0).offsets.tolist()


def test_a_table_is_read_once_for_all_threads(built):
    gate = threading.Event()
    tables, read = counted(Dataset.open(built), gate=gate)
    with ThreadPoolExecutor(8) as pool:
        rows = [pool.submit(tables.row, n % 2) for n in range(8)]
        tables.prefetch([0, 1, 0])
        while len(read) < 2:
            threading.Event().wait(0.001)
        gate.set()
        assert {row.result().offsets.size for row in rows} == {2, 4}
    tables.close()
    assert sorted(read) == [0, 1]
    tables.row(2)
    assert sorted(read) == [0, 1]


def test_prefetching_ends_with_close(built):
    before = set(threading.enumerate())
    gate = threading.Event()
    tables, _ = counted(Dataset.open(built), gate=gate)
    with tables:
        tables.prefetch([0, 1, 2])
        gate.set()
    assert set(threading.enumerate()) == before
    tables.prefetch([0, 1, 2])
    assert set(threading.enumerate()) == before
    assert tables.row(4).offsets.size == 2


def test_what_fails_in_the_background_is_raised_when_asked_for(built):
    opened = Dataset.open(built)
    failures = [CorruptShardError("first"), CorruptShardError("second")]

    def read(shard):
        if failures:
            raise failures.pop(0)
        return opened.chunk_table([shard])

    tables = ChunkTables(read=read, index=opened.index_file, chunk_side=64)
    tables.prefetch([0])
    tables.close()
    with pytest.raises(CorruptShardError, match="second"):
        tables.row(0)
    assert tables.row(0).offsets.size == 2


@pytest.mark.parametrize("sample", [5, -6])
def test_there_is_no_such_sample(built, sample):
    with pytest.raises(IndexError):
        Dataset.open(built).chunk_tables().row(sample)


def rewrite(folder, change):
    """Replace the chunk table by a changed one, row group by row group."""
    path = folder / "chunks.parquet"
    file = pq.ParquetFile(path)
    groups = change([file.read_row_group(n).to_pylist() for n in range(file.num_row_groups)])
    path.write_bytes(parquet_bytes(groups, CHUNKS_SCHEMA))
    manifest = folder / "manifest.json"
    size = path.stat().st_size
    text = manifest.read_text()
    [entry] = [e for e in Dataset.open(folder).manifest.files if e.name == "chunks.parquet"]
    manifest.write_text(
        text.replace(f'{{"bytes":{entry.bytes},"name":"ch', f'{{"bytes":{size},"name":"ch')
    )


def test_a_small_table_must_have_its_digest(folder):
    rewrite(folder, lambda groups: groups)
    assert Dataset.open(folder).chunk_tables().row(0)
    rewrite(folder, lambda groups: [groups[0][::-1], *groups[1:]])
    with pytest.raises(CorruptShardError, match=r"chunks\.parquet: missing, or not that of"):
        Dataset.open(folder).chunk_tables()


def test_lazy_tables_must_have_the_keys_of_the_index(folder, lazy):
    rewrite(folder, lambda groups: [groups[0][::-1], *groups[1:]])
    tables = Dataset.open(folder).chunk_tables()
    assert tables.row(2)
    with pytest.raises(CorruptShardError, match=rf"its keys are not those of {INDEX}"):
        tables.row(0)


def test_lazy_tables_must_have_the_chunks_of_the_shape(folder, lazy):
    def change(groups):
        groups[1][0]["air_mask"].append(True)
        return groups

    rewrite(folder, change)
    tables = Dataset.open(folder).chunk_tables()
    assert tables.row(0)
    with pytest.raises(CorruptShardError, match="k2: its shape has 1 chunks, but 2 are listed"):
        tables.row(3)


def test_broken_chunk_tables(folder, lazy):
    opened = Dataset.open(folder)
    path = folder / "chunks.parquet"
    data = path.read_bytes()
    tables = opened.chunk_tables()
    path.write_bytes(bytes(len(data)))
    for read in (opened.chunk_tables, opened.chunk_table, lambda: tables.row(4)):
        with pytest.raises(CorruptShardError, match="not a readable chunk table"):
            read()
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptShardError, match="not a readable chunk table"):
        opened.chunk_tables()
    path.unlink()
    with pytest.raises(CorruptShardError, match=r"chunks\.parquet: missing"):
        opened.chunk_tables()


def test_lazy_tables_of_another_generation_are_refused(folder, lazy):
    opened = Dataset.open(folder)
    tables = opened.chunk_tables()
    withdraw(folder, ["k0", "k3"])
    for read in (opened.chunk_tables, lambda: tables.row(0), lambda: tables.row(4)):
        with pytest.raises(CorruptShardError, match="generation 1 and is generation 2 now"):
            read()
    again = Dataset.open(folder).chunk_tables()
    assert [again.keys[n] for n in range(3)] == ["k1", "k2", "k4"]
    assert again.row(2).offsets.size == 2
