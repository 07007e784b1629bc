"""Cuts a long text into segments that every model of a run can read whole.

A cut lies where every tokenizer ends a token of the whole text, so that it changes the tokens
around it as little as possible. Among such positions, the end of a paragraph is preferred to that
of a line, a sentence or a word. The segments, joined, are the text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError
from fusestore.tokenizers.end_offsets import byte_offsets_of_characters
from fusestore.tokenizers.tokenizer import Tokenizer

_SEARCHED_SHARE = 1 / 3
"""A cut is searched for in this last share of the longest segment that fits."""

_SENTENCE_ENDS = frozenset(".!?…。！？؟।")
_CLOSING = "\"')]}»”’」』）"


@dataclass(frozen=True)
class Segmentation:
    """The segments of one text.

    Attributes:
        segments: joined, they are the text.
        forced_cuts: cuts inside a token of some tokenizer, because no position common to all
            tokenizers was near enough.
    """

    segments: tuple[str, ...]
    forced_cuts: int


def segment_text(
    text: str, tokenizers: Sequence[Tokenizer], max_tokens: int, *, bos_allowance: int = 1
) -> Segmentation:
    """Cut the text into segments of at most `max_tokens` tokens in every tokenizer.

    Args:
        text: any text.
        tokenizers: of all models of the run; without any the text stays whole.
        max_tokens: the shortest context among the models, in tokens.
        bos_allowance: tokens kept free in each segment; 1 leaves room for a BOS.

    Raises:
        InvalidInputError: not even one character fits.
    """
    limit = max_tokens - bos_allowance
    if limit < 1:
        raise InvalidInputError(
            f"A maximum length of {max_tokens} tokens leaves no room for text beside "
            f"{bos_allowance} for BOS; give a larger one."
        )
    ends = [tokenizer.encode([text], add_bos=False).end_offsets for tokenizer in tokenizers]
    if all(len(offsets) <= limit for offsets in ends):
        return Segmentation((text,), 0)
    byte_of = byte_offsets_of_characters(text)
    common = _common_boundaries(ends, byte_of)
    segments: list[str] = []
    forced = 0
    start = 0
    while start < len(text):
        longest = _longest_reach(ends, byte_of, start, limit)
        if longest == len(text) and _fits(text[start:], tokenizers, limit):
            stop = longest
        else:
            boundary = _cut_at_boundary(text, tokenizers, common, start, longest, limit)
            forced += boundary is None
            stop = boundary or _cut_anywhere(text, tokenizers, start, longest, limit)
        segments.append(text[start:stop])
        start = stop
    return Segmentation(tuple(segments), forced)


def _common_boundaries(
    ends: Sequence[npt.NDArray[np.int32]], byte_of: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Character positions in the text, ascending, at which every tokenizer ends a token."""
    common = np.ones(int(byte_of[-1]) + 1, dtype=bool)
    for offsets in ends:
        ended = np.zeros_like(common)
        ended[offsets] = True
        common &= ended
    positions = np.flatnonzero(common[byte_of])
    return positions[(positions > 0) & (positions < len(byte_of) - 1)]


def _longest_reach(
    ends: Sequence[npt.NDArray[np.int32]],
    byte_of: npt.NDArray[np.int64],
    start: int,
    limit: int,
) -> int:
    """The last character position that `limit` tokens of the whole text reach from `start`."""
    reach = int(byte_of[-1])
    for offsets in ends:
        last = int(np.searchsorted(offsets, byte_of[start], side="right")) + limit - 1
        if last < len(offsets) - 1:
            reach = min(reach, int(offsets[last]))
    position = int(np.searchsorted(byte_of, reach, side="right")) - 1
    return max(position, start + 1)


def _fits(text: str, tokenizers: Sequence[Tokenizer], limit: int) -> bool:
    return all(
        tokenizer.encode([text], add_bos=False).num_tokens <= limit for tokenizer in tokenizers
    )


def _cut_at_boundary(
    text: str,
    tokenizers: Sequence[Tokenizer],
    common: npt.NDArray[np.int64],
    start: int,
    longest: int,
    limit: int,
) -> int | None:
    """The best common boundary that gives a segment that fits when it is tokenized by itself."""
    while True:
        first, last = np.searchsorted(common, [start, longest], side="right")
        candidates = common[first:last]
        if len(candidates) == 0:
            return None
        near = candidates[candidates >= longest - (longest - start) * _SEARCHED_SHARE]
        if len(near) == 0:
            near = candidates[-1:]
        stop = max(near.tolist(), key=lambda position: (_cut_quality(text, position), position))
        if _cut_quality(text, stop) < 0:
            stop = max(candidates.tolist(), key=lambda p: (_cut_quality(text, p) >= 0, p))
        if _fits(text[start:stop], tokenizers, limit):
            return int(stop)
        # The segment by itself takes more tokens than inside the text, so try a shorter one.
        longest = min(stop - 1, start + (longest - start) * 15 // 16)


def _cut_anywhere(
    text: str, tokenizers: Sequence[Tokenizer], start: int, longest: int, limit: int
) -> int:
    """A cut after any character that gives a segment that fits, not in a grapheme if possible."""
    stop = longest
    while True:
        whole = stop
        while whole > start and _cut_quality(text, whole) < 0:
            whole -= 1
        for candidate in (whole, stop):
            if candidate > start and _fits(text[start:candidate], tokenizers, limit):
                return candidate
        if stop == start + 1:
            raise InvalidInputError(
                f"Character {start} of a text ({text[start]!r}) alone takes more than {limit} "
                "tokens; give a larger maximum length."
            )
        stop = max(start + 1, start + (stop - start) * 3 // 4)


def _cut_quality(text: str, position: int) -> int:
    """Quality of a cut before this character: 4 between paragraphs, … -1 inside a grapheme."""
    if position in (0, len(text)):
        return 4
    before, after = text[position - 1], text[position]
    if _joined(before, after):
        return -1
    if before == "\n" or after == "\n":
        return 4 if _blank_line_at(text, position) else 3
    if not (before.isspace() or after.isspace()):
        return 2 if before in "。！？" else 0
    tail = text[max(0, position - 8) : position].rstrip().rstrip(_CLOSING)
    return 2 if tail[-1:] in _SENTENCE_ENDS and tail else 1


def _blank_line_at(text: str, position: int) -> bool:
    """Whether the cut lies before or after a blank line, not in the middle of one."""
    return text[max(0, position - 2) : position] == "\n\n" or text[position : position + 2] == (
        "\n\n"
    )


def _joined(before: str, after: str) -> bool:
    """Whether a reader sees two neighboring characters as one.

    A simplification of the grapheme rules of Unicode (UAX 29) that errs towards joining.
    """
    if before == "\r" and after == "\n":
        return True
    if "\u200d" in (before, after) or "\ufe00" <= after <= "\ufe0f":
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff":
        return True
    if all("\U0001f1e6" <= character <= "\U0001f1ff" for character in (before, after)):
        return True
    return unicodedata.category(after).startswith("M")
