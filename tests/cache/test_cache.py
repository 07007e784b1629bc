"""Writing a cache and reading it back."""

import itertools
import math
import multiprocessing
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.cache.reader import open_cache
from fusestore.cache.rows import Rows, blank_rows
from fusestore.cache.verify import verify_cache
from fusestore.cache.writer import CacheWriter
from fusestore.errors import (
    AlreadyExistsError,
    CorruptionError,
    FingerprintMismatchError,
    InvalidInputError,
    NonFiniteError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.store.array_reader import ArrayReader
from fusestore.store.codec import TAIL_STEP
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from tests.helpers.fault_proxy import FaultProxy


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "my.store")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def any_store(request):
    if request.param == "local":
        return request.getfixturevalue("store")
    return Store.open(request.getfixturevalue("s3_url") + "/my.store")


def in_runs(ids, logprobs):
    """Ids sorted within each run of equal log-probability after entry 0, 0 where no entry is."""
    ids = np.where(np.isneginf(logprobs), 0, ids)
    for row, values in zip(ids, logprobs, strict=True):
        starts = [0, 1, *(j for j in range(2, len(row)) if values[j] != values[j - 1]), len(row)]
        for start, stop in itertools.pairwise(starts):
            row[start:stop].sort()
    return ids


def assert_rows_match(got, captured, fingerprint):
    assert [a.dtype for a in (got.ids, got.logprobs, got.tail, got.label_logprob)] == [
        np.int32,
        np.float32,
        np.float32,
        np.float32,
    ]
    if fingerprint.profile == "compact":
        assert np.array_equal(in_runs(got.ids, got.logprobs), in_runs(captured.ids, got.logprobs))
    else:
        absent = np.isneginf(captured.logprobs)
        assert np.array_equal(got.ids, np.where(absent, 0, captured.ids))
    assert got.label_logprob.tobytes() == captured.label_logprob.tobytes()
    step = fingerprint.logprob_step
    if step is None:
        assert got.logprobs.tobytes() == captured.logprobs.tobytes()
        assert got.tail.tobytes() == captured.tail.tobytes()
        return
    for stored, exact, error in (
        (got.logprobs, captured.logprobs, step / 2),
        (got.tail, captured.tail, TAIL_STEP / 2),
    ):
        assert np.array_equal(np.isneginf(stored), np.isneginf(exact))
        finite = np.isfinite(exact)
        # Rounding of the softmax may leave a captured value a hair above 0.
        assert np.all(np.abs(stored[finite] - exact[finite]) <= error + 1e-5)


def test_round_trip(any_store, capture):
    manifest = capture.write(any_store)
    cache = open_cache(any_store, "demo")
    assert cache.manifest == manifest
    assert (len(cache), cache.k, cache.skipped) == (40, 10, frozenset())
    assert_rows_match(cache[:], capture.rows, cache.fingerprint)
    for name in ("token_ids", "end_offsets", "document_offsets"):
        assert np.array_equal(getattr(cache.tokens, name), getattr(capture.tokens, name))
    assert np.array_equal(cache.document(3).ids, cache[:].ids[6:20])
    assert len(cache.document(1)) == 0
    assert np.isnan(cache.document(2).label_logprob).all()
    assert len(cache[-3:]) == 3
    assert len(cache[7:2]) == 0
    assert verify_cache(cache.location) == []
    assert verify_cache(cache.location, quick=True) == []
    assert manifest.num_bytes == sum(
        size
        for name, size in cache.location.sizes().items()
        if not name.startswith("receipts/") and name not in ("manifest.json", "fingerprint.json")
    )


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    shape=st.sampled_from([(50, 1), (50, 9), (12, 12), (3, 3), (2**17 + 500, 17), (500, 128)]),
    stored=st.sampled_from(
        [
            *(("compact", step) for step in (1 / 16, 1 / 32, 1 / 512, 0.3)),
            ("lossless", None),
            *(("fast", step) for step in (None, 1 / 16, 0.3)),
        ]
    ),
    absent=st.sampled_from([0.0, 0.5, 0.99]),
    seed=st.integers(0, 100),
)
def test_any_shape_round_trips(make, tmp_path_factory, lengths, shape, stored, absent, seed):
    vocab_size, k = shape
    profile, step = stored
    capture = make(lengths, vocab_size, k, seed, absent, profile=profile, logprob_step=step)
    store = Store.open(tmp_path_factory.mktemp("store"))
    capture.write(store)
    cache = open_cache(store, "demo")
    whole = cache[:]
    assert_rows_match(whole, capture.rows, cache.fingerprint)
    assert verify_cache(cache.location) == []
    start, stop = sorted((seed % (len(cache) + 1), len(cache) // 2))
    for name, values in vars(cache[start:stop]).items():
        assert values.tobytes() == getattr(whole, name)[start:stop].tobytes()


def test_opening_reads_one_object(any_store, capture, monkeypatch):
    capture.write(any_store)
    read = []
    for verb in ("read_bytes", "read_range", "read_prefix", "exists", "size", "sizes", "list"):
        original = getattr(Location, verb)

        def counting(self, *args, _original=original, **kwargs):
            read.append(self.name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Location, verb, counting)
    open_cache(any_store, "demo")
    assert read == ["manifest.json"]


def test_opening_remotely_is_one_get_and_no_listing(s3_endpoint, s3_url, capture):
    """As the server is asked, whatever the libraries between do."""
    capture.write(Store.open(f"{s3_url}/my.store"))
    with FaultProxy(s3_endpoint) as proxy:
        options = {"endpoint_url": proxy.url}
        cache = open_cache(f"{s3_url}/my.store", "demo", storage_options=options)
        ((method, path),) = proxy.requests
        assert (method, "list-type" in path) == ("GET", False)
        cache[0:16]
        assert {method for method, _ in proxy.requests} <= {"GET", "HEAD"}
        assert not any("list-type" in path for _, path in proxy.requests)


def read_in_child(cache, queue):
    queue.put(cache[3:30].ids.tolist())


@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.slow), "fork"])
def test_a_cache_reads_in_other_processes(tmp_path, capture, method):
    capture.write(Store.open(tmp_path))
    cache = open_cache(tmp_path, "demo")
    ids = cache[:].ids
    again = pickle.loads(pickle.dumps(cache))  # noqa: S301 - our own bytes
    assert np.array_equal(again[:].ids, ids)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(cache, queue))
    child.start()
    assert queue.get(timeout=60) == ids[3:30].tolist()
    child.join()


def test_an_unfinished_cache_says_how_to_go_on(any_store, capture):
    with pytest.raises(NotFoundError, match="holds: nothing"):
        open_cache(any_store, "demo")
    writer = capture.begin(any_store)
    writer.write_shard(1, capture.shard_rows(1))
    assert not writer.complete
    with pytest.raises(NotFoundError, match="not complete"):
        open_cache(any_store, "demo")
    with pytest.raises(NotFoundError, match="Did you mean 'demo'"):
        open_cache(any_store, "dmeo")
    with pytest.raises(InvalidInputError, match="part 000000 is missing"):
        writer.finish({}, [])
    assert "manifest.json" in {finding.file for finding in verify_cache(writer.location)}


def test_resuming_gives_the_same_bytes(any_store, capture):
    capture.write(any_store, "whole")
    writer = capture.begin(any_store, "parts")
    assert writer.missing_shards() == [0, 1, 2]
    writer.write_shard(2, capture.shard_rows(2))
    assert np.array_equal(writer.reader.label_logprob(32, 39), capture.rows.label_logprob[32:39])
    writer = capture.begin(any_store, "parts")
    assert writer.missing_shards() == [0, 1]
    manifest = capture.write(any_store, "parts")
    assert capture.begin(any_store, "parts").complete
    assert capture.write(any_store, "parts") == manifest
    whole, parts = any_store.cache("whole"), any_store.cache("parts")
    assert whole.sizes() == parts.sizes()
    for name in whole.sizes():
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_a_cut_or_lost_file_is_made_again(any_store, capture):
    capture.write(any_store)
    location = any_store.cache("demo")
    whole = {name: (location / name).read_bytes() for name in location.sizes()}
    (location / "ids/c/0/0").delete()
    (location / "token_ids/c/0").delete()
    (location / "receipts/000002.json").delete()
    writer = capture.begin(any_store)
    assert writer.missing_shards() == [0, 2]
    capture.write(any_store)
    assert {name: (location / name).read_bytes() for name in location.sizes()} == whole


def test_other_settings_are_refused_and_shown(store, make, capture):
    capture.write(store)
    before = store.cache("demo").sizes()
    other = make(logprob_step=1 / 32, add_bos=True)
    with pytest.raises(FingerprintMismatchError) as caught:
        other.begin(store)
    message = str(caught.value)
    assert "logprob_step: 0.0625 stored, 0.03125 requested" in message
    assert "add_bos: False stored, True requested" in message
    assert capture.fingerprint.digest in message
    assert other.fingerprint.digest in message
    assert "top_k" not in message
    with pytest.raises(FingerprintMismatchError, match="other tokens"):
        make(seed=1).begin(store)
    assert store.cache("demo").sizes() == before


def test_a_finished_cache_is_not_rewritten(store, capture):
    capture.write(store)
    with pytest.raises(AlreadyExistsError):
        capture.begin(store).finish({"label_logprob": -2.5}, [])
    changed = capture.shard_rows(0)
    changed.label_logprob[0] -= 1
    with pytest.raises(AlreadyExistsError):
        capture.begin(store).write_shard(0, changed)
    assert verify_cache(store.cache("demo")) == []


def test_the_first_to_finish_settles_how_the_model_is_opened(store, capture):
    """Several writers may have been given one model by different names."""
    capture.write(store)
    manifest = open_cache(store, "demo").manifest
    again = capture.begin(store).finish(
        manifest.scores, manifest.skipped_documents, "package:some-model"
    )
    assert again == manifest


def changed_rows(rows, **arrays):
    return Rows(**{**{name: getattr(rows, name).copy() for name in vars(rows)}, **arrays})


@pytest.mark.parametrize(
    ("array", "value", "error"),
    [
        ("logprobs", math.nan, NonFiniteError),
        ("logprobs", math.inf, NonFiniteError),
        ("logprobs", 3.0, InvalidInputError),
        ("tail", math.nan, NonFiniteError),
        ("tail", 3.0, InvalidInputError),
        ("ids", 50, InvalidInputError),
        ("ids", -1, InvalidInputError),
        ("label_logprob", 3.0, NonFiniteError),
    ],
)
@pytest.mark.parametrize("step", [None, 1 / 16])
def test_bad_rows_are_refused_and_leave_nothing(tmp_path, make, array, value, error, step):
    capture = make(logprob_step=step)
    writer = capture.begin(Store.open(tmp_path))
    before = writer.location.sizes()
    rows = changed_rows(capture.shard_rows(0))
    getattr(rows, array)[5] = value
    with pytest.raises(error, match=r"[Rr]ow 5"):
        writer.write_shard(0, rows)
    with pytest.raises(InvalidInputError):
        writer.write_shard(0, capture.shard_rows(2))
    with pytest.raises(InvalidInputError, match="float64"):
        writer.write_shard(0, changed_rows(rows, tail=rows.tail.astype(np.float64)))
    with pytest.raises(InvalidInputError, match="no shard 3"):
        writer.write_shard(3, rows)
    assert writer.location.sizes() == before


def test_input_that_does_not_fit_the_fingerprint_leaves_nothing(tmp_path, make, capture):
    store = Store.open(tmp_path / "store")
    order = capture.order
    for tokens, other in (
        (make((3, 4)).tokens, order),
        (capture.tokens, make(vocab_size=51).order),
        (capture.tokens, None),
        (make(vocab_size=60).tokens, order),
    ):
        with pytest.raises(InvalidInputError):
            CacheWriter.create(store, "demo", capture.fingerprint, tokens, other)
    fast = make(profile="fast")
    with pytest.raises(InvalidInputError, match="takes no"):
        CacheWriter.create(store, "demo", fast.fingerprint, fast.tokens, order)
    with pytest.raises(InvalidInputError):
        capture.begin(store, "../elsewhere")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "field",
    [
        {"logprob_step": 1e-5},
        {"k": 51},
        {"rows_per_shard": 17},
        {"selection": "top-q"},
        {"profile": "tiny"},
        {"profile": "compact", "logprob_step": 0},
        {"profile": "lossless", "logprob_step": 1 / 16},
    ],
)
def test_a_fingerprint_is_validated(make, field):
    with pytest.raises(ValueError):
        make(**field)


def test_step_zero_means_exact(make):
    zero, none = (make(profile="lossless", logprob_step=step).fingerprint for step in (0, None))
    assert zero == none


def test_skipped_documents(store, make):
    capture = make((16, 8))
    writer = capture.begin(store)
    writer.write_shard(0, blank_rows(16, 10))
    writer.write_shard(1, capture.shard_rows(1))
    writer.finish({}, [0])
    cache = open_cache(store, "demo")
    assert cache.skipped == {0}
    assert np.all(np.isneginf(cache.document(0).logprobs))
    assert np.all(cache.document(0).tail == 0)
    assert verify_cache(cache.location) == []


def test_one_id_twice_where_order_says_nothing_is_refused(tmp_path, capture):
    writer = capture.begin(Store.open(tmp_path))
    rows = capture.shard_rows(0)
    logprobs, ids = rows.logprobs.copy(), rows.ids.copy()
    logprobs[5, 3:5], ids[5, 3:5] = logprobs[5, 3], ids[5, 3]
    with pytest.raises(InvalidInputError, match="Row 5 holds one token id twice"):
        writer.write_shard(0, changed_rows(rows, logprobs=logprobs, ids=ids))


@pytest.mark.parametrize("profile", ["compact", "lossless"])
@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("ids", lambda values: values + 60_000, "stands for no id"),
        ("token_ids", lambda values: values - 1000, "outside a vocabulary"),
        ("token_class", lambda values: values + 64, "no valid order of ids.*there are 64"),
        ("class_order", lambda values: values // 2, "no valid order of ids.*exactly once"),
        ("rank_to_id", lambda values: values - 1, "no valid order of ids.*exactly once"),
    ],
)
def test_hostile_numbers_with_right_checksums_are_refused(
    tmp_path, make, profile, array, change, message
):
    """Written by zarr-python itself, so that all that is wrong is what they say."""
    step = 1 / 16 if profile == "compact" else None
    make(profile=profile, logprob_step=step).write(Store.open(tmp_path))
    folder = tmp_path / "caches/demo"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = zarr.open_group(folder, mode="r+")[array]
        opened[:] = change(opened[:])
    cache = open_cache(tmp_path, "demo")
    # The receipts would tell by their sizes.
    cache.reader._readers = {
        spec.name: ArrayReader(cache.location, spec) for spec in cache.reader._arrays.per_shard
    }
    with pytest.raises(CorruptionError, match=message):
        cache[:]
    assert verify_cache(cache.location)


def test_entries_that_are_not_there_take_next_to_no_room(tmp_path, make):
    """As in rows that keep few of many places: four entries in 4 places, or in 128."""
    sizes = []
    for k in (4, 128):
        capture = make((3000,), 500, k, rows_per_shard=4096, rows_per_chunk=1024)
        capture.rows.logprobs[:, 4:] = -np.inf
        store = Store.open(tmp_path / str(k))
        capture.write(store)
        cache = open_cache(store, "demo")
        assert_rows_match(cache[:], capture.rows, cache.fingerprint)
        files = cache.location.sizes()
        sizes.append(sum(files[f"{name}/c/0/0"] for name in ("ids", "logprobs")))
    bits_of_an_absent_entry = (sizes[1] - sizes[0]) * 8 / (3000 * 124)
    assert bits_of_an_absent_entry < 0.3


def test_writing_tokens_takes_the_memory_of_one_file(tmp_path, make):
    """Not of all, which may be more than the tokens themselves, given as maps of files."""
    num_tokens = 4 << 20
    described = make((3000,), profile="fast", rows_per_shard=1 << 18, rows_per_chunk=1024)
    fingerprint = described.fingerprint.model_copy(update={"num_tokens": num_tokens})
    ids, ends = np.random.default_rng(0).integers(0, 50, (2, num_tokens), np.int32)
    tokens = TokenTable(ids, ends, np.array([0, num_tokens]))
    tracemalloc.start()
    CacheWriter.create(Store.open(tmp_path), "demo", fingerprint, tokens, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    files = sum(Location.parse(tmp_path / "caches/demo").sizes().values())
    assert peak < files / 2


def test_slices_only(store, capture):
    capture.write(store)
    cache = open_cache(store, "demo")
    for key in (3, slice(0, 4, 2), slice(4, 0, -1)):
        with pytest.raises(InvalidInputError):
            cache[key]
    for index in (-1, 5):
        with pytest.raises(InvalidInputError, match="no document"):
            cache.document(index)


def test_reading_a_damaged_cache_names_the_file_and_the_command(tmp_path, capture):
    store = Store.open(tmp_path)
    capture.write(store)
    file = tmp_path / "caches/demo/logprobs/c/1/0"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    cache = open_cache(tmp_path, "demo")
    cache[0:16]
    with pytest.raises(CorruptionError, match=r"logprobs/c/1/0.*fusestore verify"):
        cache[0:17]
    (tmp_path / "caches/demo/receipts/000002.json").unlink()
    with pytest.raises(CorruptionError, match=r"receipts/000002\.json.*fusestore verify"):
        cache[32:40]
