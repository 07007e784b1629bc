"""A cache's rows for people: each token with the model's most likely next tokens."""

from __future__ import annotations

import numpy as np

from fusestore.cache.reader import open_cache
from fusestore.errors import InvalidInputError
from fusestore.store.layout import Store
from fusestore.tokenizers.vocabulary_table import load_vocabulary

_SHOWN = 4


def document_rows(
    store: Store, name: str, document: int, limit: int
) -> tuple[list[str], list[list[str]]]:
    """The first rows of a document: column names and cells.

    Raises:
        NotFoundError: no such cache, or its vocabulary is missing.
        InvalidInputError: no such document.
    """
    cache = open_cache(store, name)
    count = cache.tokens.num_documents
    if document >= count:
        raise InvalidInputError(
            f"Cache {name!r} has documents 0 to {count - 1}; there is no document {document}."
        )
    vocabulary = load_vocabulary(store, cache.fingerprint.tokenizer_digest)

    def text(token: int) -> str:
        if token >= len(vocabulary):
            return f"<{token}>"
        return repr(vocabulary.token_bytes[token].decode("utf-8", "backslashreplace"))

    ids, _ = cache.tokens.document(document)
    rows = cache.document(document)
    columns = ["position", "token", "p(next)", "tail", *(f"#{n + 1}" for n in range(_SHOWN))]
    start = int(cache.document_offsets[document])
    has_row = cache.kept.mask(start, start + len(ids))
    lines = []
    for position in range(min(limit, len(ids))):
        label, tail = rows.label_logprob[position], rows.tail[position]
        likely = [
            f"{text(int(token))} {np.exp(logprob):.3f}"
            for token, logprob in zip(
                rows.ids[position, :_SHOWN], rows.logprobs[position, :_SHOWN], strict=True
            )
            if logprob > -np.inf
        ]
        likely += [""] * (_SHOWN - len(likely))
        lines.append(
            [
                str(position),
                text(int(ids[position])),
                "" if np.isnan(label) else f"{np.exp(label):.3f}",
                _tail(tail) if has_row[position] else "no row",
                *likely,
            ]
        )
    return columns, lines


def _tail(log_mass: np.float32) -> str:
    return "unknown" if np.isnan(log_mass) else f"{np.exp(log_mass):.3f}"
