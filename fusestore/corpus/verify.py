"""Verifies the documents of a corpus, and its tokens in each tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.corpus.corpus import TABLE_FILE, Corpus, open_corpus
from fusestore.corpus.manifest import TokensManifest
from fusestore.corpus.tokenize import StoredTokens, token_arrays
from fusestore.errors import FusestoreError
from fusestore.storage.location import Location
from fusestore.store.findings import DAMAGE, Finding
from fusestore.store.layout import Store
from fusestore.store.metadata_check import metadata_findings
from fusestore.tokenizers.vocabulary_table import load_vocabulary_manifest

_TOKENS_AT_ONCE = 2**20


def document_findings(store: Store, name: str) -> Iterator[Finding]:
    """The problems of a corpus's documents; the file must be the one that its receipt names."""
    try:
        problem = _problem(open_corpus(store, name))
    except DAMAGE as error:
        problem = str(error)
    if problem is not None:
        yield Finding(TABLE_FILE, problem)


def _problem(corpus: Corpus) -> str | None:
    manifest, table = corpus.manifest, corpus.scan()
    length = pl.col("text").str.len_bytes().cast(pl.Int64)
    turn = pl.element().struct
    bad_turn = (
        (turn.field("start") < 0)
        | (turn.field("stop") < turn.field("start"))
        | turn.field("start").is_null()
    )
    query = table.select(
        documents=(pl.col("document") == pl.int_range(pl.len())).all(),
        complete=pl.all_horizontal(
            pl.col("document", "source", "segment", "split", "text", "byte_length", "digest")
            .is_not_null()
            .all()
        ),
        lengths=(length == pl.col("byte_length")).all(),
        num_bytes=length.sum(),
        turns=pl.col("turns").list.eval(bad_turn).list.any().fill_null(value=False).any(),
        last=(pl.col("turns").list.eval(turn.field("stop")).list.max() > length)
        .fill_null(value=False)
        .any(),
    )
    row = corpus.collect(query).row(0, named=True)
    if not (row["documents"] and row["complete"]):
        return "does not list the documents from 0, each with all that belongs to it"
    if not row["lengths"] or row["num_bytes"] != manifest.num_bytes:
        return "holds texts of other lengths than it says"
    if row["turns"] or row["last"]:
        return "has turns outside their texts"
    sizes = corpus.collect(table.group_by("split").agg(pl.len(), length.sum().alias("bytes")))
    splits = {split: (size, num_bytes) for split, size, num_bytes in sizes.iter_rows()}
    said = {
        split: (size.num_documents, size.num_bytes)
        for split, size in manifest.splits.items()
        if size.num_documents
    }
    return None if splits == said else "has other splits than its manifest says"


def token_findings(
    store: Store, corpus: Corpus, location: Location, path: str
) -> Iterator[Finding]:
    """The problems of the tokens in one folder; its files must be those that it lists.

    Args:
        store: where the tokenizer's vocabulary may be.
        corpus: that was tokenized.
        location: the folder of the tokens.
        path: that folder, relative to the corpus's, with a slash at its end.
    """
    manifest = TokensManifest.load(location / "manifest.json")
    specs = token_arrays(manifest.num_tokens, manifest.num_documents)
    for finding in metadata_findings(location, specs):
        yield Finding(path + finding.file, finding.problem)
    if manifest.num_documents != corpus.manifest.num_documents:
        yield Finding(f"{path}manifest.json", "has another number of documents than the corpus")
        return
    vocab_size = 2**31
    with contextlib.suppress(FusestoreError):
        vocab_size = load_vocabulary_manifest(store, manifest.tokenizer_digest).num_tokens
    try:
        tokens = StoredTokens(location, manifest)
        yield from _number_findings(tokens, vocab_size, path)
    except DAMAGE as error:
        yield Finding(f"{path}manifest.json", f"lists tokens that cannot be read: {error}")


def _number_findings(tokens: StoredTokens, vocab_size: int, path: str) -> Iterator[Finding]:
    offsets, num_tokens = tokens.document_offsets, tokens.manifest.num_tokens
    digests = tokens.digests()
    last = 0
    for start in range(0, num_tokens, _TOKENS_AT_ONCE):
        stop = min(start + _TOKENS_AT_ONCE, num_tokens)
        ids, ends = tokens.read_tokens(start, stop)
        digests.add(ids, ends)
        if ids.min() < 0 or ids.max() >= vocab_size:
            yield Finding(f"{path}token_ids", f"holds ids outside the vocabulary of {vocab_size:,}")
            return
        if ends.min() < 0 or np.any(_falls(ends, last, start, offsets)):
            yield Finding(f"{path}end_offsets", "decrease inside a document")
            return
        last = int(ends[-1])
    if digests.of(offsets) != tokens.digest:
        yield Finding(f"{path}manifest.json", "names other tokens than there are")


def _falls(
    ends: npt.NDArray[np.int32], last: int, start: int, offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Bool [n]: where an end offset is below that of the token before it in its document."""
    falls = ends < np.concatenate([[last], ends[:-1]])
    inside = offsets[(offsets >= start) & (offsets < start + len(ends))] - start
    falls[inside] = False
    return falls
