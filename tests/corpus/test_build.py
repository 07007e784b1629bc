"""Corpora, their tokens and vocabularies in a local store and in a bucket."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from fusestore.corpus import tokenize
from fusestore.corpus.build import write_corpus
from fusestore.corpus.corpus import open_corpus
from fusestore.corpus.splits import HeldOut
from fusestore.corpus.tokenize import corpus_tokens, find_corpus_tokens, store_corpus_tokens
from fusestore.errors import (
    CorruptionError,
    FingerprintMismatchError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.layout import Store
from fusestore.store.receipts import FileRecord
from fusestore.tokenizers.manifest import VocabularyFingerprint, VocabularyManifest
from fusestore.tokenizers.token_table import read_documents
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.tokenizers.vocabulary_table import load_vocabulary, save_vocabulary


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "local":
        return Store.open(tmp_path / "my.store")
    return Store.open(request.getfixturevalue("s3_url") + "/my.store")


@pytest.fixture
def inputs(tmp_path, speeches):
    folder = tmp_path / "speeches"
    folder.mkdir()
    for number, text in enumerate(speeches[:4]):
        (folder / f"{1790 + number}.txt").write_text(text, encoding="utf-8")
    (folder / "1800-blank.txt").write_text(" \n")
    return folder


RULES = (HeldOut(patterns=("1793*",)),)


def test_a_corpus_is_built_opened_and_built_again(store, inputs, smollm2, unigram, speeches):
    seen = []
    options: dict[str, Any] = {
        "held_out": RULES,
        "tokenizers": [smollm2, unigram],
        "max_length": 256,
    }
    corpus = write_corpus(
        store,
        "addresses",
        inputs,
        progress=lambda done, total: seen.append((done, total)),
        **options,
    )
    manifest = corpus.manifest
    table = corpus.table()
    assert manifest.num_documents == len(table) > 4
    assert (manifest.num_sources, manifest.dropped_blank, manifest.forced_cuts) == (4, 1, 0)
    assert manifest.num_bytes == sum(len(text.encode()) for text in speeches[:4])
    assert seen[-1] == (manifest.num_bytes, manifest.num_bytes)
    joined = table.group_by("source", maintain_order=True).agg(pl.col("text").str.join(""))
    assert joined["text"].to_list() == speeches[:4]
    assert table["document"].to_list() == list(range(len(table)))
    held_out = corpus.split_documents("held_out")
    assert held_out.dtype == np.int64
    assert "".join(corpus.texts("held_out")) == speeches[3]
    assert len(held_out) == manifest.splits["held_out"].num_documents
    with pytest.raises(InvalidInputError, match="no split 'test'; it has held_out, train"):
        corpus.texts("test")

    opened = open_corpus(store, "addresses")
    assert opened.digest == corpus.digest
    assert opened.texts() == table["text"].to_list()
    assert opened.describe(0) == "1790.txt, segment 0"
    # The same tokenizers in another order are the same corpus.
    again = write_corpus(
        store, "addresses", inputs, held_out=RULES, tokenizers=[unigram, smollm2], max_length=256
    )
    assert again.manifest == manifest

    names = corpus.location.list_recursive()
    files = {name: (corpus.location / name).read_bytes() for name in names}
    assert names == [
        "documents.parquet",
        "fingerprint.json",
        "manifest.json",
        "receipts/documents.json",
    ]
    corpus.location.delete()
    write_corpus(store, "addresses", inputs, **options)
    assert corpus.location.list_recursive() == names
    assert files == {name: (corpus.location / name).read_bytes() for name in names}


def test_another_corpus_is_not_written_over(tmp_path, inputs, smollm2, unigram):
    store = Store.open(tmp_path / "my.store")
    corpus = write_corpus(store, "c", inputs, tokenizers=[smollm2], max_length=256)
    before = (corpus.location / "manifest.json").read_bytes()
    with pytest.raises(FingerprintMismatchError, match=r"max_length: 256 stored, 128 requested"):
        write_corpus(store, "c", inputs, tokenizers=[smollm2], max_length=128)
    with pytest.raises(FingerprintMismatchError, match="tokenizer_digests"):
        write_corpus(store, "c", inputs, tokenizers=[smollm2, unigram], max_length=256)
    with pytest.raises(FingerprintMismatchError, match="input_digest"):
        write_corpus(store, "c", inputs, tokenizers=[smollm2], max_length=256, max_documents=2)
    assert (corpus.location / "manifest.json").read_bytes() == before
    assert len(corpus.texts()) == corpus.manifest.num_documents


def test_failures_leave_no_corpus(tmp_path, inputs, smollm2):
    store = Store.open(tmp_path / "my.store")
    with pytest.raises(NotFoundError, match=r"no corpus 'c' in .* holds: nothing"):
        open_corpus(store, "c")
    with pytest.raises(InvalidInputError, match="without a tokenizer"):
        write_corpus(store, "c", inputs, max_length=8)
    with pytest.raises(InvalidInputError, match="would be empty: 1 of 5"):
        write_corpus(store, "c", inputs, max_bytes=1)
    with pytest.raises(InvalidInputError, match="leaves no room"):
        write_corpus(store, "c", inputs, tokenizers=[smollm2], max_length=1)
    assert not (tmp_path / "my.store").exists()
    write_corpus(store, "whole", inputs)
    with pytest.raises(NotFoundError, match=r"no corpus 'c' in .* holds: whole"):
        open_corpus(store, "c")


def test_damaged_documents_are_noticed_and_replaced(tmp_path, inputs):
    store = Store.open(tmp_path / "my.store")
    corpus = write_corpus(store, "c", inputs)
    file = corpus.location / "documents.parquet"
    table = corpus.table()
    table.with_columns(text=pl.lit("other")).write_parquet(file.path)
    with pytest.raises(CorruptionError, match="does not hold the documents"):
        open_corpus(store, "c").texts()
    file.path.unlink()
    with pytest.raises(CorruptionError, match="missing or damaged"):
        open_corpus(store, "c").texts()
    assert write_corpus(store, "c", inputs).table().equals(table)


def test_tokens_are_kept_and_read_back(store, inputs, smollm2, mistral, monkeypatch):
    corpus = write_corpus(store, "c", inputs, max_documents=2)
    expected = smollm2.encode(corpus.texts(), add_bos=True)
    for tokenizer, add_bos in ((smollm2, True), (smollm2, False), (mistral, True)):
        first = corpus_tokens(store, "c", tokenizer, add_bos)
        assert first.num_documents == corpus.manifest.num_documents
    names = (corpus.location / "tokens").list()
    assert names == sorted(
        [f"{smollm2.digest[:16]}", f"{smollm2.digest[:16]}-bos", f"{mistral.digest[:16]}-bos"]
    )

    def refuse(*_arguments):
        raise AssertionError("tokenized twice")

    monkeypatch.setattr(Tokenizer, "encode", refuse)
    kept = corpus_tokens(store, corpus, smollm2, True)
    assert np.array_equal(kept.token_ids, expected.token_ids)
    assert np.array_equal(kept.end_offsets, expected.end_offsets)
    assert np.array_equal(kept.document_offsets, expected.document_offsets)


def test_any_stretch_of_tokens_is_read_by_itself(tmp_path, inputs, smollm2, s3_url):
    for root in (tmp_path / "my.store", f"{s3_url}/my.store"):
        store = Store.open(root)
        corpus = write_corpus(store, "c", inputs, max_documents=2)
        assert find_corpus_tokens(corpus, smollm2.digest) == []
        kept = store_corpus_tokens(store, corpus, smollm2, False)
        table = smollm2.encode(corpus.texts(), add_bos=False)
        (found,) = find_corpus_tokens(corpus, smollm2.digest)
        assert found.digest == kept.digest
        for reader in (found, table):
            ids, ends = reader.read_tokens(3, 11)
            assert np.array_equal(ids, table.token_ids[3:11])
            assert np.array_equal(ends, table.end_offsets[3:11])
        documents = np.array([1, 0])
        some, expected = read_documents(found, documents), table.take(documents)
        for name in ("token_ids", "end_offsets", "document_offsets"):
            assert np.array_equal(getattr(some, name), getattr(expected, name))


@pytest.mark.parametrize("add_bos", [False, True])
def test_tokens_are_stored_as_they_come(tmp_path, smollm2, monkeypatch, add_bos):
    """A few documents and a small shard at a time, and the same tokens as all at once."""
    monkeypatch.setattr(tokenize, "_TOKENS_PER_CHUNK", 16)
    monkeypatch.setattr(tokenize, "_TOKENS_PER_SHARD", 64)
    texts = [f"Document {index}. " + "words and words " * (index % 11) for index in range(50)]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = write_corpus(tmp_path / "store", "c", file)
    whole = corpus.text_batches
    monkeypatch.setattr(type(corpus), "text_batches", lambda self: whole(documents=3))
    kept = store_corpus_tokens(tmp_path / "store", corpus, smollm2, add_bos)
    assert len((kept.location / "token_ids/c").list()) > 10
    table, expected = kept.table(), smollm2.encode(texts, add_bos)
    for name in ("token_ids", "end_offsets", "document_offsets"):
        assert np.array_equal(getattr(table, name), getattr(expected, name))
    sizes = {name: size for name, size in kept.location.sizes().items() if name != "manifest.json"}
    assert sizes == {name: record.num_bytes for name, record in kept.manifest.files.items()}


def test_splits_are_read_without_the_texts_and_checked(tmp_path, inputs):
    corpus = write_corpus(tmp_path, "c", inputs, max_documents=2)
    (split,) = corpus.manifest.splits
    alone = open_corpus(tmp_path, "c")
    assert np.array_equal(alone.split_documents(split), corpus.split_documents(split))
    assert "_table" not in vars(alone)
    file = (corpus.location / "documents.parquet").path
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CorruptionError, match=r"checksum|damaged"):
        open_corpus(tmp_path, "c").split_documents(split)


def test_damaged_tokens_are_noticed_and_stale_ones_replaced(tmp_path, inputs, smollm2):
    store = Store.open(tmp_path / "my.store")
    corpus = write_corpus(store, "c", inputs, max_documents=1)
    corpus_tokens(store, corpus, smollm2, False)
    file = (corpus.location / "tokens" / smollm2.digest[:16] / "token_ids/c/0").path
    sound = file.read_bytes()
    file.write_bytes(sound[:9] + bytes([sound[9] ^ 1]) + sound[10:])
    with pytest.raises(CorruptionError, match="missing or damaged"):
        corpus_tokens(store, corpus, smollm2, False)
    file.unlink()
    with pytest.raises(CorruptionError, match="missing or damaged"):
        store_corpus_tokens(store, corpus, smollm2, False).read_tokens(0, 1)
    for name in ("manifest.json", "documents.parquet"):
        (corpus.location / name).delete()
    with pytest.raises(FingerprintMismatchError, match="input_digest"):
        write_corpus(store, "c", inputs, max_documents=2)
    (corpus.location / "fingerprint.json").delete()
    other = write_corpus(store, "c", inputs, max_documents=2)
    tokens = corpus_tokens(store, "c", smollm2, False)
    assert tokens.num_documents == other.manifest.num_documents == 2


def test_vocabularies_are_kept(store, smollm2, wordpiece, mistral):
    for tokenizer in (wordpiece, mistral):
        location = save_vocabulary(store, tokenizer.vocabulary) / "vocabulary.parquet"
        before = location.read_bytes()
        save_vocabulary(store, tokenizer.vocabulary)
        assert location.read_bytes() == before
        assert load_vocabulary(store, tokenizer.digest) == tokenizer.vocabulary
        assert load_vocabulary(store, tokenizer.digest[:16]) == tokenizer.vocabulary
    with pytest.raises(NotFoundError, match="holds no vocabulary of tokenizer"):
        load_vocabulary(store, smollm2.digest)


def test_a_false_vocabulary_is_refused(tmp_path, wordpiece, unigram):
    location = save_vocabulary(tmp_path, wordpiece.vocabulary) / "vocabulary.parquet"
    other = Location.parse(tmp_path) / "vocabularies" / unigram.digest[:16] / "vocabulary.parquet"
    save_vocabulary(tmp_path, unigram.vocabulary)
    sound = other.path.read_bytes()
    for wrong in (location.read_bytes(), b"nothing", sound[:99] + b"\0" + sound[100:]):
        other.path.write_bytes(wrong)
        with pytest.raises(CorruptionError, match=r"does not match its checksum\. `fusestore ver"):
            load_vocabulary(tmp_path, unigram.digest)
    other.path.unlink()
    save_vocabulary(tmp_path, unigram.vocabulary)
    assert other.path.read_bytes() == sound
    # Not damaged, but of another tokenizer.
    other.path.unlink()
    manifest = VocabularyManifest(
        fingerprint=VocabularyFingerprint(tokenizer_digest=unigram.digest),
        num_tokens=1,
        files={other.name: FileRecord.of(location.read_bytes())},
    )
    publish(other, location.read_bytes())
    publish(other.parent / "manifest.json", manifest.to_bytes())
    with pytest.raises(InvalidInputError, match="is not the vocabulary of tokenizer"):
        load_vocabulary(tmp_path, unigram.digest)
