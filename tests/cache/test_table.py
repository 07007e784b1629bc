"""`Cache.to_polars`: the rows of a cache as a table."""

import numpy as np
import polars as pl
import pytest

from fusestore.cache.reader import open_cache
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.store.layout import Store
from fusestore.tokenizers.vocabulary import TokenKind, Vocabulary
from fusestore.tokenizers.vocabulary_table import save_vocabulary

TEXTS = [b" the", b"\xff", "é".encode(), *(f"t{index}".encode() for index in range(3, 45))]


@pytest.fixture
def cache(tmp_path, make):
    """One whose rows keep from none to ten entries; five ids are padding without a token."""
    make(absent=0.9).write(Store.open(tmp_path))
    kinds: tuple[TokenKind, ...] = ("text",) * len(TEXTS)
    save_vocabulary(Store.open(tmp_path), Vocabulary("7" * 64, tuple(TEXTS), kinds, ()))
    return open_cache(tmp_path, "demo")


def test_every_value_is_that_of_the_rows(cache):
    table, rows = cache.to_polars(), cache[:]
    assert table.columns[:4] == ["document", "position", "token_id", "start_offset"]
    assert table.height == len(cache)
    np.testing.assert_array_equal(table["tail"], rows.tail)
    np.testing.assert_array_equal(table["label_logprob"].fill_null(np.nan), rows.label_logprob)
    np.testing.assert_array_equal(table["token_id"], cache.tokens.token_ids)
    for index in range(len(cache)):
        kept = np.isfinite(rows.logprobs[index])
        assert table["ids"][index].to_list() == rows.ids[index][kept].tolist()
        assert table["logprobs"][index].to_list() == rows.logprobs[index][kept].tolist()
    assert {0, 10} & {len(ids) for ids in table["ids"]} or table["ids"].list.len().n_unique() > 1


def test_one_document_is_its_part_of_the_whole(cache):
    whole = cache.to_polars(decode=True)
    for document in range(cache.fingerprint.num_documents):
        part = cache.to_polars(document, decode=True)
        assert part.equals(whole.filter(pl.col("document") == document))
        assert part["position"].to_list() == list(range(part.height))
    with pytest.raises(InvalidInputError, match="no document 5"):
        cache.to_polars(5)


def test_ids_are_decoded_and_padding_has_no_text(cache):
    table = cache.to_polars(decode=True)
    shown = {0: " the", 1: "\\xff", 2: "é", 44: "t44", 45: None, 49: None}
    seen = set()
    for row in table.iter_rows(named=True):
        pairs = [(row["token_id"], row["token"]), *zip(row["ids"], row["tokens"], strict=True)]
        for token_id, text in pairs:
            if token_id in shown:
                assert text == shown[token_id]
                seen.add(token_id)
    assert {0, 49} <= seen


def test_the_three_forms_hold_the_same(cache):
    """Also of document 1, which is empty, and of ids that no token has."""
    table, rows = cache.to_polars(decode=True), cache[:]
    assert set(table["document"]) == {0, 2, 3, 4}
    assert cache.to_polars(1, decode=True).schema == table.schema
    assert cache.to_polars(1).is_empty()
    assert cache.to_polars(range(1, 3)).equals(cache.to_polars(2))
    assert cache.to_arrow(1).num_rows == cache.to_xarray(1, decode=True).sizes["position"] == 0
    assert cache.to_arrow(decode=True).to_pylist() == table.to_dicts()
    arrays, kept = cache.to_xarray(decode=True), np.isfinite(rows.logprobs)
    np.testing.assert_array_equal(arrays["logprobs"], rows.logprobs)
    np.testing.assert_array_equal(arrays["ids"], np.where(kept, rows.ids, -1))
    np.testing.assert_array_equal(arrays["tail"], rows.tail)
    np.testing.assert_array_equal(arrays["label_logprob"], rows.label_logprob)
    for column in ("document", "token_id", "start_offset", "end_offset"):
        np.testing.assert_array_equal(arrays[column], table[column])
    assert arrays["token"].values.tolist() == table["token"].fill_null("").to_list()
    for index, tokens in enumerate(table["tokens"].to_list()):
        assert arrays["tokens"].values[index][kept[index]].tolist() == [t or "" for t in tokens]
        assert set(arrays["tokens"].values[index][~kept[index]]) <= {""}


def test_without_the_vocabulary_ids_can_be_had_and_text_cannot(tmp_path, capture):
    capture.write(Store.open(tmp_path))
    cache = open_cache(tmp_path, "demo")
    assert cache.to_polars(3).height == 14
    with pytest.raises(NotFoundError, match="no vocabulary of tokenizer 7777777777777777"):
        cache.to_polars(3, decode=True)


def test_a_cache_says_what_it_is(cache, tmp_path):
    shown = repr(cache)
    for part in ("'demo'", str(tmp_path), "40 rows of 10 entries", "'talk'", "ToyForCausalLM"):
        assert part in shown
