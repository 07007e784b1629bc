"""Our arrays against zarr-python, both ways, and against damage."""

import pickle
import random
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.array_reader import ArrayReader, decode_file
from fusestore.store.arrays import ArraySpec, array_metadata, encode_shard, group_metadata
from fusestore.store.receipts import FileRecord


@st.composite
def specs(draw):
    rows = draw(st.integers(1, 40))
    columns = draw(st.one_of(st.none(), st.integers(1, 7)))
    chunk = draw(st.integers(1, 9))
    codec = draw(st.sampled_from(["pcodec", "raw"]))
    dtype = draw(st.sampled_from(["uint16", "int32", "uint32", "int64", "float32"]))
    sharded = draw(st.booleans())
    shape, chunk_shape, shard_shape = (rows,), (chunk,), None
    if sharded:
        shard_shape = (chunk * draw(st.integers(1, 5)),)
    if columns is not None:
        width = draw(st.integers(1, columns)) if sharded and codec == "pcodec" else columns
        shape, chunk_shape = (rows, columns), (chunk, width)
        if shard_shape is not None:
            shard_shape = (*shard_shape, -(-columns // width) * width)
    return ArraySpec("values", shape, dtype, chunk_shape, shard_shape, codec)


def some_values(spec, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 900, spec.shape).astype(spec.dtype)
    if spec.dtype == "float32":
        values = (values / 7).astype(np.float32)
        values.reshape(-1)[::5] = np.nan
        values.reshape(-1)[::7] = -np.inf
    return values


def write(folder, spec, values):
    root = Location.parse(folder)
    publish(root / "zarr.json", group_metadata({"about": "test"}))
    publish(root / spec.name / "zarr.json", array_metadata(spec))
    for shard in range(spec.num_files):
        data = encode_shard(spec, shard, values[slice(*spec.rows_of(shard))])
        publish(root / spec.file_name(shard), data)
    return root


def recorded(num_bytes):
    record = FileRecord.of(b"").model_copy(update={"num_bytes": num_bytes})
    return {SHARDED.file_name(shard): record for shard in range(SHARDED.num_files)}


def open_with_zarr(folder, name="values"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zarr.open_group(folder, mode="r")[name]


@settings(max_examples=40, deadline=None)
@given(spec=specs(), bounds=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_zarr_python_and_we_read_the_same(tmp_path_factory, spec, bounds):
    folder = tmp_path_factory.mktemp("group")
    values = some_values(spec)
    root = write(folder, spec, values)
    start, stop = sorted(min(bound, spec.shape[0]) for bound in bounds)
    ours = ArrayReader(root, spec).read(start, stop)
    theirs = open_with_zarr(folder)[start:stop]
    assert ours.dtype == theirs.dtype == np.dtype(spec.dtype)
    assert ours.tobytes() == theirs.tobytes() == values[start:stop].tobytes()


@settings(max_examples=40, deadline=None)
@given(
    spec=specs(),
    reads=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=12),
)
def test_one_reader_reads_the_same_however_often(tmp_path_factory, spec, reads):
    """Whatever chunks it remembers from earlier reads, and in whatever order they come."""
    values = some_values(spec)
    reader = ArrayReader(write(tmp_path_factory.mktemp("group"), spec, values), spec)
    for bounds in reads:
        start, stop = sorted(min(bound, spec.shape[0]) for bound in bounds)
        assert reader.read(start, stop).tobytes() == values[start:stop].tobytes()


@settings(max_examples=60, deadline=None)
@given(spec=specs(), other=st.booleans())
def test_a_file_in_memory_is_decoded_chunk_by_chunk(tmp_path_factory, spec, other):
    values = some_values(spec)
    root = write(tmp_path_factory.mktemp("group"), spec, values)
    for shard in range(spec.num_files):
        content = np.frombuffer((root / spec.file_name(shard)).read_bytes(), np.uint8)
        expected = values[slice(*spec.rows_of(shard))]
        # What it held before is overwritten; where dtypes differ, values are cast.
        out = np.full_like(expected, 77, dtype=np.float64 if other else None)
        done = 0
        for rows in decode_file(root, spec, shard, content, out):
            assert len(rows) <= spec.rows_per_chunk
            assert np.shares_memory(rows, out)
            piece = expected[done : done + len(rows)]
            assert np.array_equal(rows, piece.astype(out.dtype), equal_nan=spec.dtype == "float32")
            done += len(rows)
        assert done == len(expected)


def test_chunks_come_as_they_were_cut(tmp_path):
    spec = ArraySpec("values", (21, 5), "uint16", (4, 2), (8, 6))
    values = some_values(spec)
    reader = ArrayReader(write(tmp_path, spec, values), spec)
    padded = np.zeros((24, 6), np.uint16)
    padded[:21, :5] = values
    chunks = list(reader.chunks(5, 21))
    assert [first for first, _ in chunks] == [4, 8, 12, 16, 20]
    for first, parts in chunks:
        assert np.array_equal(np.concatenate(parts, axis=1), padded[first : first + 4])
    assert list(reader.chunks(3, 3)) == []


@pytest.mark.parametrize("codec", ["pcodec", "raw"])
def test_a_chunk_damaged_after_it_was_read_is_noticed(tmp_path, codec):
    """Every time it is read from the file, that is; `pcodec` chunks may be remembered."""
    spec = ArraySpec("values", (40,), "int32", (4,), (8,), codec)
    reader = ArrayReader(write(tmp_path, spec, some_values(spec)), spec)
    reader.read(0, 40)
    file = (reader.folder / spec.file_name(0)).path
    with file.open("r+b") as opened:
        opened.seek(5)
        byte = opened.read(1)[0]
        opened.seek(5)
        opened.write(bytes([byte ^ 1]))
    with pytest.raises(CorruptionError, match="checksum"):
        reader.read(0, 4)


def test_only_a_chunk_that_was_wanted_in_part_is_remembered(tmp_path):
    """What comes next in order needs no other, and a long read holds no more memory for it."""
    spec = ArraySpec("values", (16,), "int32", (4,), (16,))
    values = some_values(spec)
    reader = ArrayReader(write(tmp_path, spec, values), spec)
    reader.read(0, 10)
    file = (reader.folder / spec.file_name(0)).path
    data = bytearray(file.read_bytes())
    data[: -spec.index_bytes] = bytes(len(data) - spec.index_bytes)
    with file.open("r+b") as opened:
        opened.write(data)
    assert np.array_equal(reader.read(8, 12), values[8:12])
    with pytest.raises(CorruptionError, match="checksum"):
        reader.read(4, 8)


@pytest.mark.parametrize("codec", ["pcodec", "raw"])
def test_we_read_what_zarr_python_writes(tmp_path, codec):
    shard = (8, 6) if codec == "pcodec" else (8, 5)
    chunk = (4, 2) if codec == "pcodec" else (4, 5)
    spec = ArraySpec("values", (21, 5), "uint16", chunk, shard, codec)
    values = some_values(spec) + np.uint16(1)
    root = Location.parse(tmp_path)
    publish(root / "zarr.json", group_metadata({}))
    publish(root / "values/zarr.json", array_metadata(spec))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.open_group(tmp_path, mode="r+")["values"][:] = values
    assert np.array_equal(ArrayReader(root, spec).read(0, 21), values)


def test_a_raw_file_can_be_memory_mapped(tmp_path):
    spec = ArraySpec("values", (10, 3), "int32", (4, 3), None, "raw")
    values = some_values(spec)
    root = write(tmp_path, spec, values)
    mapped = np.memmap((root / spec.file_name(1)).path, "<i4", mode="r", shape=(4, 3))
    assert np.array_equal(mapped, values[4:8])


SHARDED = ArraySpec("values", (20, 3), "uint32", (2, 3), (8, 3))


@pytest.mark.parametrize(
    "spec", [SHARDED, ArraySpec("values", (20, 3), "int32", (8, 3), None, "raw")]
)
@pytest.mark.parametrize("seed", range(30))
def test_every_flipped_or_cut_byte_is_noticed(tmp_path, spec, seed):
    root = write(tmp_path, spec, some_values(spec))
    choice = random.Random(seed)  # noqa: S311 - repeatable
    shard = choice.randrange(spec.num_files)
    file = (root / spec.file_name(shard)).path
    data = bytearray(file.read_bytes())
    if seed % 3 == 0:
        data = data[: choice.randrange(len(data))]
    else:
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
    file.write_bytes(data)
    with pytest.raises(CorruptionError, match="fusestore verify") as caught:
        ArrayReader(root, spec).read(*spec.rows_of(shard))
    assert str(file) in str(caught.value)


def test_a_missing_file_is_an_error_where_zarr_python_gives_zeros(tmp_path):
    root = write(tmp_path, SHARDED, some_values(SHARDED))
    (root / SHARDED.file_name(1)).delete()
    assert not open_with_zarr(tmp_path)[8:16].any()
    assert len(ArrayReader(root, SHARDED).read(0, 8)) == 8
    with pytest.raises(CorruptionError, match="is missing"):
        ArrayReader(root, SHARDED).read(7, 9)


def test_a_missing_chunk_is_an_error(tmp_path):
    root = write(tmp_path, SHARDED, some_values(SHARDED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.open_group(tmp_path, mode="r+")["values"][2:4] = 0
    assert len(ArrayReader(root, SHARDED).read(4, 8)) == 4
    with pytest.raises(CorruptionError, match="no chunk 1"):
        ArrayReader(root, SHARDED).read(0, 8)


def test_the_size_in_the_receipt_counts(tmp_path):
    root = write(tmp_path, SHARDED, some_values(SHARDED))
    with pytest.raises(CorruptionError, match="its receipt says"):
        ArrayReader(root, SHARDED, recorded(7)).read(0, 1)
    with pytest.raises(CorruptionError, match="no record of its file values/c/0"):
        ArrayReader(root, SHARDED, {}).read(0, 1)


def test_readers_can_be_pickled_after_use(tmp_path):
    values = some_values(SHARDED)
    reader = ArrayReader(write(tmp_path, SHARDED, values), SHARDED)
    reader.read(0, 3)
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301 - our own bytes
    assert np.array_equal(again.read(3, 20), values[3:20])


def test_remote_arrays_read_like_local_ones(s3_url):
    values = some_values(SHARDED)
    root = write(f"{s3_url}/group", SHARDED, values)
    assert np.array_equal(ArrayReader(root, SHARDED).read(1, 19), values[1:19])
    (root / SHARDED.file_name(1)).delete()
    with pytest.raises(CorruptionError, match="is missing"):
        ArrayReader(root, SHARDED).read(8, 9)
    whole = (root / SHARDED.file_name(0)).read_bytes()
    publish(root / SHARDED.file_name(0), whole[:-9])
    for reader in (ArrayReader(root, SHARDED), ArrayReader(root, SHARDED, recorded(len(whole)))):
        with pytest.raises(CorruptionError):
            reader.read(0, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_shape": (3, 3)},
        {"chunk_shape": (2,)},
        {"shard_shape": (8, 2), "chunk_shape": (2, 1)},
        {"codec": "raw", "chunk_shape": (2, 1)},
        {"shape": (20, 3, 1), "chunk_shape": (2, 3, 1), "shard_shape": (8, 3, 1)},
    ],
)
def test_shapes_that_do_not_fit_are_refused(change):
    fields = {"shape": (20, 3), "dtype": "uint32", "chunk_shape": (2, 3), "shard_shape": (8, 3)}
    with pytest.raises(InvalidInputError, match="'values'"):
        ArraySpec(**{"name": "values", **fields, **change})


def test_other_values_than_the_shard_takes_are_refused():
    with pytest.raises(InvalidInputError, match="takes uint32"):
        encode_shard(SHARDED, 2, np.zeros((8, 3), np.uint32))
    with pytest.raises(InvalidInputError, match="takes uint32"):
        encode_shard(SHARDED, 0, np.zeros((8, 3), np.int32))
    with pytest.raises(InvalidInputError, match="outside array"):
        ArrayReader(Location.parse("/nowhere"), SHARDED).read(10, 21)
