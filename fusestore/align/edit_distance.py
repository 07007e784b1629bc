"""Levenshtein distances between token texts, and the exact nearest text among many.

A token's text is compared character by character. Bytes that are no valid UTF-8 (a character cut
over several tokens) count as one character each (`surrogateescape`), so that distance 0 means equal
bytes and the distance stays a metric over all tokens, whole or cut.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import intrinsic

from fusestore.progress import Progress, ignore_progress

_WORD = 64
"""Texts up to this many characters are searched bit-parallel, one machine word per column."""

_QUERIES_PER_BLOCK = 4096
"""Queries that one call searches: enough to be worth a thread, few enough to show progress."""

_NEIGHBOURS = 4
"""Lexicographic neighbours on each side that give a search its first upper bound."""


Characters = npt.NDArray[np.uint32] | npt.NDArray[np.int32]
"""Characters of one text: code points, or indices into an alphabet."""


def text_of(token: bytes) -> str:
    """A token's text; each byte that is not part of a valid character is one lone surrogate."""
    return token.decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Texts:
    """Texts as flat character codes.

    Attributes:
        characters: uint32 [N]: code points, all texts one after the other.
        offsets: int64 [n + 1]: text i is `characters[offsets[i]:offsets[i + 1]]`.
    """

    characters: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Flatten the texts, in the order given."""
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
def _bit_parallel(
    masks: npt.NDArray[np.uint64], length: int, text: npt.NDArray[np.int32], bound: int
) -> int:
    """Edit distance of a pattern of 1 to 64 characters to `text` (Hyyrö 2003, after Myers 1999).

    `masks[c]` has bit i set where the pattern's character i is c. Returns some number above `bound`
    as soon as the distance is known to exceed it.
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


def _generate_popcount(typing_context: Any, bits: Any) -> Any:  # noqa: ANN401 - numba's own types
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.ctpop(arguments[0])

    return numba.types.int64(numba.types.uint64), generate


_popcount: Any = intrinsic(_generate_popcount)
"""Number of set bits of a uint64, int64: one instruction, for which numba has no function."""


@numba.njit(cache=True, nogil=True)
def _signatures(
    characters: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """The set of each text's characters, hashed into 64 bits."""
    result = np.zeros(len(offsets) - 1, np.uint64)
    for i in range(len(result)):
        bits = np.uint64(0)
        for position in range(offsets[i], offsets[i + 1]):
            bits |= np.uint64(1) << np.uint64(characters[position] & 63)
        result[i] = bits
    return result


@numba.njit(cache=True, nogil=True)
def _search(
    queries: npt.NDArray[np.int32],
    query_offsets: npt.NDArray[np.int64],
    hints: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int32],
    candidate_offsets: npt.NDArray[np.int64],
    priority: npt.NDArray[np.int64],
    length_starts: npt.NDArray[np.int64],
    alphabet: int,
    prefer_prefix: bool,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Candidate of least (distance, −common prefix, priority) per query; candidates by length.

    A candidate is skipped when a lower bound of its distance exceeds the best distance so far: the
    difference in length, or the number of characters that one text has and the other has not. Both
    never exceed the true distance, so the result is that of the full search. A candidate that would
    lose a tie must be strictly nearer.
    """
    num_queries = len(query_offsets) - 1
    best_index = np.full(num_queries, -1, np.int64)
    best_distance = np.full(num_queries, -1, np.int32)
    query_signatures = _signatures(queries, query_offsets)
    signatures = _signatures(candidates, candidate_offsets)
    max_length = len(length_starts) - 2
    masks = np.zeros(alphabet, np.uint64)
    row = np.empty(max_length + 1, np.int32)
    survivors = np.empty(max(len(signatures), hints.shape[1]) + 1, np.int64)
    for q in range(num_queries):
        query = queries[query_offsets[q] : query_offsets[q + 1]]
        length = len(query)
        short = 0 < length <= _WORD
        if short:
            for position in range(length):
                masks[query[position]] |= np.uint64(1) << np.uint64(position)
        bits = query_signatures[q]
        index, bound, common, rank = -1, 2**30, -1, np.int64(0)
        # Step 0 looks at the hints; steps 1, 2, 3, … at lengths ±0, +1, −1, +2, …
        for step in range(2 * max(max_length, length) + 2):
            count = 0
            if step == 0:
                for hint in hints[q]:
                    survivors[count] = hint
                    count += 1
            else:
                gap = step // 2
                if gap > bound:
                    break
                other = length + gap if step % 2 == 0 else length - gap
                if other < 0 or other > max_length:
                    continue
                for c in range(length_starts[other], length_starts[other + 1]):
                    signature = signatures[c]
                    survivors[count] = c
                    missing = _popcount(bits & ~signature)
                    added = _popcount(signature & ~bits)
                    count += (missing <= bound) & (added <= bound)
            for survivor in range(count):
                c = survivors[survivor]
                text = candidates[candidate_offsets[c] : candidate_offsets[c + 1]]
                prefix = 0
                if prefer_prefix:
                    while prefix < length and prefix < len(text) and query[prefix] == text[prefix]:
                        prefix += 1
                wins_tie = prefix > common or (prefix == common and priority[c] < rank)
                needed = bound if wins_tie else bound - 1
                if bits & signatures[c] == 0:
                    # No common character: every one of the longer text costs an edit.
                    distance = max(length, len(text))
                elif short:
                    distance = _bit_parallel(masks, length, text, needed)
                else:
                    distance = levenshtein(query, text, row)
                if distance <= needed:
                    index, bound, common, rank = c, distance, prefix, priority[c]
        if short:
            for position in range(length):
                masks[query[position]] = np.uint64(0)
        best_index[q] = index
        best_distance[q] = bound
    return best_index, best_distance


def nearest(
    queries: Sequence[str],
    candidates: Sequence[str],
    *,
    prefer_prefix: bool,
    progress: Progress = ignore_progress,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The nearest candidate of every query by edit distance; identical to comparing all pairs.

    Ties go to the longest common prefix (with `prefer_prefix`), then to the earliest candidate.

    Args:
        queries: Q texts.
        candidates: C texts, at least one; of equal texts the first is found.
        prefer_prefix: whether the common prefix breaks ties before the order does.
        progress: counts queries.

    Returns:
        index into `candidates` int64 [Q], distance int32 [Q].
    """
    if not queries:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    query_texts = Texts.of(queries)
    # Order within a length is lexicographic: neighbours share branches and cache lines.
    by_length = np.array(
        sorted(range(len(candidates)), key=lambda i: (len(candidates[i]), candidates[i], i)),
        dtype=np.int64,
    )
    candidate_texts = Texts.of([candidates[i] for i in by_length])
    alphabet, inverse = np.unique(
        np.concatenate([query_texts.characters, candidate_texts.characters]), return_inverse=True
    )
    codes: npt.NDArray[np.int32] = inverse.astype(np.int32)
    num_query_characters = len(query_texts.characters)
    lengths = np.diff(candidate_texts.offsets)
    length_starts = np.searchsorted(lengths, np.arange(lengths[-1] + 2)).astype(np.int64)
    hints = _neighbours(queries, candidates, by_length)
    index = np.empty(len(queries), np.int64)
    distance = np.empty(len(queries), np.int32)

    def search_block(start: int) -> int:
        stop = min(start + _QUERIES_PER_BLOCK, len(queries))
        index[start:stop], distance[start:stop] = _search(
            codes[:num_query_characters],
            query_texts.offsets[start : stop + 1],
            hints[start:stop],
            codes[num_query_characters:],
            candidate_texts.offsets,
            by_length,
            length_starts,
            len(alphabet),
            prefer_prefix,
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


def _neighbours(
    queries: Sequence[str], candidates: Sequence[str], by_length: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Positions in length order of the candidates that sort next to each query, [Q, 2·neighbours].

    They share a beginning with the query, so one of them is usually close.
    """
    position_of = np.empty(len(candidates), np.int64)
    position_of[by_length] = np.arange(len(candidates))
    order = sorted(range(len(candidates)), key=candidates.__getitem__)
    ordered = [candidates[i] for i in order]
    at = np.fromiter(
        (bisect.bisect_left(ordered, query) for query in queries), np.int64, len(queries)
    )
    around = np.clip(
        at[:, None] + np.arange(-_NEIGHBOURS, _NEIGHBOURS)[None, :], 0, len(candidates) - 1
    )
    result: npt.NDArray[np.int64] = position_of[np.array(order, dtype=np.int64)[around]]
    return result


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
