"""`TokenTable`: documents as flat token ids with the byte offsets at which the tokens end.

`TokenReader` reads ranges of the same, for stages with memory that must not grow with the corpus.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError


class TokenReader(Protocol):
    """Tokens of D documents, concatenated and read range by range; see `TokenTable`."""

    @property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [D + 1]."""

    def read_tokens(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Ids and end offsets of tokens `[start, stop)`."""


def offsets_problem(offsets: npt.NDArray[np.int64], size: int) -> str | None:
    """Why numbers cannot be the offsets of documents of `size` tokens in all; None if they can."""
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != size:
        return "do not cover the tokens from first to last"
    # Compared, because a difference of two int64 may wrap around.
    return "decrease" if np.any(offsets[1:] < offsets[:-1]) else None


@dataclass(frozen=True)
class TokenTable:
    """Tokens of D documents, concatenated; T tokens in all.

    Attributes:
        token_ids: int32 [T].
        end_offsets: int32 [T]: the byte offset inside its document (UTF-8) at which each token
            ends; never decreasing within a document. A BOS token ends at 0.
        document_offsets: int64 [D + 1]: document i is tokens
            `[document_offsets[i], document_offsets[i + 1])`.
        counted_bytes: int32 [T]: the bytes of text that count with the prediction of each token, −1
            for a token whose prediction does not count. None: all but each document's first count.
    """

    token_ids: npt.NDArray[np.int32]
    end_offsets: npt.NDArray[np.int32]
    document_offsets: npt.NDArray[np.int64]
    counted_bytes: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.end_offsets):
            raise InvalidInputError(
                f"{len(self.token_ids)} token ids but {len(self.end_offsets)} end offsets."
            )
        problem = offsets_problem(self.document_offsets, len(self.token_ids))
        if problem is not None:
            raise InvalidInputError(f"Document offsets {problem}.")

    @property
    def is_counted(self) -> npt.NDArray[np.bool_]:
        """Bool [T], whether the prediction of each token counts."""
        if self.counted_bytes is not None:
            return self.counted_bytes >= 0
        counted = np.ones(self.num_tokens, np.bool_)
        starts = self.document_offsets[:-1]
        counted[starts[np.diff(self.document_offsets) > 0]] = False
        return counted

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.document_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    def document(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Token ids and end offsets of one document."""
        start, stop = self.document_offsets[index], self.document_offsets[index + 1]
        return self.token_ids[start:stop], self.end_offsets[start:stop]

    def read_tokens(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Ids and end offsets of tokens `[start, stop)`."""
        return self.token_ids[start:stop], self.end_offsets[start:stop]

    def take(self, documents: Sequence[int] | npt.NDArray[np.int64]) -> TokenTable:
        """The table of these documents alone, in this order."""
        parts = [self.document(int(index)) for index in documents]
        counted = None
        if self.counted_bytes is not None:
            offsets = self.document_offsets
            counted = np.concatenate(
                [
                    np.empty(0, np.int32),
                    *(self.counted_bytes[offsets[i] : offsets[i + 1]] for i in documents),
                ]
            )
        lengths = np.array([len(ids) for ids, _ in parts], dtype=np.int64)
        return TokenTable(
            np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in parts)]),
            np.concatenate([np.empty(0, np.int32), *(ends for _, ends in parts)]),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            counted,
        )


def count_known(tokens: TokenTable, label_logprob: npt.NDArray[np.float32]) -> TokenTable:
    """The table in which only predictions with a known log-probability count.

    Args:
        tokens: T tokens of texts.
        label_logprob: float32 [T] of the token after each; NaN where it is not known.
    """
    counted = np.full(tokens.num_tokens, -1, np.int32)
    inside = np.ones(tokens.num_tokens, np.bool_)
    inside[tokens.document_offsets[:-1][np.diff(tokens.document_offsets) > 0]] = False
    places = np.flatnonzero(inside)
    places = places[~np.isnan(label_logprob[places - 1])]
    counted[places] = tokens.end_offsets[places] - tokens.end_offsets[places - 1]
    return replace(tokens, counted_bytes=counted)


def concatenated(tables: Sequence[TokenTable]) -> TokenTable:
    """The documents of several tables, in their order."""
    lengths = [np.diff(table.document_offsets) for table in tables]
    return TokenTable(
        np.concatenate([np.empty(0, np.int32), *(table.token_ids for table in tables)]),
        np.concatenate([np.empty(0, np.int32), *(table.end_offsets for table in tables)]),
        np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths])),
    )


def read_documents(tokens: TokenReader, documents: npt.NDArray[np.int64]) -> TokenTable:
    """The table of these documents, in this order; neighbors are read together."""
    offsets = tokens.document_offsets
    parts = [
        tokens.read_tokens(int(offsets[documents[first]]), int(offsets[documents[stop - 1] + 1]))
        for first, stop in runs(documents)
    ]
    lengths = offsets[documents + 1] - offsets[documents]
    return TokenTable(
        np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in parts)]),
        np.concatenate([np.empty(0, np.int32), *(ends for _, ends in parts)]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
    )


def document_range(tokens: TokenReader, start: int, stop: int) -> TokenTable:
    """The table of documents `[start, stop)`."""
    offsets = tokens.document_offsets[start : stop + 1]
    return TokenTable(*tokens.read_tokens(int(offsets[0]), int(offsets[-1])), offsets - offsets[0])


def runs(documents: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges `[first, stop)` of indices of `documents` that follow each other in the corpus."""
    breaks = np.flatnonzero(np.diff(documents) != 1) + 1
    edges = [0, *breaks.tolist(), len(documents)]
    for first, stop in itertools.pairwise(edges):
        if stop > first:
            yield first, stop
