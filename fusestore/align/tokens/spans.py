"""Pairs of tokens whose rows have read the same bytes: `span` and `inside`.

After token i a model predicts what follows the bytes up to token i's end. A source row may
supervise a target position when both ends are the same offset. Where several tokens of one side end
at one offset (a BOS and an added space at 0, tokens without text), only the last of them is
followed by the next text. So the last pairs with the last, and the others stay unpaired.

Where a target token ends inside a source token, no source row ends there. But the row before that
source token, conditioned on its next token beginning with the bytes up to the target token's end,
says what follows them.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt


@numba.njit(cache=True, nogil=True)
def span_pairs(
    source_ends: npt.NDArray[np.int32],
    source_offsets: npt.NDArray[np.int64],
    target_ends: npt.NDArray[np.int32],
    target_offsets: npt.NDArray[np.int64],
    exact: bool,
) -> npt.NDArray[np.int32]:
    """Source position of every target token by equal end offsets; linear in the tokens.

    Args:
        source_ends: int32 [T_source], never decreasing within a document.
        source_offsets: int64 [D + 1], document i is `[source_offsets[i], source_offsets[i + 1])`.
        target_ends: int32 [T_target].
        target_offsets: int64 [D + 1].
        exact: keep only pairs that also start at the same offset (the end of the token before,
            0 for the first): both tokens cover the same bytes.

    Returns:
        int32 [T_target], position within the source document, −1 for none.
    """
    read = _last_read(source_ends, source_offsets, target_ends, target_offsets)
    result = np.full(len(target_ends), -1, np.int32)
    for document in range(len(target_offsets) - 1):
        first, target_first = source_offsets[document], target_offsets[document]
        for target in range(target_first, target_offsets[document + 1]):
            last = read[target]
            if last < 0 or source_ends[last] != target_ends[target]:
                continue
            if exact:
                source_start = source_ends[last - 1] if last > first else 0
                target_start = target_ends[target - 1] if target > target_first else 0
                if source_start != target_start:
                    continue
            result[target] = last - first
    return result


@numba.njit(cache=True, nogil=True)
def inside_rows(
    source_ends: npt.NDArray[np.int32],
    source_lengths: npt.NDArray[np.int32],
    source_spaced: npt.NDArray[np.bool_],
    source_offsets: npt.NDArray[np.int64],
    target_ends: npt.NDArray[np.int32],
    target_offsets: npt.NDArray[np.int64],
) -> npt.NDArray[np.int32]:
    """Source position of the row to condition, for target tokens that end inside a source token.

    Args:
        source_ends: int32 [T_source], never decreasing within a document.
        source_lengths: int32 [T_source], bytes that each token spells; 0 for special tokens.
        source_spaced: bool [T_source], whether it begins with a space. Before a document's first
            byte a tokenizer may add one.
        source_offsets: int64 [D + 1], document i is `[source_offsets[i], source_offsets[i + 1])`.
        target_ends: int32 [T_target].
        target_offsets: int64 [D + 1].

    Returns:
        int32 [T_target], position within the source document, −1 where the target token does not
        end inside a source token, where no row comes before that token, and where the token does
        not spell the bytes that it covers (a normalizer changed them), so that none of its bytes
        can be located.
    """
    read = _last_read(source_ends, source_offsets, target_ends, target_offsets)
    result = np.full(len(target_ends), -1, np.int32)
    for document in range(len(target_offsets) - 1):
        first, source_stop = source_offsets[document], source_offsets[document + 1]
        for target in range(target_offsets[document], target_offsets[document + 1]):
            last = read[target]
            following = last + 1
            if last < 0 or source_ends[last] == target_ends[target] or following == source_stop:
                continue
            start = source_ends[last]
            added = source_lengths[following] - (source_ends[following] - start)
            if added == 0 or (added == 1 and start == 0 and source_spaced[following]):
                result[target] = last - first
    return result


@numba.njit(cache=True, nogil=True)
def _last_read(
    source_ends: npt.NDArray[np.int32],
    source_offsets: npt.NDArray[np.int64],
    target_ends: npt.NDArray[np.int32],
    target_offsets: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The last source token that ends no later than each target token, int64 [T_target].

    It is counted from the first of all source tokens. −1 where there is none in the document, and
    for a target token that ends where the next one ends: it is not followed by text.
    """
    result = np.full(len(target_ends), -1, np.int64)
    for document in range(len(target_offsets) - 1):
        first, source_stop = source_offsets[document], source_offsets[document + 1]
        target_stop = target_offsets[document + 1]
        source = first
        for target in range(target_offsets[document], target_stop):
            end = target_ends[target]
            if target + 1 < target_stop and target_ends[target + 1] == end:
                continue
            while source < source_stop and source_ends[source] <= end:
                source += 1
            if source > first:
                result[target] = source - 1
    return result
