"""Levenshtein distances between token texts.

A token's text is compared character by character. Bytes that are invalid UTF-8 (of a character that
is cut over several tokens) count as one character each (`surrogateescape`), so that distance 0
means equal bytes and the distance is a metric over all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

WORD = 64
"""Patterns up to this many characters fit the machine word of `bit_parallel`."""

Characters = npt.NDArray[np.uint32] | npt.NDArray[np.int32]
"""Characters of one text: code points, or indices into an alphabet."""


def text_of(token: bytes) -> str:
    """A token's text; each byte that is not part of a valid character is one lone surrogate."""
    return token.decode("utf-8", "surrogateescape")


def common_prefix(left: str, right: str) -> int:
    """Length in characters of the longest common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


@dataclass(frozen=True)
class Texts:
    """Texts as flat character codes.

    Attributes:
        characters: uint32 [N]: code points of the concatenated texts.
        offsets: int64 [n + 1]: text i is `characters[offsets[i]:offsets[i + 1]]`.
    """

    characters: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Flatten the texts."""
        encoded = "".join(texts).encode("utf-32-le", "surrogatepass")
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls(np.frombuffer(encoded, dtype="<u4"), offsets)


@numba.njit(cache=True, nogil=True)
def levenshtein(left: Characters, right: Characters, row: npt.NDArray[np.int32]) -> int:
    """Edit distance (insert, delete, substitute, 1 each) of two character arrays.

    `row` is int32 scratch of at least `len(right) + 1` entries.
    """
    for j in range(len(right) + 1):
        row[j] = j
    for i in range(len(left)):
        diagonal = row[0]
        row[0] = i + 1
        for j in range(len(right)):
            substituted = diagonal + (0 if left[i] == right[j] else 1)
            diagonal = row[j + 1]
            row[j + 1] = min(substituted, diagonal + 1, row[j] + 1)
    return int(row[len(right)])


@numba.njit(cache=True, nogil=True)
def bit_parallel(
    masks: npt.NDArray[np.uint64], length: int, text: npt.NDArray[np.int32], bound: int
) -> int:
    """Edit distance of a pattern of 1 to 64 characters to `text` (Hyyrö 2003, after Myers 1999).

    `masks[c]` has bit i set where the pattern's character i is c. Returns a number above `bound` as
    soon as the distance must exceed it.
    """
    one = np.uint64(1)
    last = one << np.uint64(length - 1)
    positive = ~np.uint64(0)
    negative = np.uint64(0)
    score = length
    remaining = len(text)
    for character in text:
        match = masks[character]
        diagonal = (((match & positive) + positive) ^ positive) | match | negative
        up = negative | ~(diagonal | positive)
        down = diagonal & positive
        if up & last:
            score += 1
        elif down & last:
            score -= 1
        remaining -= 1
        if score - remaining > bound:
            return score - remaining
        up = (up << one) | one
        positive = (down << one) | ~(diagonal | up)
        negative = up & diagonal
    return score


def text_distances(left: Sequence[str], right: Sequence[str]) -> npt.NDArray[np.int32]:
    """Edit distance of `left[i]` and `right[i]`, int32 [n]."""
    left_texts, right_texts = Texts.of(left), Texts.of(right)
    return _pair_distances(
        left_texts.characters, left_texts.offsets, right_texts.characters, right_texts.offsets
    )


@numba.njit(cache=True, nogil=True)
def _pair_distances(
    left: npt.NDArray[np.uint32],
    left_offsets: npt.NDArray[np.int64],
    right: npt.NDArray[np.uint32],
    right_offsets: npt.NDArray[np.int64],
) -> npt.NDArray[np.int32]:
    result = np.empty(len(left_offsets) - 1, np.int32)
    row = np.empty(len(right) + 1, np.int32)
    for i in range(len(result)):
        result[i] = levenshtein(
            left[left_offsets[i] : left_offsets[i + 1]],
            right[right_offsets[i] : right_offsets[i + 1]],
            row,
        )
    return result
