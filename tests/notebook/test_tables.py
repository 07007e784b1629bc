"""Tables of a store as Polars', Arrow's and xarray's: the numbers that the plain readers give."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusestore as fs
from fusestore.align.kinds import ALIGNMENT_KINDS
from fusestore.cache import table as tables
from fusestore.cache.document_rows import document_rows
from fusestore.cache.table import PositionTable
from fusestore.errors import InvalidInputError, MissingDependencyError, NotFoundError
from fusestore.fuse.choices import KIND_NAMES
from fusestore.interop.run import import_rows
from fusestore.interop.settings import ImportSettings
from fusestore.store.layout import Store
from fusestore.tokenizers.vocabulary import TokenKind, Vocabulary
from fusestore.tokenizers.vocabulary_table import load_vocabulary
from fusestore.version import FORMAT_VERSION
from tests.helpers.foreign_rows import make_teacher

KEPT = Path(__file__).parents[1] / f"kept_store/format-{FORMAT_VERSION}/store"
CACHES = sorted(path.name for path in (KEPT / "caches").iterdir())
LEAST = float(np.finfo(np.float32).min)


def rows_of_xarray(dataset):
    """The rows of a table from the arrays of an xarray dataset: what stands for nothing is None."""
    kept = np.isfinite(dataset["logprobs"].values) if "logprobs" in dataset else None
    rows = []
    for index in range(dataset.sizes["position"]):
        row = {}
        for name, values in {**dataset.coords, **dataset.data_vars}.items():
            value = values.values[index]
            if values.ndim == 2:
                has = bool(dataset["has_row"].values[index])
                value = value[kept[index]].tolist() if has else None
                assert has or not kept[index].any()
                others = set(values.values[index][~kept[index]].tolist())
                empty = {"ids": -1, "logprobs": -math.inf, "counts": 0, "tokens": ""}[name]
                assert others <= {empty}
                if name == "tokens" and value is not None:
                    value = [each or None for each in value]
            elif name in ("source_pos", "source_id"):
                value = None if value == -1 else int(value)
            elif values.dtype.kind in "UO":
                value = str(value) or None
            else:
                value = value.item()
                value = None if value != value else value
            row["position" if name == "document_position" else name] = value
        row.pop("has_row", None)
        rows.append(row)
    return rows


def same_in_all_forms(source, *arguments, **options):
    """The table as rows, after a check that the three forms hold the same."""
    table = source.to_polars(*arguments, **options)
    rows = table.to_dicts()
    arrow = source.to_arrow(*arguments, **options)
    assert arrow.to_pylist() == rows
    assert arrow.column_names == table.columns
    dataset = source.to_xarray(*arguments, **options)
    assert dataset.sizes["position"] == len(rows)
    # In arrays an empty text is also that of no token.
    expected = [{name: without_empty(value) for name, value in row.items()} for row in rows]
    assert rows_of_xarray(dataset) == expected
    return rows


def without_empty(value):
    if isinstance(value, list):
        return [each or None if isinstance(each, str) else each for each in value]
    return None if value == "" else value


def check_cache(store, name):
    cache = fs.open_cache(store, name)
    rows = iter(same_in_all_forms(cache, decode=True))
    ends = cache.tokens.end_offsets.tolist()
    num_tokens = cache.fingerprint.tokenizer_length
    at = 0
    for document in range(cache.fingerprint.num_documents):
        shown = document_rows(store, name, document, 10**6)
        begin = 0
        for expected in shown.rows:
            row = next(rows)
            place = (row["document"], row["position"], row["token_id"], row["token"])
            assert place == (document, expected.position, expected.token_id, expected.token)
            assert (row["start_offset"], row["end_offset"]) == (begin, ends[at])
            begin, at = ends[at], at + 1
            assert row["label_logprob"] == expected.label_logprob
            tail = row["tail"]
            assert (LEAST if tail == -math.inf else tail) == expected.tail
            assert (row["ids"] is not None) == expected.kept
            if expected.kept:
                entries = zip(row["ids"], row["logprobs"], row["tokens"], strict=True)
                assert list(entries) == [
                    (entry.id, entry.logprob, None if entry.id >= num_tokens else entry.token)
                    for entry in expected.entries
                ]
    assert next(rows, None) is None


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_of_the_kept_store(name):
    check_cache(Store.open(KEPT), name)


def test_the_kept_caches_are_of_all_sorts():
    fingerprints = [fs.open_cache(KEPT, name).fingerprint for name in CACHES]
    assert {"top-k", "top-p", "sampled"} <= {each.selection for each in fingerprints}
    assert {"compact", "lossless", "fast"} <= {each.profile for each in fingerprints}
    assert {"all", "supervised"} <= {each.only for each in fingerprints}
    assert any(fs.open_cache(KEPT, name).skipped for name in CACHES)


def test_samples_come_with_their_counts():
    cache = fs.open_cache(KEPT, "drawn")
    table = cache.to_polars()
    assert table["counts"].list.sum().to_list() == [cache.k] * len(cache)
    shares = table["counts"].explode().to_numpy() / cache.k
    np.testing.assert_allclose(np.exp(table["logprobs"].explode().to_numpy()), shares, rtol=1e-6)


@pytest.mark.parametrize("labels", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_cache_of_imported_rows(tmp_path, labels):
    teacher = make_teacher()
    ids, logprobs = teacher.top(slice(None))
    has_row = np.random.default_rng(0).random(teacher.tokens.num_tokens) > 0.3
    arrays: dict[str, Any] = {
        "token_ids": teacher.tokens.token_ids,
        "document_offsets": teacher.tokens.document_offsets,
        "has_row": has_row,
        "ids": ids[has_row],
        "logprobs": logprobs[has_row],
    }
    if labels:
        arrays["label_logprob"] = teacher.labels[has_row]
    np.savez(tmp_path / "rows.npz", **arrays)
    store = Store.open(tmp_path / "store")
    import_rows(
        *(store, "few", "numpy", tmp_path / "rows.npz", ImportSettings(profile="lossless")),
        model=teacher.tokenizer,
        corpus="texts",
    )
    check_cache(store, "few")
    table = fs.open_cache(store, "few").to_polars()
    assert (table["ids"].is_not_null().to_numpy() == has_row).all()
    # Without labels that of a next token among the entries is known all the same.
    assert labels or 0 < table["label_logprob"].count() < has_row.sum() / 2


@pytest.mark.parametrize("name", ["answers", "learned", "mince", "mixed"])
def test_a_fused_dataset_of_the_kept_store(name, tmp_path):
    store = fs.open_store(KEPT)
    dataset = fs.open_fused(KEPT, name, cache_dir=tmp_path)
    vocabulary = load_vocabulary(store, dataset.target)
    rows = same_in_all_forms(dataset, decode=True, vocabulary=vocabulary)
    assert len(rows) == dataset.num_tokens
    text = [token.decode("utf-8", "backslashreplace") for token in vocabulary.token_bytes]
    sources = [source["cache"] for source in dataset.plan["recipe"]["sources"]]
    at = position = 0
    for window in range(len(dataset)):
        sample = {name: value.tolist() for name, value in dataset[window].items()}
        documents = set()
        for index in range(len(sample["input_ids"])):
            row = rows[at]
            at += 1
            assert row["window"] == window
            assert row["position"] == position
            position = 0 if sample["document_end"][index] else position + 1
            documents.add(row["document"])
            assert row["token_id"] == sample["input_ids"][index]
            assert row["token"] == text[row["token_id"]]
            following = sample["next_ids"][index]
            # Samples do not tell why a position has no label.
            assert row["next_id"] == following or {row["next_id"], following} == {-101, -100}
            assert (row["next_id"] == -100) == sample["document_end"][index]
            assert row["next_token"] == (text[following] if following >= 0 else None)
            assert row["kind"] in KIND_NAMES
            assert (row["kind"] != "none") == sample["fused_mask"][index]
            assert row["source"] in (None, *sources)
            assert row["tail"] == sample["fused_tail"][index]
            assert 0 <= row["known"] <= 1
            if row["ids"] is not None:
                kept = [each > -math.inf for each in sample["fused_logprobs"][index]]
                for column, field in (("ids", "fused_ids"), ("logprobs", "fused_logprobs")):
                    values = zip(sample[field][index], kept, strict=True)
                    assert row[column] == [value for value, has in values if has]
                assert row["tokens"] == [text[each] for each in row["ids"]]
        assert sorted(documents) == dataset.documents(window)


def test_parts_of_a_fused_dataset_are_those_of_the_whole(tmp_path):
    handle = fs.open_store(KEPT).open_fused("mince")
    whole = handle.to_polars(decode=True)
    count = len(handle.dataset())
    for window in range(count):
        part = whole.filter(pl.col("window") == window)
        assert handle.to_polars(window, decode=True).equals(part)
    assert handle.to_polars(range(1, count), decode=True, limit=7).equals(
        whole.filter(pl.col("window") > 0).head(7)
    )
    assert handle.to_arrow(0).num_rows == handle.to_xarray(0).sizes["position"]
    # A document is divided by windows of any length.
    dataset = handle.dataset()
    dataset._starts, dataset.window_length = None, 5
    assert dataset.to_polars(3)["position"].to_list() == whole["position"].to_list()[15:20]
    with pytest.raises(InvalidInputError, match=rf"no window {count} in fused dataset 'mince'"):
        handle.to_polars(count)
    with pytest.raises(NotFoundError, match="give the vocabulary"):
        fs.open_fused(KEPT, "mixed", cache_dir=tmp_path).to_polars(decode=True)


@pytest.mark.slow
def test_reading_a_table_makes_its_shards(tmp_path):
    store = fs.open_store(KEPT)
    store.push(tmp_path / "store", ["fused/mince"], fs.CopySettings(inputs=True))
    recipe = store.open_fused("mince").recipe
    dataset = fs.open_recipe(tmp_path / "store", recipe, name="later")
    assert not (dataset.folder / "manifest.json").exists()
    columns = ["token_id", "ids", "logprobs", "tail", "position"]
    expected = store.open_fused("mince").to_polars()
    assert dataset.to_polars().select(columns).equals(expected.select(columns))


@pytest.mark.parametrize("name", ["drawn--small", "instructions--chatml", "wide--small"])
def test_an_alignment_of_the_kept_store(name):
    store = fs.open_store(KEPT)
    alignment = store.open_alignment(name)
    rows = iter(same_in_all_forms(alignment, decode=True))
    cache = store.open_cache(name.partition("--")[0])
    fingerprint = alignment.manifest.fingerprint
    vocabularies = [
        load_vocabulary(store, digest).token_bytes
        for digest in (fingerprint.source_tokenizer_digest, fingerprint.target_tokenizer_digest)
    ]
    for document in range(fingerprint.num_documents):
        source_pos, kinds = alignment.for_documents(document, document + 1)
        source_ids = cache.tokens.document(document)[0]
        for target_pos, (source, kind) in enumerate(zip(source_pos, kinds, strict=True)):
            row = next(rows)
            assert (row["document"], row["target_pos"]) == (document, target_pos)
            assert row["kind"] == ALIGNMENT_KINDS[kind]
            assert row["source_pos"] == (None if source < 0 else source)
            assert row["source_id"] == (None if source < 0 else source_ids[source])
            for side, bytes_of in zip(("source", "target"), vocabularies, strict=True):
                token = row[f"{side}_id"]
                shown = None if token is None else bytes_of[token]
                assert row[f"{side}_token"] == (
                    None if shown is None else shown.decode("utf-8", "backslashreplace")
                )
    assert next(rows, None) is None
    whole = alignment.to_polars()
    assert alignment.to_polars(range(1, 2), limit=3).equals(
        whole.filter(pl.col("document") == 1).head(3)
    )


def test_the_target_tokens_of_an_alignment_spell_the_text():
    table = fs.open_store(KEPT).open_alignment("wide--small").to_polars(3, decode=True)
    text = fs.open_store(KEPT).open_corpus("addresses").texts()[3]
    plain = text.encode().decode("ascii", "backslashreplace")
    assert "".join(table["target_token"]) == plain


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        (5, "no document 5 in cache 'small'; documents are 0 to 4"),
        (-1, "no document -1"),
        (range(3, 9), "no document 8"),
        (range(0, 4, 2), "one index or consecutive ones"),
        ([1, 2], "one index or consecutive ones"),
    ],
)
def test_documents_that_are_not_there(documents, said):
    with pytest.raises(InvalidInputError, match=said):
        fs.open_cache(KEPT, "small").to_polars(documents)


def test_nobody_loads_everything_by_accident(monkeypatch):
    cache = fs.open_cache(KEPT, "small")
    whole = cache.to_polars()
    monkeypatch.setattr(tables, "LARGEST_TABLE", 10_000)
    with pytest.raises(InvalidInputError, match=r"164 positions of cache 'small' .*limit="):
        cache.to_polars()
    with pytest.raises(InvalidInputError, match="limit="):
        fs.open_store(KEPT).open_fused("mince").to_arrow(decode=True)
    assert cache.to_polars(limit=1_000).equals(whole)
    assert cache.to_polars(limit=9).equals(whole.head(9))
    assert cache.to_polars(range(0), decode=True).is_empty()
    assert cache.to_xarray(limit=0).sizes["position"] == 0
    with pytest.raises(InvalidInputError, match="limit was -1"):
        cache.to_polars(limit=-1)


@pytest.mark.parametrize("package", ["pyarrow", "xarray"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    convert = {"pyarrow": "to_arrow", "xarray": "to_xarray"}[package]
    with pytest.raises(MissingDependencyError, match=rf"{package}.*fusestore\[notebook\]"):
        getattr(fs.open_cache(KEPT, "small"), convert)(0)
    assert fs.open_cache(KEPT, "small").to_polars(0).height


def test_what_an_xarray_dataset_says_of_itself(tmp_path):
    dataset = fs.open_cache(KEPT, "wide").to_xarray(decode=True)
    assert dataset.attrs["kind"] == "cache"
    assert dataset.attrs["model"] == "LlamaForCausalLM"
    assert dict(dataset.sizes) == {"position": 134, "entry": 8}
    chosen = dataset.where(dataset["document"] == 1, drop=True)
    assert set(chosen["document"].values.tolist()) == {1}
    assert str(KEPT) not in repr(dataset.attrs)


@settings(max_examples=40)
@given(data=st.data(), k=st.integers(1, 5), n=st.integers(0, 12), seed=st.integers(0, 99))
def test_any_rows_are_the_same_in_all_forms(data, k, n, seed):
    generator = np.random.default_rng(seed)
    kept = np.array(data.draw(st.lists(st.integers(0, k), min_size=n, max_size=n)), np.int64)
    present = generator.random(n) < 0.7
    kept_mask = (np.arange(k) < kept[:, None]) & present[:, None]
    logprobs = np.where(kept_mask, generator.normal(-3, 1, (n, k)), -np.inf).astype(np.float32)
    token_kinds: tuple[TokenKind, ...] = ("text",) * 3
    vocabulary = Vocabulary("0" * 64, (b"a", b"\xff", "é".encode()), token_kinds, ())
    tail = np.where(generator.random(n) < 0.5, np.nan, -1).astype(np.float32)
    values = {
        "document": np.zeros(n, np.int32),
        "position": np.arange(n, dtype=np.int32),
        "token_id": generator.integers(0, 5, n).astype(np.int32),
        "kind": generator.integers(-1, 2, n).astype(np.int32),
        "ids": generator.integers(0, 5, (n, k)).astype(np.int32),
        "logprobs": logprobs,
        "tail": tail,
    }
    table = PositionTable(
        values,
        kept_mask,
        present,
        nulls={"ids": -1},
        names={"kind": ("x", "y")},
        texts={"token": ("token_id", vocabulary), "tokens": ("ids", vocabulary)},
        coordinates=("document", "position", "token"),
    )
    rows = same_in_all_forms(table)
    text = {0: "a", 1: "\\xff", 2: "é"}
    assert len(rows) == n
    for index, row in enumerate(rows):
        entries = range(int(kept_mask[index].sum()))
        has = bool(present[index])
        assert row["token"] == text.get(row["token_id"])
        assert row["kind"] == {-1: None, 0: "x", 1: "y"}[int(values["kind"][index])]
        assert row["tail"] == (None if np.isnan(tail[index]) else tail[index])
        assert row["ids"] == ([int(values["ids"][index, e]) for e in entries] if has else None)
        assert row["logprobs"] == ([float(logprobs[index, e]) for e in entries] if has else None)
        assert row["tokens"] == (None if not has else [text.get(i) for i in row["ids"]])
