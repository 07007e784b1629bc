"""The rows of an alignment as a table, with the tokens of both sides if they are wanted."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.align.kinds import ALIGNMENT_KINDS
from fusestore.align.manifest import AlignmentFingerprint
from fusestore.align.target_tokens import aligned_tokens
from fusestore.cache.reader import open_cache
from fusestore.cache.table import PositionTable
from fusestore.corpus.corpus import open_corpus
from fusestore.store.inventory import name_by_digest
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenReader
from fusestore.tokenizers.vocabulary import Vocabulary
from fusestore.tokenizers.vocabulary_table import load_vocabulary

ALIGNMENT_SCHEMA = pl.Schema(
    {
        "document": pl.Int32(),
        "target_pos": pl.Int32(),
        "source_pos": pl.Int32(),
        "kind": pl.Enum(ALIGNMENT_KINDS),
    }
)
"""One row per target token; `source_pos` is null for unaligned tokens."""


class AlignedTokens(NamedTuple):
    """What the two sides of an alignment read.

    Attributes:
        source: tokens of the source, of all documents.
        target: tokens of the target, of all documents.
        source_vocabulary: of the source's ids.
        target_vocabulary: of the target's ids.
    """

    source: TokenReader
    target: TokenReader
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary


def tokens_of_both_sides(
    store: Store, name: str, fingerprint: AlignmentFingerprint
) -> AlignedTokens:
    """The tokens that an alignment of a store pairs.

    Args:
        store: the store.
        name: of the alignment, which begins with that of the cache.
        fingerprint: of the alignment.

    Raises:
        NotFoundError: the store no longer holds the cache, the corpus or a vocabulary.
    """
    hint = name.partition("--")[0]
    cache = open_cache(store, name_by_digest(store, "cache", fingerprint.source_cache_digest, hint))
    named = cache.fingerprint.corpus
    corpus = open_corpus(
        store, name_by_digest(store, "corpus", fingerprint.corpus_digest, named.name)
    )
    return AlignedTokens(
        cache,
        aligned_tokens(corpus, fingerprint),
        load_vocabulary(store, fingerprint.source_tokenizer_digest),
        load_vocabulary(store, fingerprint.target_tokenizer_digest),
    )


def aligned_table(
    rows: tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]],
    first: int,
    offsets: npt.NDArray[np.int64],
    tokens: AlignedTokens | None,
    attributes: dict[str, str | int],
) -> PositionTable:
    """The rows of consecutive target tokens; columns as `Alignment.to_polars` describes them.

    Args:
        rows: int32 [n] source positions, −1 for none, and uint8 [n] kinds.
        first: index of the first row in the alignment.
        offsets: int64 [D + 1], the first target token of each document.
        tokens: adds the text of both tokens; None adds none.
        attributes: of xarray's dataset.
    """
    source_pos, kind = rows
    indices = np.arange(first, first + len(kind))
    documents = np.searchsorted(offsets, indices, side="right") - 1
    values: dict[str, npt.NDArray[Any]] = {
        "document": documents.astype(np.int32),
        "target_pos": (indices - offsets[documents]).astype(np.int32),
        "source_pos": source_pos,
        "kind": kind.astype(np.int32),
    }
    texts = {}
    if tokens is not None:
        values["target_id"] = tokens.target.read_tokens(first, first + len(kind))[0]
        values["source_id"] = _source_ids(tokens.source, documents, source_pos)
        texts = {
            "target_token": ("target_id", tokens.target_vocabulary),
            "source_token": ("source_id", tokens.source_vocabulary),
        }
    return PositionTable(
        values,
        nulls={"source_pos": -1, "source_id": -1},
        names={"kind": ALIGNMENT_KINDS},
        texts=texts,
        coordinates=("document", "target_pos", "target_id", "target_token"),
        attributes=attributes,
    )


def _source_ids(
    source: TokenReader, documents: npt.NDArray[np.int64], source_pos: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """int32 [n]: the id of the source token of each row, −1 for none."""
    ids = np.full(len(source_pos), -1, np.int32)
    if not len(ids):
        return ids
    offsets = source.document_offsets
    start, stop = int(offsets[documents[0]]), int(offsets[documents[-1] + 1])
    read = source.read_tokens(start, stop)[0]
    paired = source_pos >= 0
    ids[paired] = read[(offsets[documents] + source_pos)[paired] - start]
    return ids
