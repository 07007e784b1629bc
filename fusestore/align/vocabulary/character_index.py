"""An index of texts by character and position, which rules out most of them for a query.

Two texts of m and n characters whose distance is at most e agree in at least max(m, n) − e aligned
characters. With g = n − m, none of these is shifted by more than (e − g)/2 to the left or
(e + g)/2 to the right, because insertions and deletions differ by g and are at most e together.

So the index keeps one bit per candidate for every length, position and character. A query's
character selects the candidates that have it at a position within reach. Counters, with their bits
in separate words, add these up for 64 candidates at once, and only a candidate that enough
characters reach is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import intrinsic

from fusestore.align.edit_distance import Texts

_MAX_COMMON = 256
"""Characters that may have bit rows: at most 32 bytes per character of a candidate."""

_COMMON_SHARE = 1 / 256
"""Occurrences per candidate from which a character has bit rows; others have lists of places."""


class CharacterIndex(NamedTuple):
    """Candidates in order of their lengths, and the positions of each character in them.

    Attributes:
        characters: int32 [N], indices into the alphabet, the most frequent character first.
        offsets: int64 [C + 1], candidate c is `characters[offsets[c]:offsets[c + 1]]`.
        rank: int64 [C], the candidate's index in the caller's order.
        starts: int64 [longest + 2], candidates of length n are `[starts[n], starts[n + 1])`.
        num_common: characters below this index have bit rows, the others have places.
        rows: uint64, for each length, position and common character a row of one bit a candidate.
        row_starts: int64 [longest + 2], first row of each length.
        place_starts: int64 [alphabet + 1], first place of each character.
        place_candidates: int64, candidates that hold a rare character, ascending.
        place_positions: int64, its positions in them.
    """

    characters: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    num_common: int
    rows: npt.NDArray[np.uint64]
    row_starts: npt.NDArray[np.int64]
    place_starts: npt.NDArray[np.int64]
    place_candidates: npt.NDArray[np.int64]
    place_positions: npt.NDArray[np.int64]


def alphabet(texts: Texts) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Index of every code point by falling frequency in the texts, and the frequencies.

    Code points that occur in no text share the index after the last.
    """
    counts = np.bincount(texts.characters, minlength=0x110000)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    code_of = np.full(len(counts), len(order), np.int32)
    code_of[order] = np.arange(len(order))
    return code_of, counts[order]


def character_index(
    candidates: Sequence[str],
    rank: npt.NDArray[np.int64],
    code_of: npt.NDArray[np.int32],
    occurrences: npt.NDArray[np.int64],
) -> CharacterIndex:
    """Index candidates, which come in order of their lengths."""
    texts = Texts.of(candidates)
    lengths = np.diff(texts.offsets)
    starts = np.searchsorted(lengths, np.arange(lengths[-1] + 2)).astype(np.int64)
    num_frequent = int(np.count_nonzero(occurrences >= _COMMON_SHARE * len(candidates)))
    num_common = min(num_frequent, _MAX_COMMON)
    words = (np.diff(starts) + 63) // 64
    row_starts = np.concatenate(
        [np.zeros(1, np.int64), np.cumsum(np.arange(len(words)) * num_common * words)]
    )
    places = np.where(np.arange(len(occurrences)) < num_common, 0, occurrences)
    place_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(places)])
    index = CharacterIndex(
        code_of[texts.characters],
        texts.offsets,
        rank,
        starts,
        num_common,
        np.zeros(row_starts[-1], np.uint64),
        row_starts,
        place_starts,
        np.empty(place_starts[-1], np.int64),
        np.empty(place_starts[-1], np.int64),
    )
    _set_characters(index)
    return index


@numba.njit(cache=True, nogil=True)
def _set_characters(index: CharacterIndex) -> None:
    """Set the bits and the places of every character."""
    next_place = index.place_starts.copy()
    for length in range(len(index.starts) - 1):
        first, stop = index.starts[length], index.starts[length + 1]
        words = (stop - first + 63) // 64
        for candidate in range(first, stop):
            word, shift = (candidate - first) // 64, np.uint64((candidate - first) % 64)
            for position in range(length):
                character = index.characters[index.offsets[candidate] + position]
                if character < index.num_common:
                    row = index.row_starts[length]
                    row += (position * index.num_common + character) * words
                    index.rows[row + word] |= np.uint64(1) << shift
                else:
                    index.place_candidates[next_place[character]] = candidate
                    index.place_positions[next_place[character]] = position
                    next_place[character] += 1


def _generate_popcount(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return numba.types.int64(numba.types.uint64), generate


_popcount: Any = intrinsic(_generate_popcount)
"""Number of set bits of a uint64, int64: one instruction, for which numba has no function."""


@numba.njit(cache=True, nogil=True)
def _reach(
    index: CharacterIndex,
    length: int,
    character: int,
    low: int,
    high: int,
    reached: npt.NDArray[np.uint64],
) -> None:
    """Candidates of a length that have the character at a position in `[low, high)`, as bits."""
    words = len(reached)
    if character < index.num_common:
        step = index.num_common * words
        start = index.row_starts[length] + low * step + character * words
        row = index.rows[start : start + words]
        for word in range(words):
            reached[word] = row[word]
        for _ in range(low + 1, high):
            start += step
            row = index.rows[start : start + words]
            for word in range(words):
                reached[word] |= row[word]
        return
    reached[:] = np.uint64(0)
    first, stop = index.starts[length], index.starts[length + 1]
    place, end = index.place_starts[character], index.place_starts[character + 1]
    place += np.searchsorted(index.place_candidates[place:end], first)
    while place < end and index.place_candidates[place] < stop:
        if low <= index.place_positions[place] < high:
            bit = index.place_candidates[place] - first
            reached[bit // 64] |= np.uint64(1) << np.uint64(bit % 64)
        place += 1


@numba.njit(cache=True, nogil=True)
def _count(planes: npt.NDArray[np.uint64], used: int, reached: npt.NDArray[np.uint64]) -> None:
    """Add 1 to the counter of every reached candidate; `reached` is overwritten by the carries.

    Bit p of candidate 64·w + b's counter is bit b of `planes[p, w]`.
    """
    for p in range(used):
        plane = planes[p]
        for word in range(len(reached)):
            carry = plane[word] & reached[word]
            plane[word] ^= reached[word]
            reached[word] = carry


@numba.njit(cache=True, nogil=True)
def find_survivors(
    index: CharacterIndex,
    query: npt.NDArray[np.int32],
    length: int,
    bound: int,
    planes: npt.NDArray[np.uint64],
    reached: npt.NDArray[np.uint64],
    survivors: npt.NDArray[np.int64],
    only_ties: npt.NDArray[np.bool_],
) -> int:
    """Candidates of one length that may be within `bound` of the query; returns their number.

    `only_ties` is set for each that cannot be nearer than `bound`.
    """
    first = index.starts[length]
    words = (index.starts[length + 1] - first + 63) // 64
    reached = reached[:words]
    planes = planes[:, :words]
    gap = length - len(query)
    left, right = (bound - gap) // 2, (bound + gap) // 2
    agreeing = max(length, len(query)) - bound
    # `nearest`'s first hint has the candidate without a common character.
    needed = max(agreeing, 1)
    added = used = 0
    for position in range(len(query)):
        low, high = max(position - left, 0), min(position + right + 1, length)
        if query[position] < len(index.place_starts) - 1 and low < high:
            _reach(index, length, query[position], low, high, reached)
            added += 1
            if added >> used:
                planes[used, :] = np.uint64(0)
                used += 1
            _count(planes, used, reached)
    count = 0
    if added < needed:
        return count
    for word in range(words):
        more, equal = np.uint64(0), ~np.uint64(0)
        for p in range(used - 1, -1, -1):
            if (needed >> p) & 1:
                equal &= planes[p, word]
            else:
                more |= equal & planes[p, word]
                equal &= ~planes[p, word]
        left_over = more | equal
        while left_over:
            bit = left_over & (~left_over + np.uint64(1))
            survivors[count] = first + word * 64 + _popcount(bit - np.uint64(1))
            only_ties[count] = agreeing >= 1 and (equal & bit) != 0
            count += 1
            left_over ^= bit
    return count
