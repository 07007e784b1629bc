"""A cache's rows for people: a document's text, and the entries of each of its tokens."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fusestore.cache.reader import Cache, open_cache
from fusestore.errors import InvalidInputError
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen
from fusestore.tokenizers.vocabulary_table import load_vocabulary

_LEAST = np.finfo(np.float32).min
"""Stands for the logarithm of 0, which JSON does not have."""


class ShownEntry(Frozen):
    """One kept entry of a row.

    Attributes:
        id: token id.
        token: its text; bytes that are no UTF-8 in hexadecimal.
        logprob: natural logarithm of its probability.
    """

    id: int
    token: str
    logprob: float


class ShownRow(Frozen):
    """A token of a document, and the distribution of what follows it.

    Attributes:
        position: of the token in its document, from 0.
        token_id: its id.
        token: its text; bytes that are no UTF-8 in hexadecimal.
        label: text of the next token; null for the last one.
        label_logprob: natural logarithm of the next token's probability; null where it is unknown.
        label_rank: place of the next token among the entries, from 1; null if it is not among
            them.
        kept: whether the cache has a row for it; captures may keep those of supervised tokens only.
        tail: natural logarithm of the mass outside the entries, the least float32 where there is
            none; null if it is unknown.
        entries: most likely first.
    """

    position: int
    token_id: int
    token: str
    label: str | None
    label_logprob: float | None
    label_rank: int | None
    kept: bool
    tail: float | None
    entries: tuple[ShownEntry, ...]


class ShownCacheDocument(Frozen):
    """A document of a cache; what `fusestore show CACHE --document --json` prints.

    Attributes:
        artifact: `kind/name` of the cache.
        document: index of the document in the corpus.
        text: its text, as its tokens spell it.
        num_tokens: tokens of the document.
        rows: some of its rows, in order.
    """

    artifact: str
    document: int = Field(ge=0)
    text: str
    num_tokens: int
    rows: tuple[ShownRow, ...]


def document_rows(
    store: Store, name: str, document: int, limit: int, first: int = 0
) -> ShownCacheDocument:
    """The text of a document, and `limit` of its rows from token `first` on.

    Raises:
        NotFoundError: no such cache, or its vocabulary is missing.
        InvalidInputError: no such document.
    """
    cache = open_cache(store, name)
    count = cache.fingerprint.num_documents
    if document >= count:
        raise InvalidInputError(
            f"Cache {name!r} has documents 0 to {count - 1}; there is no document {document}."
        )
    vocabulary = load_vocabulary(store, cache.fingerprint.tokenizer_digest)

    def spelled(token: int) -> bytes:
        if 0 <= token < len(vocabulary):
            return vocabulary.token_bytes[token]
        return f"<{token}>".encode()

    start, stop = cache.document_offsets[document : document + 2].tolist()
    ids = cache.read_tokens(start, stop)[0].tolist()
    shown = range(first, min(first + limit, len(ids)))
    rows = cache[start + shown.start : start + shown.stop]
    has_row = cache.kept.mask(start + shown.start, start + shown.stop)

    def row(index: int) -> ShownRow:
        position = shown[index]
        label = ids[position + 1] if position + 1 < len(ids) else None
        entries = [
            (int(token), float(logprob))
            for token, logprob in zip(rows.ids[index], rows.logprobs[index], strict=True)
            if logprob > -np.inf
        ]
        kept = [token for token, _ in entries]
        return ShownRow(
            position=position,
            token_id=ids[position],
            token=_text(spelled(ids[position])),
            label=None if label is None else _text(spelled(label)),
            label_logprob=_known(rows.label_logprob[index]),
            label_rank=kept.index(label) + 1 if label in kept else None,
            kept=bool(has_row[index]),
            tail=_known(rows.tail[index]),
            entries=tuple(
                ShownEntry(id=token, token=_text(spelled(token)), logprob=logprob)
                for token, logprob in entries
            ),
        )

    return ShownCacheDocument(
        artifact=f"cache/{name}",
        document=document,
        text=b"".join(map(spelled, ids)).decode("utf-8", "backslashreplace"),
        num_tokens=len(ids),
        rows=tuple(map(row, range(len(shown)))),
    )


def first_kept_row(cache: Cache) -> tuple[int, int] | None:
    """The first document with a row, and the position of that row in it; None without rows."""
    offsets = cache.document_offsets
    document = position = 0
    if cache.fingerprint.kept is not None:
        token = int(cache.kept.runs[0, 0])
        document = int(np.searchsorted(offsets, token, side="right")) - 1
        position = token - int(offsets[document])
    skipped = cache.skipped
    for index in range(document, len(offsets) - 1):
        if index not in skipped and offsets[index] < offsets[index + 1]:
            return index, position if index == document else 0
    return None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _known(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(max(value, _LEAST))
