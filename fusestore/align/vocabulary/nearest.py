"""The nearest of many texts by edit distance, exactly and without comparing every pair.

`character_index` rules out most candidates by bounds that hold for the true distance, so the result
is that of the full search, ties included.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fusestore.align.edit_distance import WORD, Texts, bit_parallel, levenshtein
from fusestore.align.vocabulary.character_index import (
    CharacterIndex,
    alphabet,
    character_index,
    find_survivors,
)
from fusestore.progress import Progress, ignore_progress

_QUERIES_PER_BLOCK = 4096
"""Queries of one search call: enough to be worth a thread, few enough to show progress."""

_NEIGHBORS = 3
"""Neighbors on each side, in order of beginnings and of endings, that give a first bound."""


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
    code_of, occurrences = alphabet(Texts.of(candidates))
    codes = code_of[query_texts.characters]
    table = character_index([candidates[i] for i in by_length], by_length, code_of, occurrences)
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


@numba.njit(cache=True, nogil=True)
def _search(
    index: CharacterIndex,
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
        # Of a literal bound, numba would compile `find_survivors` once more.
        bound: Any = np.int64(2**30)
        best, common, rank = -1, -1, np.int64(0)
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
                count = find_survivors(
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
