"""Dynamic time warping over edit distances: FuseLLM's pairing of two tokenizations.

FuseLLM (arXiv 2401.10491, section 3.3) pairs the tokens of two tokenizations of one text by the
monotone path of least total edit distance. Cell (i, j) costs the distance of source token i and
target token j, and is reached from (i−1, j−1), (i−1, j) or (i, j−1). The path is followed back from
the last cell; on equal totals the diagonal goes first, then the step to the earlier source token,
then the one to the earlier target token, as in the public code.

The path pairs tokens, and row i of a source is its distribution after token i (the public code
indexes its logits in the same way), so a pair says whose row supervises which position as it
stands: after a pair both continue with the next text.

A target token counts as paired when the path joins it to one source token only. That token is its
`partner`; the pair is `mutual` when the path joins the partner to no other target token either.

Two ways to the path:

- *anchored*: the path of every gap between shared boundaries by itself. Linear while gaps are
  short. Its total is that of a real path, hence at least the least total.
- *full*: the least path of the whole document. Totals never fall along a path, so a cell whose total
  exceeds the anchored path's lies on no best path, not even on a tied one: leaving such cells out
  changes neither the path nor how its ties are broken. What remains is a band around the path; in
  the worst case, it is every cell.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from fusestore.align.token_distance import TokenTexts, text_distance

_DIAGONAL, _UP, _LEFT = 0, 1, 2

_UNREACHED = 2**60
"""Total of a cell that no path has reached; no sum of distances comes near it."""

_NO_BOUND = 2**59


class Side(NamedTuple):
    """The tokens of one side: D documents end to end, T tokens in all.

    Attributes:
        texts: int64 [T], index of each token's text.
        end_offsets: int32 [T].
        document_offsets: int64 [D + 1].
    """

    texts: npt.NDArray[np.int64]
    end_offsets: npt.NDArray[np.int32]
    document_offsets: npt.NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def warp_documents(
    source: Side,
    target: Side,
    source_texts: TokenTexts,
    target_texts: TokenTexts,
    span: npt.NDArray[np.int32],
    full: bool,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Warp every document, without the tokens that end at 0 (BOS, an added space).

    Those stand for nothing in the text, and as text would spoil the pairing of its first tokens.

    Args:
        source: the source's tokens.
        target: the target's tokens of the same documents.
        source_texts: the texts that `source.texts` names.
        target_texts: the texts that `target.texts` names.
        span: int32 [T_target], `span_pairs` of the documents.
        full: the full warping rather than the anchored one.

    Returns:
        partner int32 [T_target], position within the source document or −1, and mutual bool
        [T_target]; see the module.
    """
    partner = np.full(len(target.texts), -1, np.int32)
    mutual = np.zeros(len(target.texts), np.bool_)
    source_slots = np.full(len(source_texts.offsets), -1, np.int64)
    target_slots = np.full(len(target_texts.offsets), -1, np.int64)
    masks = np.zeros(max(source_texts.alphabet, target_texts.alphabet), np.uint64)
    for document in range(len(target.document_offsets) - 1):
        first, source_stop = source.document_offsets[document], source.document_offsets[document + 1]
        source_start = first
        while source_start < source_stop and source.end_offsets[source_start] == 0:
            source_start += 1
        target_start, target_stop = (
            target.document_offsets[document],
            target.document_offsets[document + 1],
        )
        while target_start < target_stop and target.end_offsets[target_start] == 0:
            target_start += 1
        if source_start == source_stop or target_start == target_stop:
            continue
        skipped = source_start - first
        left, right = source.texts[source_start:source_stop], target.texts[target_start:target_stop]
        found = partner[target_start:target_stop]
        is_mutual = mutual[target_start:target_stop]
        bound = _warp_gaps(
            left,
            right,
            source_texts,
            target_texts,
            span[target_start:target_stop] - skipped,
            masks,
            full,
            found,
            is_mutual,
        )
        if full:
            source_slot, num_sources = _distinct(left, source_slots)
            target_slot, num_targets = _distinct(right, target_slots)
            costs = np.full((num_sources, num_targets), -1, np.int32)
            _warp(
                left,
                right,
                source_texts,
                target_texts,
                costs,
                source_slot,
                target_slot,
                bound,
                masks,
                found,
                is_mutual,
            )
        for position in range(len(found)):
            if found[position] >= 0:
                found[position] += skipped
    return partner, mutual


@numba.njit(cache=True, nogil=True)
def _distinct(
    texts: npt.NDArray[np.int64], slots: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], int]:
    """Number the distinct texts in order of appearance; `slots` is scratch, all −1 in and out."""
    numbers = np.empty(len(texts), np.int64)
    count = 0
    for position, text in enumerate(texts):
        if slots[text] < 0:
            slots[text] = count
            count += 1
        numbers[position] = slots[text]
    for text in texts:
        slots[text] = -1
    return numbers, count


@numba.njit(cache=True, nogil=True)
def _warp_gaps(
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    source_texts: TokenTexts,
    target_texts: TokenTexts,
    span: npt.NDArray[np.int32],
    masks: npt.NDArray[np.uint64],
    with_total: bool,
    partner: npt.NDArray[np.int32],
    mutual: npt.NDArray[np.bool_],
) -> int:
    """Warp every gap between shared boundaries of one document.

    A gap holds the tokens after one span pair up to and including the next; its path ends in that
    pair. What follows the last span pair is a gap too. If only one side goes on there, its tokens
    are all joined to the last token of the other.

    Returns:
        The path's total, 0 unless asked for.
    """
    n, m = len(left), len(right)
    total = 0
    source_start = target_start = 0
    for j in range(m):
        closes = span[j] >= 0
        if not closes and j < m - 1:
            continue
        source_stop = span[j] + 1 if closes else n
        if source_start == source_stop:
            break
        total += _warp_gap(
            left[source_start:source_stop],
            right[target_start : j + 1],
            source_texts,
            target_texts,
            masks,
            with_total,
            partner[target_start : j + 1],
            mutual[target_start : j + 1],
        )
        for position in range(target_start, j + 1):
            if partner[position] >= 0:
                partner[position] += source_start
        source_start, target_start = source_stop, j + 1
    for position in range(target_start, m):
        partner[position] = n - 1
        if with_total:
            total += text_distance(
                source_texts, left[n - 1], target_texts, right[position], masks
            )
    if target_start < m and partner[target_start - 1] == n - 1:
        mutual[target_start - 1] = False
    if source_start < n and target_start == m:
        partner[m - 1], mutual[m - 1] = -1, False
        if with_total:
            for i in range(source_start, n):
                total += text_distance(
                    source_texts, left[i], target_texts, right[m - 1], masks
                )
    return total


@numba.njit(cache=True, nogil=True)
def _warp_gap(
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    source_texts: TokenTexts,
    target_texts: TokenTexts,
    masks: npt.NDArray[np.uint64],
    with_total: bool,
    partner: npt.NDArray[np.int32],
    mutual: npt.NDArray[np.bool_],
) -> int:
    """`_warp` of one gap; where one side has a single token there is only one path."""
    n, m = len(left), len(right)
    if n > 1 and m > 1:
        costs = np.full((n, m), -1, np.int32)
        return _warp(
            left,
            right,
            source_texts,
            target_texts,
            costs,
            np.arange(n),
            np.arange(m),
            _NO_BOUND,
            masks,
            partner,
            mutual,
        )
    for j in range(m):
        partner[j] = 0 if n == 1 else -1
        mutual[j] = n == m
    total = 0
    if with_total:
        for i in range(n):
            for j in range(m):
                total += text_distance(source_texts, left[i], target_texts, right[j], masks)
    return total


@numba.njit(cache=True, nogil=True)
def _warp(
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    source_texts: TokenTexts,
    target_texts: TokenTexts,
    costs: npt.NDArray[np.int32],
    source_slot: npt.NDArray[np.int64],
    target_slot: npt.NDArray[np.int64],
    bound: int,
    masks: npt.NDArray[np.uint64],
    partner: npt.NDArray[np.int32],
    mutual: npt.NDArray[np.bool_],
) -> int:
    """Pair n ≥ 1 source tokens with m ≥ 1 target tokens by the dynamic programme.

    Costs are integers, so totals are exact and ties are ties. In row i only the columns from the
    first to the last whose total is within the bound matter to row i + 1. What lies outside holds
    values above the bound, possibly of an earlier row, which no cell within it can prefer.

    Args:
        left: int64 [n], text of each source token.
        right: int64 [m], text of each target token.
        source_texts: the source's texts.
        target_texts: the target's texts.
        costs: int32 [A, B], the distances known so far, others −1; filled as needed.
        source_slot: int64 [n], row of `costs` for each source token.
        target_slot: int64 [m], column of `costs` for each target token.
        bound: at least the least total.
        masks: scratch of `text_distance`.
        partner: int32 [m], out: the only source token joined to the target token, or −1.
        mutual: bool [m], out: whether the partner is joined to this target token only.

    Returns:
        The least total.
    """
    n, m = len(left), len(right)
    moves = np.empty((n, m), np.uint8)
    above = np.full(m, _UNREACHED, np.int64)
    low = high = 0
    for i in range(n):
        known = costs[source_slot[i]]
        # Left of the window there is nothing worth coming from; the first row begins at no cost.
        diagonal = 0 if i == 0 else _UNREACHED
        total = np.int64(_UNREACHED)
        stop = high + 2 if i > 0 else 1
        j = low
        while j < m and (j < stop or total <= bound):
            up = above[j]
            best, move = diagonal, _DIAGONAL
            if up < best:
                best, move = up, _UP
            if total < best:
                best, move = total, _LEFT
            cost = known[target_slot[j]]
            if cost < 0:
                cost = text_distance(source_texts, left[i], target_texts, right[j], masks)
                known[target_slot[j]] = cost
            moves[i, j] = move
            diagonal = up
            total = best + cost
            above[j] = total
            j += 1
        high = j - 1
        while above[high] > bound:
            high -= 1
        while above[low] > bound:
            low += 1
    _follow(moves, partner, mutual)
    return above[m - 1]


@numba.njit(cache=True, nogil=True)
def _follow(
    moves: npt.NDArray[np.uint8],
    partner: npt.NDArray[np.int32],
    mutual: npt.NDArray[np.bool_],
) -> None:
    """Follow the path back from the last cell and note what it joins."""
    n, m = moves.shape
    joined_to_source = np.zeros(n, np.int32)
    joined_to_target = np.zeros(m, np.int32)
    i, j = n - 1, m - 1
    while True:
        joined_to_source[i] += 1
        joined_to_target[j] += 1
        partner[j] = i
        if i == 0 and j == 0:
            break
        move = moves[i, j]
        if move != _LEFT:
            i -= 1
        if move != _UP:
            j -= 1
    for j in range(m):
        if joined_to_target[j] == 1:
            mutual[j] = joined_to_source[partner[j]] == 1
        else:
            partner[j] = -1
            mutual[j] = False
