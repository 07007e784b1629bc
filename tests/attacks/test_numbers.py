"""Numbers that are none, with every checksum made again: `verify` and training refuse them."""

import shutil

import numpy as np
import polars as pl
import pytest

from fusestore.align.vocabulary.stored_map import MAP_SCHEMA
from fusestore.data import StreamingFusedDataset, open_fused
from fusestore.errors import CorruptionError, FusestoreError
from fusestore.fuse.row_rules import first_bad_row
from fusestore.store.layout import Store
from fusestore.train.guards import check_rows
from fusestore.workflows.verification import verify_store
from tests.helpers.limits import refused, within_limits
from tests.helpers.resealed import change_array, change_raw, path_of, read_json, reseal, write_json
from tests.helpers.some_cases import first, some


def put(place, value):
    def edit(values):
        values[place] = value

    return edit


def twice(values):
    values[:, 1] = values[:, 0]


FUSED = {
    "an id beyond the vocabulary": ("ids", put((3, 0), 280)),
    "an id below zero": ("ids", put((3, 0), -1)),
    "one id in all entries": ("ids", put(slice(None), 7)),
    "an id twice": ("ids", twice),
    "log-probability 50": ("logprobs", put((3, 0), 50)),
    "log-probability 1e30": ("logprobs", put((3, 0), 1e30)),
    "log-probability NaN": ("logprobs", put((3, 1), np.nan)),
    "log-probability inf": ("logprobs", put((3, 0), np.inf)),
    "rising": ("logprobs", put((3, 0), -30)),
    "mass 2": ("logprobs", put((3, slice(0, 2)), 0)),
    "tail 5": ("tail", put(3, 5)),
    "tail NaN": ("tail", put(3, np.nan)),
    "tail inf": ("tail", put(3, np.inf)),
    "tail 1e30": ("tail", put(3, 1e30)),
    "no mass": ("tail", put(slice(None), -np.inf)),
    "kind 77": ("kind", put(3, 77)),
    "kind 255": ("kind", put(3, 255)),
    "kind 7": ("kind", put(3, 7)),
    "a token beyond the vocabulary": ("input_ids", put(3, 280)),
    "a token below zero": ("input_ids", put(3, -5)),
    "a next token beyond the vocabulary": ("next_ids", put(3, 2**31 - 1)),
    "a next token below zero": ("next_ids", put(3, -7)),
}
"""Array and change; training sees them all."""

UNSEEN = {
    "known 2": ("known", put(3, 2)),
    "known NaN": ("known", put(3, np.nan)),
    "a source that there is not": ("source", put(3, 9)),
    "a source below −1": ("source", put(3, -2)),
    "documents that fall": ("document", put(3, 2**31 - 1)),
    "a document below zero": ("document", put(0, -1)),
}
"""What no sample has."""

OTHERS = [
    ("caches/exact", "token_ids", put(3, 10**6)),
    ("caches/exact", "token_ids", put(3, -1)),
    ("caches/exact", "end_offsets", put(3, 0)),
    ("caches/exact", "document_offsets", put(1, 10**15)),
    ("caches/exact", "document_offsets", put(1, -(2**63))),
    ("caches/exact", "logprobs", put((3, 0), np.nan)),
    ("caches/exact", "logprobs", put((3, 0), 3)),
    ("caches/exact", "logprobs", put(3, -20)),
    ("caches/exact", "tail", put(3, 5)),
    ("caches/exact", "tail", put(3, -np.inf)),
    ("caches/exact", "label_logprob", put(0, -np.inf)),
    ("caches/exact", "label_logprob", put(0, 1)),
    ("caches/exact", "rank_to_id", put(0, 10**6)),
    ("caches/small", "tail", put(3, 60_000)),
    ("caches/small", "label_logprob", put(0, np.inf)),
    ("caches/drawn", "logprobs", put((3, 0), 60_000)),
    ("caches/drawn", "logprobs", put(3, 0)),
    ("alignments/wide--small", "source_pos", put(5, -100)),
    ("alignments/wide--small", "source_pos", put(5, 10**6)),
    ("alignments/wide--small", "source_pos", put(slice(None), 30)),
    ("alignments/wide--small", "kind", put(5, 4)),
    ("alignments/wide--small", "kind", put(5, 255)),
    ("alignments/wide--small", "document_offsets", put(1, 10**9)),
    ("alignments/wide--small", "document_offsets", put(0, -1)),
]


def findings_of(root, folder):
    path = path_of(root / folder)
    return verify_store(Store.open(root), path)[path]


QUICK = ("an id beyond the vocabulary", "log-probability NaN", "mass 2", "kind 77", "an id twice")


@pytest.mark.parametrize("form", ["mince", "mixed"])
@pytest.mark.parametrize("name", some(FUSED | UNSEEN, *QUICK, "known 2"))
def test_verify_finds_fused_rows_that_are_none(parts, form, name):
    store = parts(f"fused/{form}")
    array, edit = (FUSED | UNSEEN)[name]
    try:
        change_raw(store / "fused" / form, array, edit)
    except (OverflowError, IndexError):
        pytest.skip("the array cannot hold it")
    assert findings_of(store, f"fused/{form}")


@pytest.mark.parametrize("name", some(FUSED, *QUICK))
def test_training_refuses_what_verify_finds(parts, tmp_path, name):
    store = parts("fused/mince", "fused/mixed")
    array, edit = FUSED[name]
    change_raw(store / "fused/mince", array, edit)
    for dataset, samples in opened(store, "fused/mince", tmp_path):
        with pytest.raises(FusestoreError, match=r"mince|kind/c/0"):
            train_on(dataset, samples)
    change_raw(store / "fused/mixed", array, edit)
    with pytest.raises(FusestoreError):
        train_on(*fetched(store, tmp_path))


def opened(root, folder, tmp_path):
    dataset = open_fused(root, folder.rpartition("/")[2])
    yield dataset, (dataset[window] for window in range(len(dataset)))
    stream = StreamingFusedDataset(root / folder, cache_dir=tmp_path / "cache")
    yield stream, stream


def fetched(root, tmp_path):
    """In the shared form a shard is fetched and decoded."""
    stream = StreamingFusedDataset(root / "fused/mixed", cache_dir=tmp_path / "cache")
    return stream, stream


def train_on(dataset, samples):
    """What `Updates.step` does with each batch before the model sees it."""
    from fusestore.data import collate

    for sample in samples:
        problem = check_rows(collate([sample]), dataset)
        if problem is not None:
            raise problem


def test_training_names_artifact_shard_and_row(parts):
    store = parts("fused/mince")
    change_raw(store / "fused/mince", "tail", put(30, np.nan))
    dataset = open_fused(store, "mince")
    with pytest.raises(CorruptionError, match=r"Row 30 in shard 0 of .* mince.*tail nan"):
        train_on(dataset, (dataset[window] for window in range(len(dataset))))


def test_sound_rows_are_trained_on(first_store, tmp_path):
    for name in ("mince", "learned", "answers"):
        for dataset, samples in opened(first_store, f"fused/{name}", tmp_path):
            train_on(dataset, samples)


@pytest.mark.parametrize(("folder", "array", "edit"), first(3, OTHERS))
def test_verify_finds_other_numbers_that_are_none(parts, folder, array, edit):
    store = parts(folder, "caches/wide")
    change_raw(store / folder, array, edit)
    assert findings_of(store, folder)


@pytest.mark.parametrize("token", [-(2**31), -1, 2**31 - 1])
def test_a_document_with_a_token_that_is_none_is_shown(parts, command, token):
    root = parts("caches/exact")
    change_array(root / "caches/exact", "token_ids", put(slice(None), token))
    reseal(root / "caches/exact")
    shown = command("show", "cache/exact", "--document", "0", "--store", root)
    assert "defect of fusestore" not in shown.err
    assert shown.code == 1 or f"<{token}>" in shown.out


def test_a_cache_without_compression_holds_no_foreign_ids(tmp_path, store):
    """In the profile `fast` an id is what is stored, so nothing else would notice."""
    import fusestore as fs
    from tests.helpers.fast_cache import write_fast_cache

    folder = write_fast_cache(store)
    assert not findings_of(store, "caches/fast")
    change_raw(folder, "ids", put((3, 0), 60_000))
    assert findings_of(store, "caches/fast")
    refused(lambda: fs.open_cache(store, "fast")[:])


TOKENS = [
    ("token_ids", put(3, 10**6)),
    ("token_ids", put(3, -1)),
    ("end_offsets", put(0, 10**6)),
    ("document_offsets", put(1, 10**12)),
]


@pytest.mark.parametrize(("array", "edit"), first(1, TOKENS))
def test_verify_finds_wrong_tokens_of_a_corpus(parts, array, edit):
    store = parts("corpora/addresses")
    folder = store / "corpora/addresses"
    change_array(next(iter(sorted((folder / "tokens").iterdir()))), array, edit)
    reseal(folder)
    assert findings_of(store, "corpora/addresses")


MAP = "vocabulary_maps/90d78994042a034f-3db84913482aecae-prefix"


def write_table(file, table):
    table.write_parquet(file, compression="zstd")


MAP_CHANGES = [
    lambda table: table.with_columns(target_id=pl.lit(-5, pl.Int32)),
    lambda table: table.with_columns(target_id=pl.lit(10**6, pl.Int32)),
    lambda table: table.with_columns(distance=pl.lit(-1, pl.Int32)),
    lambda table: table.with_columns(source_id=pl.lit(0, pl.Int32)),
    lambda table: table.with_columns(kind=pl.lit(None, MAP_SCHEMA["kind"])),
    lambda table: table.with_columns(kind=pl.lit("exact")),
    lambda table: table.drop("kind"),
    lambda table: table.rename({"target_id": "target"}),
    lambda table: table.with_columns(target_id=pl.lit("x")),
    lambda table: table.head(3),
    lambda table: pl.concat([table, table]),
    lambda table: table.clear(),
]


@pytest.mark.parametrize("number", some(range(len(MAP_CHANGES)), 1, 6))
def test_verify_finds_a_map_that_is_none(parts, number):
    store = parts(MAP)
    file = store / MAP / "map.parquet"
    write_table(file, MAP_CHANGES[number](pl.read_parquet(file)))
    reseal(store / MAP)
    with within_limits():
        assert findings_of(store, MAP)


@pytest.mark.parametrize(
    ("folder", "file"),
    first(
        1,
        [
            (MAP, "map.parquet"),
            ("vocabularies/2fc7ebcd56fd74cb", "vocabulary.parquet"),
            ("alignments/wide--small", "unmatched.parquet"),
            ("corpora/addresses", "documents.parquet"),
        ],
    ),
)
def test_a_table_of_far_more_rows_is_not_read(parts, folder, file):
    store = parts(folder)
    """A few kilobytes stand for a hundred million rows."""
    path = store / folder / file
    schema = pl.read_parquet_schema(path)
    column = pl.Series([None], dtype=pl.Int32).new_from_index(0, 30_000_000)
    pl.DataFrame({"x": column}).write_parquet(path, compression="zstd")
    manifest = store / folder / "manifest.json"
    content = read_json(manifest)
    for key in ("num_source_ids", "num_tokens", "num_documents"):
        if key in content:
            content[key] = 30_000_000
    write_json(manifest, content)
    reseal(store / folder)
    assert schema
    with within_limits():
        assert findings_of(store, folder)


@pytest.mark.slow
def test_a_page_that_says_it_has_gigabytes_is_not_read(parts):
    store = parts(MAP)
    path = store / MAP / "map.parquet"
    long = pl.DataFrame({"x": ["a" * 10**8] * 4})
    long.write_parquet(path, compression="zstd", use_pyarrow=False)
    reseal(store / MAP)
    with within_limits():
        assert findings_of(store, MAP)


def test_weights_that_are_no_numbers(parts):
    store = parts("models/fused")
    from safetensors.numpy import load_file, save_file

    file = store / "models/fused/model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[0] = np.nan
    save_file(tensors, file)
    reseal(store / "models/fused")
    assert any(name in finding.problem for finding in findings_of(store, "models/fused"))


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"[" * 5_000,
        b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "X", "shape": [], "data_offsets": [0, 0]}}',
        b'{"a": 5}',
    ],
)
@pytest.mark.parametrize("length", some([None, 0, 2**63, 2**64 - 1], 2**63))
def test_headers_of_weights_that_are_none(parts, header, length):
    store = parts("models/fused")
    size = len(header) if length is None else length
    data = size.to_bytes(8, "little") + header + bytes(12)
    (store / "models/fused/model.safetensors").write_bytes(data)
    reseal(store / "models/fused")
    with within_limits():
        assert findings_of(store, "models/fused")


def test_rules_against_a_plain_loop():
    """The compiled pass finds what an obvious one finds."""
    rng = np.random.default_rng(5)
    for trial in range(300):
        n, k = 4, 3
        probs = np.sort(rng.dirichlet(np.ones(k + 1), n))[:, ::-1]
        ids = np.argsort(rng.random((n, 9)))[:, :k].astype(np.int32)
        logprobs = np.log(probs[:, :k]).astype(np.float32)
        tail = np.log(probs[:, k]).astype(np.float32)
        kind = np.ones(n, np.uint8)
        tokens = rng.integers(0, 9, (2, n)).astype(np.int32)
        row = int(rng.integers(n))
        if trial % 6 == 1:
            ids[row, 1] = ids[row, 0]
        elif trial % 6 == 2:
            logprobs[row, rng.integers(k)] = rng.choice([np.nan, np.inf, 0.5, -50.0])
        elif trial % 6 == 3:
            tail[row] = rng.choice([np.nan, np.inf, 0.5, -np.inf])
        elif trial % 6 == 4:
            tokens[rng.integers(2), row] = rng.choice([-1, 9, -100, -101])
        elif trial % 6 == 5:
            kind[row] = rng.choice([0, 6, 7])
        found = first_bad_row(tokens[0], tokens[1], ids, logprobs, tail, kind, 9, 7)
        bad = [not plain(*each) for each in zip(*tokens, ids, logprobs, tail, kind, strict=True)]
        assert (found is not None) == any(bad), (trial, found)
        assert found is None or found.row == bad.index(True)


def plain(token, following, ids, logprobs, tail, kind):
    used = logprobs > -np.inf
    mass = np.exp(logprobs.astype(np.float64)).sum() + np.exp(np.float64(tail))
    return (
        0 <= token < 9
        and (0 <= following < 9 or following in (-100, -101))
        and kind < 7
        and bool(np.all(logprobs <= 1e-3))
        and bool(np.all(np.diff(logprobs[used]) <= 0))
        and bool(np.all((ids >= 0) & (ids < 9)))
        and tail <= 1e-3
        and (not used.any() if kind == 0 else abs(mass - 1) <= 2e-3 and len(set(ids)) == len(ids))
    )


def test_the_kept_store_is_sound_after_resealing(store):
    """So that what the tests above find is what they changed."""
    for folder in ("caches/exact", "fused/mince", "fused/mixed", "alignments/wide--small", MAP):
        before = {path: path.read_bytes() for path in (store / folder).rglob("*.json")}
        reseal(store / folder)
        assert before == {path: path.read_bytes() for path in (store / folder).rglob("*.json")}
    shutil.rmtree(store)
