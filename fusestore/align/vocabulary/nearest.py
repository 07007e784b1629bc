"""The nearest of many texts by edit distance, exactly and without comparing every pair.

Two texts of m and n characters whose distance is at most e agree in at least max(m, n) − e aligned
characters. With g = n − m, none of these is shifted by more than (e − g)/2 to the left or
(e + g)/2 to the right, because insertions and deletions differ by g and are at most e together.

So the index keeps one bit per candidate for every length, position and character. A query's
character selects the candidates that have it at a position within reach. Counters, with their bits
in separate words, add these up for 64 candidates at once, and only a candidate that enough
characters reach is compared. Both bounds hold for the true distance, so the result is that of the
full search, ties included.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import intrinsic

from fusestore.align.edit_distance import WORD, Texts, bit_parallel, levenshtein
from fusestore.progress import Progress, ignore_progress

_QUERIES_PER_BLOCK = 4096
"""Queries of one search call: enough to be worth a thread, few enough to show progress."""

_NEIGHBORS = 3
"""Neighbors on each side, in order of beginnings and of endings, that give a first bound."""

_MAX_COMMON = 256
"""Characters that may have bit rows: at most 32 bytes per character of a candidate."""

_COMMON_SHARE = 1 / 256
"""Occurrences per candidate from which a character has bit rows; others have lists of places."""


class _Index(NamedTuple):
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


def nearest(
    queries: Sequence[str],
    candidates: Sequence[str],
    *,
    prefer_prefix: bool,
    progress: Progress = ignore_progress,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The nearest candidate of every query by edit distance; equal to comparing all pairs.

    Ties go to the longest common prefix (with `prefer_prefix`), then to the earliest candidate.

    Args:
        queries: Q texts.
        candidates: C texts, at least one; of equal texts, the result has the first.
        prefer_prefix: whether the common prefix breaks ties before the order does.
        progress: counts queries.

    Returns:
        index into `candidates` int64 [Q], distance int32 [Q].
    """
    if not queries:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    # Sorted by text, then (stably) by length: within a length, neighbors share cache lines.
    order = np.array(sorted(range(len(candidates)), key=candidates.__getitem__), dtype=np.int64)
    lengths = np.fromiter(map(len, candidates), np.int64, len(candidates))
    by_length = order[np.argsort(lengths[order], kind="stable")]
    hints = np.concatenate(
        [
            _first_by_length(queries, lengths)[:, None],
            _neighbors(queries, candidates, order),
            _neighbors_by_ending(queries, candidates),
        ],
        axis=1,
    )
    place = np.empty(len(candidates), np.int64)
    place[by_length] = np.arange(len(candidates))
    hints = place[hints]
    query_texts = Texts.of(queries)
    code_of, occurrences = _alphabet(Texts.of(candidates))
    codes = code_of[query_texts.characters]
    table = _index([candidates[i] for i in by_length], by_length, code_of, occurrences)
    index = np.empty(len(queries), np.int64)
    distance = np.empty(len(queries), np.int32)

    def search_block(start: int) -> int:
        stop = min(start + _QUERIES_PER_BLOCK, len(queries))
        index[start:stop], distance[start:stop] = _search(
            table, codes, query_texts.offsets[start : stop + 1], hints[start:stop], prefer_prefix
        )
        return stop - start

    # Queries are independent and the search releases the interpreter lock.
    done = 0
    progress(done, len(queries))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for count in threads.map(search_block, range(0, len(queries), _QUERIES_PER_BLOCK)):
            done += count
            progress(done, len(queries))
    return by_length[index], distance


def _first_by_length(
    queries: Sequence[str], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The first candidate no longer than each query, or the first of the shortest, int64 [Q].

    Among the candidates without a common character it wins, so the search may leave out the others.
    """
    first = np.full(int(lengths.max()) + 1, len(lengths), np.int64)
    np.minimum.at(first, lengths, np.arange(len(lengths)))
    first = np.minimum.accumulate(first)
    query_lengths = np.fromiter(map(len, queries), np.int64, len(queries))
    result: npt.NDArray[np.int64] = first[np.clip(query_lengths, lengths.min(), lengths.max())]
    return result


def _neighbors(
    queries: Sequence[str], candidates: Sequence[str], order: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The candidates that sort next to each query, [Q, 2·neighbors]; `order` sorts them."""
    ordered = [candidates[i] for i in order]
    insertion = np.fromiter(
        (bisect.bisect_left(ordered, query) for query in queries), np.int64, len(queries)
    )
    around = insertion[:, None] + np.arange(-_NEIGHBORS, _NEIGHBORS)[None, :]
    result: npt.NDArray[np.int64] = order[np.clip(around, 0, len(candidates) - 1)]
    return result


def _neighbors_by_ending(
    queries: Sequence[str], candidates: Sequence[str]
) -> npt.NDArray[np.int64]:
    """The candidates that sort next to each query when both are read backwards."""
    backwards = [text[::-1] for text in candidates]
    order = np.array(sorted(range(len(candidates)), key=backwards.__getitem__), dtype=np.int64)
    return _neighbors([query[::-1] for query in queries], backwards, order)


def _alphabet(texts: Texts) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Index of every code point by falling frequency in the texts, and the frequencies.

    Code points that occur in no text share the index after the last.
    """
    counts = np.bincount(texts.characters, minlength=0x110000)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    code_of = np.full(len(counts), len(order), np.int32)
    code_of[order] = np.arange(len(order))
    return code_of, counts[order]


def _index(
    candidates: Sequence[str],
    rank: npt.NDArray[np.int64],
    code_of: npt.NDArray[np.int32],
    occurrences: npt.NDArray[np.int64],
) -> _Index:
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
    index = _Index(
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
def _set_characters(index: _Index) -> None:
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
    index: _Index, length: int, character: int, low: int, high: int, reached: npt.NDArray[np.uint64]
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
def _survivors(
    index: _Index,
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
    # `_first_by_length` has the candidate without a common character.
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


@numba.njit(cache=True, nogil=True)
def _search(
    index: _Index,
    queries: npt.NDArray[np.int32],
    query_offsets: npt.NDArray[np.int64],
    hints: npt.NDArray[np.int64],
    prefer_prefix: bool,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Candidate of least (distance, −common prefix, rank) for every query.

    The hints are compared first. Then follow the lengths by their difference to the query's, while
    that difference does not exceed the best distance.
    """
    num_queries = len(query_offsets) - 1
    best_candidate = np.full(num_queries, -1, np.int64)
    best_distance = np.full(num_queries, -1, np.int32)
    longest = len(index.starts) - 2
    most = max(hints.shape[1], np.max(np.diff(index.starts)))
    survivors = np.empty(most, np.int64)
    only_ties = np.zeros(most, np.bool_)
    reached = np.empty((most + 63) // 64, np.uint64)
    planes = np.empty((64, len(reached)), np.uint64)
    masks = np.zeros(len(index.place_starts), np.uint64)
    row = np.empty(longest + 1, np.int32)
    for q in range(num_queries):
        query = queries[query_offsets[q] : query_offsets[q + 1]]
        length = len(query)
        short = 0 < length <= WORD
        if short:
            for position in range(length):
                masks[query[position]] |= np.uint64(1) << np.uint64(position)
        best, bound, common, rank = -1, 2**30, -1, np.int64(0)
        # Step 0 compares the hints; steps 1, 2, 3, … lengths ±0, +1, −1, +2, …
        for step in range(2 * max(longest, length) + 2):
            if step == 0:
                count = hints.shape[1]
                survivors[:count] = hints[q]
                only_ties[:count] = False
            else:
                gap = step // 2
                if gap > bound:
                    break
                other = length + gap if step % 2 == 0 else length - gap
                if other < 0 or other > longest or index.starts[other] == index.starts[other + 1]:
                    continue
                count = _survivors(
                    index, query, other, bound, planes, reached, survivors, only_ties
                )
            for survivor in range(count):
                candidate = survivors[survivor]
                start, stop = index.offsets[candidate], index.offsets[candidate + 1]
                earlier = index.rank[candidate] < rank
                if only_ties[survivor] and not earlier:
                    if not prefer_prefix or common >= min(length, stop - start):
                        continue
                    if query[common] != index.characters[start + common]:
                        continue
                text = index.characters[start:stop]
                prefix = 0
                if prefer_prefix:
                    while prefix < length and prefix < len(text) and query[prefix] == text[prefix]:
                        prefix += 1
                wins_tie = prefix > common or (prefix == common and earlier)
                if only_ties[survivor] and not wins_tie:
                    continue
                needed = bound if wins_tie else bound - 1
                if short:
                    distance = bit_parallel(masks, length, text, needed)
                else:
                    distance = levenshtein(query, text, row)
                if distance <= needed:
                    best, bound, common = candidate, distance, prefix
                    rank = index.rank[candidate]
        if short:
            for position in range(length):
                masks[query[position]] = np.uint64(0)
        best_candidate[q] = best
        best_distance[q] = bound
    return best_candidate, best_distance
