"""`Supervision`: which bytes of a corpus of conversations are trained on.

A range is the content of a turn and the byte of its end. All models share the ranges, so their
losses and scores count the same text, whatever their tokens are. A token whose prediction counts is
one that ends in a range.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fusestore.tokenizers.conversation import END_OF_TURN, Conversation, TrainOn
from fusestore.tokenizers.token_table import TokenTable

_Ints = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]

NOT_COUNTED = -1
"""In `TokenTable.counted_bytes`: the prediction of the token does not count."""


@dataclass(frozen=True)
class Supervision:
    """The ranges of D documents, R in all.

    Attributes:
        starts: int32 [R], the byte of its document after which a range begins; ascending within a
            document.
        stops: int32 [R], the byte at which it ends.
        offsets: int64 [D + 1]: document i has ranges `[offsets[i], offsets[i + 1])`.
    """

    starts: npt.NDArray[np.int32]
    stops: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, ranges: Iterable[Sequence[tuple[int, int]]]) -> Supervision:
        """Of the ranges `(start, stop)` of each document."""
        listed = [list(of_document) for of_document in ranges]
        flat = [pair for of_document in listed for pair in of_document]
        pairs = np.array(flat, np.int32).reshape(-1, 2)
        counts = np.array([len(of_document) for of_document in listed], np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]), offsets)

    def mark(self, tokens: TokenTable, documents: npt.NDArray[np.int64]) -> TokenTable:
        """The tokens with `counted_bytes`.

        Args:
            tokens: of n documents.
            documents: int64 [n], their indices among the D.
        """
        starts, stops, begins, ends = self._on_one_axis(tokens, documents)
        counted = np.full(len(ends), NOT_COUNTED, np.int32)
        if len(starts) and len(ends):
            inside = np.searchsorted(starts, ends, side="left") - 1
            start, stop = starts[inside], stops[inside]
            is_counted = (inside >= 0) & (ends <= stop)
            # Nothing predicts a document's first token.
            is_counted[_first_tokens(tokens)] = False
            counted[is_counted] = (ends - np.maximum(begins, start))[is_counted]
        return replace(tokens, counted_bytes=counted)

    def used_rows(self, tokens: TokenTable, documents: npt.NDArray[np.int64]) -> _Mask:
        """Which rows a fusion may use: those of which the next token has a byte in a range.

        These are more than the rows whose next token counts: a token may begin or end outside. From
        such a row, every row up to the end of a label in the range is one, too.

        Args:
            tokens: of n documents.
            documents: int64 [n], their indices among the D.

        Returns:
            bool [T].
        """
        starts, stops, begins, ends = self._on_one_axis(tokens, documents)
        is_next = np.zeros(len(ends) + 1, np.bool_)
        if len(starts) and len(ends):
            after = np.searchsorted(stops, begins, side="right")
            overlaps = after < len(stops)
            overlaps &= starts[np.minimum(after, len(starts) - 1)] < ends
            overlaps[_first_tokens(tokens)] = False
            # A token without bytes at the end of a range counts, too.
            is_next[:-1] = overlaps | self.mark(tokens, documents).is_counted
        return is_next[1:]

    def _on_one_axis(
        self, tokens: TokenTable, documents: npt.NDArray[np.int64]
    ) -> tuple[_Ints, _Ints, _Ints, _Ints]:
        """Starts and stops of the ranges, and begins and ends of the tokens: int64.

        Each document begins a stride after the one before.
        """
        first, count = self.offsets[documents], np.diff(self.offsets)[documents]
        owner = np.repeat(np.arange(len(documents)), count)
        # Positions of their ranges among all R: each document's first, and on.
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        ranges = np.repeat(first, count) + within
        stride = int(max(tokens.end_offsets.max(initial=0), self.stops.max(initial=0))) + 1
        lengths = np.diff(tokens.document_offsets)
        ends = np.repeat(np.arange(len(documents)), lengths) * stride + tokens.end_offsets
        return (
            owner * stride + self.starts[ranges],
            owner * stride + self.stops[ranges],
            np.concatenate([ends[:1], ends[:-1]]),
            ends,
        )


def _first_tokens(tokens: TokenTable) -> _Ints:
    """int64: the first token of each document that has one."""
    starts: _Ints = tokens.document_offsets[:-1][np.diff(tokens.document_offsets) > 0]
    return starts


def supervised_ranges(conversation: Conversation, train_on: TrainOn) -> list[tuple[int, int]]:
    """The ranges of a conversation: content and end of each turn that is trained on."""
    chosen = conversation.trained_on(train_on)
    return [
        (turn.start, turn.stop + len(END_OF_TURN))
        for turn, is_chosen in zip(conversation.turns, chosen, strict=True)
        if is_chosen
    ]
