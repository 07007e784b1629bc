"""Dynamic time warping over edit distances: FuseLLM's pairing of two tokenizations.

FuseLLM (arXiv 2401.10491, section 3.3) pairs the tokens of two tokenizations of one text by the
monotone path of least total edit distance. Cell (i, j) costs the distance of source token i and
target token j, and is reached from (i−1, j−1), (i−1, j) or (i, j−1). The path is followed back from
the last cell; on equal totals the diagonal goes first, then the step to the earlier source token,
then the one to the earlier target token, as in the public code.

The path pairs tokens, and row i of a source is its distribution after token i (the public code
indexes its logits in the same way). So the row of a pair's source token supervises the position of
its target token: both predict what follows the pair.

A target token counts as paired when the path joins it to one source token only. That token is its
`partner`; the pair is `mutual` when the path joins the partner to no other target token either.

Three paths:

- `GAPS`: each range of tokens between two shared end offsets is warped separately. Linear.
- `ANCHORED`: the best path of those that join every pair of tokens that cover the same bytes, found
  range by range from one such pair to the next. Linear.
- `FULL`: the best path. Totals never fall along a path, so a cell with a total above that of the
  anchored path lies on no best path, not even on a tied path. Without such cells the path and its
  ties are the same; what remains is a band, at worst every cell.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from fusestore.align.tokens.token_distance import (
    TokenTexts,
    mark_text,
    marked_distance,
    text_distance,
    unmark_text,
)

GAPS, ANCHORED, FULL = 0, 1, 2

_DIAGONAL, _UP, _LEFT = 0, 1, 2

_UNREACHED = 2**60
"""Total of a cell that no path has reached; no sum of distances comes near it."""

_NO_BOUND = 2**59

# Constants that are passed on below have types such as np.int64: for a literal, numba compiles the
# called function once more.


class Tokens(NamedTuple):
    """The tokens of one side: D concatenated documents, T tokens in all.

    Attributes:
        texts: int64 [T], index of each token's text.
        end_offsets: int32 [T].
        document_offsets: int64 [D + 1].
    """

    texts: npt.NDArray[np.int64]
    end_offsets: npt.NDArray[np.int32]
    document_offsets: npt.NDArray[np.int64]


class _Pair(NamedTuple):
    """The tokens of one document, n of the source and m of the target, as texts to compare."""

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    source_texts: TokenTexts
    target_texts: TokenTexts
    masks: npt.NDArray[np.uint64]


class _Joined(NamedTuple):
    """The pairs that a path joins.

    Attributes:
        partner: int32 [m], a source token that the target token is joined to, −1 for none.
        sources: int32 [m], number of source tokens that each target token is joined to.
        targets: int32 [n], number of target tokens that each source token is joined to.
    """

    partner: npt.NDArray[np.int32]
    sources: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]


@numba.njit(cache=True, nogil=True)
def warp_documents(
    source: Tokens,
    target: Tokens,
    source_texts: TokenTexts,
    target_texts: TokenTexts,
    pairs: npt.NDArray[np.int32],
    path: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Warp every document, without the tokens that end at 0 (BOS, an added space).

    Those have no text, so their vocabulary's text would spoil the pairing of the first tokens.

    Args:
        source: the source's tokens.
        target: the target's tokens of the same documents.
        source_texts: the texts that `source.texts` are indices of.
        target_texts: the texts that `target.texts` are indices of.
        pairs: int32 [T_target], `span_pairs` of the documents: by equal end offsets for `GAPS`,
            exact for the other paths.
        path: `GAPS`, `ANCHORED` or `FULL`.

    Returns:
        partner int32 [T_target] (position within the source document or −1) and mutual bool
        [T_target]; see the module's docstring.
    """
    partner = np.full(len(target.texts), -1, np.int32)
    mutual = np.zeros(len(target.texts), np.bool_)
    source_slots = np.full(len(source_texts.offsets), -1, np.int64)
    target_slots = np.full(len(target_texts.offsets), -1, np.int64)
    masks = np.zeros(max(source_texts.alphabet, target_texts.alphabet), np.uint64)
    for document in range(len(target.document_offsets) - 1):
        start, stop = _body(source, document)
        target_start, target_stop = _body(target, document)
        if start == stop or target_start == target_stop:
            continue
        skipped = start - source.document_offsets[document]
        left, right = source.texts[start:stop], target.texts[target_start:target_stop]
        pair = _Pair(left, right, source_texts, target_texts, masks)
        ends = pairs[target_start:target_stop] - skipped
        joined = _nothing_joined(len(left), len(right))
        if path == GAPS:
            _join_gaps(pair, ends, joined)
        else:
            bound = _join_anchored(pair, ends, joined, path == FULL)
        if path == FULL:
            joined = _nothing_joined(len(left), len(right))
            slots, num_sources = _distinct(left, source_slots)
            columns, num_targets = _distinct(right, target_slots)
            costs = np.full((num_sources, num_targets), -1, np.int32)
            moves, _ = _warp(pair, costs, slots, columns, bound)
            first: Any = np.int64(0)
            _follow(moves, first, first, joined)
            _join(first, first, joined)
        for j in range(len(right)):
            if joined.sources[j] == 1:
                i = joined.partner[j]
                partner[target_start + j] = i + skipped
                mutual[target_start + j] = joined.targets[i] == 1
    return partner, mutual


@numba.njit(cache=True, nogil=True)
def _body(tokens: Tokens, document: int) -> tuple[int, int]:
    """The document's tokens `[start, stop)` that end after 0."""
    start, stop = tokens.document_offsets[document], tokens.document_offsets[document + 1]
    while start < stop and tokens.end_offsets[start] == 0:
        start += 1
    return start, stop


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
def _nothing_joined(n: int, m: int) -> _Joined:
    return _Joined(np.full(m, -1, np.int32), np.zeros(m, np.int32), np.zeros(n, np.int32))


@numba.njit(cache=True, nogil=True)
def _join(i: int, j: int, joined: _Joined) -> None:
    joined.partner[j] = i
    joined.sources[j] += 1
    joined.targets[i] += 1


@numba.njit(cache=True, nogil=True)
def _join_gaps(pair: _Pair, span: npt.NDArray[np.int32], joined: _Joined) -> None:
    """Warp every gap between shared boundaries.

    A gap holds the tokens after one span pair up to and including the next; its path ends in that
    pair. The tokens after the last span pair are a gap too, if both sides have any.

    Args:
        pair: the document.
        span: int32 [m], source token with the end offset of each target token, else negative.
        joined: receives the joined pairs.
    """
    n, m = len(pair.left), len(pair.right)
    first_source: Any = np.int64(0)
    first_target: Any = np.int64(0)
    with_total: Any = np.bool_(False)
    for j in range(m):
        closes = span[j] >= 0
        if not closes and j < m - 1:
            continue
        i = span[j] if closes else n - 1
        if first_source <= i:
            _join_range(pair, first_source, i, first_target, j, joined, with_total)
            _join(first_source, first_target, joined)
        first_source, first_target = i + 1, j + 1


@numba.njit(cache=True, nogil=True)
def _join_anchored(
    pair: _Pair, exact: npt.NDArray[np.int32], joined: _Joined, with_total: bool
) -> int:
    """Warp from each pair of tokens that cover the same bytes to the next.

    Args:
        pair: the document.
        exact: int32 [m], source token with the bytes of each target token, else negative.
        joined: receives the joined pairs.
        with_total: whether to compute the total.

    Returns:
        The path's total; 0 without `with_total`.
    """
    n, m = len(pair.left), len(pair.right)
    total = 0
    # The path begins in the first cell; (i, j) is the cell that it has reached.
    i: Any = np.int64(0)
    j: Any = np.int64(0)
    _join(i, j, joined)
    if with_total:
        total = _distance(pair, i, j)
    for anchor in range(m + 1):
        # After all anchors comes the last cell, in which the path ends.
        row, column = (exact[anchor], anchor) if anchor < m else (n - 1, m - 1)
        if row < 0 or (row == i and column == j):
            continue
        if row == i + 1 and column == j + 1:
            _join(row, column, joined)
            if with_total:
                total += _distance(pair, row, column)
        else:
            total += _join_range(pair, i, row, j, column, joined, with_total)
        i, j = row, column
    return total


@numba.njit(cache=True, nogil=True)
def _join_range(
    pair: _Pair,
    first_source: int,
    last_source: int,
    first_target: int,
    last_target: int,
    joined: _Joined,
    with_total: bool,
) -> int:
    """Warp the tokens from one cell to another, both included.

    The pairs after the path's first cell are added to `joined`.

    Returns:
        The total after the first cell; 0 without `with_total`.
    """
    n, m = last_source - first_source + 1, last_target - first_target + 1
    if n > 1 and m > 1:
        token_range = _Pair(
            pair.left[first_source : last_source + 1],
            pair.right[first_target : last_target + 1],
            pair.source_texts,
            pair.target_texts,
            pair.masks,
        )
        costs = np.full((n, m), -1, np.int32)
        bound: Any = np.int64(_NO_BOUND)
        moves, total = _warp(token_range, costs, np.arange(n), np.arange(m), bound)
        _follow(moves, first_source, first_target, joined)
        return total - costs[0, 0] if with_total else 0
    # A single row or column has one path.
    total = 0
    for i in range(first_source, last_source + 1):
        for j in range(first_target, last_target + 1):
            if i > first_source or j > first_target:
                _join(i, j, joined)
                if with_total:
                    total += _distance(pair, i, j)
    return total


@numba.njit(cache=True, nogil=True)
def _distance(pair: _Pair, i: int, j: int) -> int:
    return text_distance(
        pair.source_texts, pair.left[i], pair.target_texts, pair.right[j], pair.masks
    )


@numba.njit(cache=True, nogil=True)
def _warp(
    pair: _Pair,
    costs: npt.NDArray[np.int32],
    slots: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    bound: int,
) -> tuple[npt.NDArray[np.uint8], int]:
    """The dynamic program over n ≥ 1 source tokens and m ≥ 1 target tokens.

    Costs are integers, so totals and ties are exact. Row i + 1 depends only on the columns of row i
    from the first to the last total within the bound. Columns outside hold totals above the bound,
    possibly of an earlier row, which no cell within the bound can prefer.

    Args:
        pair: the tokens.
        costs: int32 [A, B], distances, −1 for those not computed yet; computed when needed.
        slots: int64 [n], row of `costs` for each source token.
        columns: int64 [m], column of `costs` for each target token.
        bound: an upper bound of the least total.

    Returns:
        uint8 [n, m], the last move of the best path to each cell within the bound, and the least
        total.
    """
    n, m = len(pair.left), len(pair.right)
    right, source_texts, target_texts = pair.right, pair.source_texts, pair.target_texts
    masks = pair.masks
    moves = np.empty((n, m), np.uint8)
    above = np.full(m, _UNREACHED, np.int64)
    low, high = 0, -1
    for i in range(n):
        row_costs = costs[slots[i]]
        left = pair.left[i]
        mark_text(source_texts, left, masks)
        # No cell left of the window is on a best path; the path begins with total 0.
        diagonal = np.int64(_UNREACHED) if i > 0 else np.int64(0)
        total = np.int64(_UNREACHED)
        j = low
        while j < m and (j < high + 2 or total <= bound):
            up = above[j]
            best, move = diagonal, _DIAGONAL
            if up < best:
                best, move = up, _UP
            if total < best:
                best, move = total, _LEFT
            cost = row_costs[columns[j]]
            if cost < 0:
                cost = marked_distance(source_texts, left, target_texts, right[j], masks)
                row_costs[columns[j]] = cost
            moves[i, j] = move
            diagonal = up
            total = best + cost
            above[j] = total
            j += 1
        unmark_text(source_texts, left, masks)
        high = j - 1
        while above[high] > bound:
            high -= 1
        while above[low] > bound:
            low += 1
    return moves, above[m - 1]


@numba.njit(cache=True, nogil=True)
def _follow(
    moves: npt.NDArray[np.uint8], first_source: int, first_target: int, joined: _Joined
) -> None:
    """Follow the path back from the last cell and join its cells, except for the first."""
    i, j = moves.shape[0] - 1, moves.shape[1] - 1
    while i > 0 or j > 0:
        _join(first_source + i, first_target + j, joined)
        move = moves[i, j]
        if move != _LEFT:
            i -= 1
        if move != _UP:
            j -= 1
