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
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from fusestore.align.edit_distance import levenshtein

_DIAGONAL, _UP, _LEFT = 0, 1, 2


@numba.njit(cache=True, nogil=True)
def warp(
    cost: npt.NDArray[np.int32],
    source_index: npt.NDArray[np.int64],
    target_index: npt.NDArray[np.int64],
    partner: npt.NDArray[np.int32],
    mutual: npt.NDArray[np.bool_],
) -> None:
    """Pair n ≥ 1 source tokens with m ≥ 1 target tokens by the full dynamic programme.

    Costs are integers, so totals are exact and ties are ties. Time and memory are n · m (one byte a
    cell).

    Args:
        cost: int32 [A, B], edit distances of distinct texts.
        source_index: int64 [n], row of `cost` for each source token.
        target_index: int64 [m], column of `cost` for each target token.
        partner: int32 [m], out: the only source token joined to the target token, or −1.
        mutual: bool [m], out: whether the partner is joined to this target token only.
    """
    n, m = len(source_index), len(target_index)
    moves = np.empty((n, m), np.uint8)
    above = np.empty(m, np.int64)
    for i in range(n):
        costs = cost[source_index[i]]
        diagonal = np.int64(0)
        left = np.int64(0)
        for j in range(m):
            up = above[j]
            if i == 0:
                best, move = left, _LEFT
            elif j == 0:
                best, move = up, _UP
            else:
                best, move = diagonal, _DIAGONAL
                if up < best:
                    best, move = up, _UP
                if left < best:
                    best, move = left, _LEFT
            moves[i, j] = move
            diagonal = up
            left = best + costs[target_index[j]]
            above[j] = left
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


@numba.njit(cache=True, nogil=True)
def text_costs(
    source_characters: npt.NDArray[np.uint32],
    source_offsets: npt.NDArray[np.int64],
    sources: npt.NDArray[np.int64],
    target_characters: npt.NDArray[np.uint32],
    target_offsets: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
) -> npt.NDArray[np.int32]:
    """Edit distances int32 [A, B] of the texts named by `sources` [A] and `targets` [B].

    The flat forms are those of `edit_distance.Texts`.
    """
    longest = 0
    for text in targets:
        longest = max(longest, target_offsets[text + 1] - target_offsets[text])
    row = np.empty(longest + 1, np.int32)
    costs = np.empty((len(sources), len(targets)), np.int32)
    for a in range(len(sources)):
        left = source_characters[source_offsets[sources[a]] : source_offsets[sources[a] + 1]]
        for b in range(len(targets)):
            right = target_characters[target_offsets[targets[b]] : target_offsets[targets[b] + 1]]
            costs[a, b] = levenshtein(left, right, row)
    return costs


@numba.njit(cache=True, nogil=True)
def warp_gaps(
    span: npt.NDArray[np.int32],
    source_texts: npt.NDArray[np.int64],
    target_texts: npt.NDArray[np.int64],
    source_characters: npt.NDArray[np.uint32],
    source_text_offsets: npt.NDArray[np.int64],
    target_characters: npt.NDArray[np.uint32],
    target_text_offsets: npt.NDArray[np.int64],
    partner: npt.NDArray[np.int32],
    mutual: npt.NDArray[np.bool_],
) -> None:
    """`warp` inside every gap between shared boundaries of one document.

    A gap holds the tokens after one span pair up to and including the next; the path of a gap ends
    in its closing pair. What follows the last span pair is a gap too. Linear in the tokens as long
    as gaps stay short, as they do where two tokenizers cut the same text.

    Args:
        span: int32 [m], `span_pairs` of the document.
        source_texts: int64 [n], index of each source token's text.
        target_texts: int64 [m], index of each target token's text.
        source_characters: uint32, and `source_text_offsets` int64: the flat source texts.
        source_text_offsets: see above.
        target_characters: uint32, and `target_text_offsets` int64: the flat target texts.
        target_text_offsets: see above.
        partner: int32 [m], out: as in `warp`, position in the document.
        mutual: bool [m], out.
    """
    n, m = len(source_texts), len(target_texts)
    source_start = target_start = 0
    for j in range(m):
        closes = span[j] >= 0
        if not closes and j < m - 1:
            continue
        source_stop = span[j] + 1 if closes else n
        target_stop = j + 1
        gap_partner = partner[target_start:target_stop]
        gap_mutual = mutual[target_start:target_stop]
        sources, targets = source_stop - source_start, target_stop - target_start
        if sources > 0 and (targets > 1 or not closes):
            costs = text_costs(
                source_characters,
                source_text_offsets,
                source_texts[source_start:source_stop],
                target_characters,
                target_text_offsets,
                target_texts[target_start:target_stop],
            )
            warp(costs, np.arange(sources), np.arange(targets), gap_partner, gap_mutual)
            for position in range(targets):
                if gap_partner[position] >= 0:
                    gap_partner[position] += source_start
        source_start, target_start = source_stop, target_stop
