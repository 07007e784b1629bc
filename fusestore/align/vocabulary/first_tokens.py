"""The first target token of what remains of a source token's text from each of its bytes on.

A distribution conditioned on the bytes that the target has read already predicts the remainders of
source tokens. As a `prefix` map does for whole tokens, a remainder's mass goes to the longest
target token that it begins with.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from fusestore.tokenizers.vocabulary import Spelling, Vocabulary


def first_tokens(source: Spelling, target: Vocabulary) -> npt.NDArray[np.int32]:
    """For every byte of every source token, the longest target token that begins there.

    Args:
        source: B bytes of the source's tokens.
        target: of equal tokens, text tokens precede byte tokens, and lower ids higher ids.

    Returns:
        int32 [B]: for byte j of `source.data`, the target token that spells the most bytes of its
        source token from j on; −1 where none does.
    """
    spelling = target.spelling
    kinds = np.array(target.kinds)
    order = np.concatenate([np.flatnonzero(kinds == "text"), np.flatnonzero(kinds == "byte")])
    result = np.full(len(source.data), -1, np.int32)
    bits = max(4, len(spelling.data).bit_length() + 1)
    keys = np.full(1 << bits, -1, np.int64)
    children = np.zeros(1 << bits, np.int32)
    tokens = np.full(len(spelling.data) + 1, -1, np.int32)
    _grow(spelling.data, spelling.offsets, order, keys, children, tokens)
    _walk(source.data, source.offsets, keys, children, tokens, result)
    return result


@numba.njit(cache=True)
def _slot(keys, node, byte):
    """Where the child of a node by a byte stands, or would be put, in the table of open slots."""
    key = node * 256 + byte
    mask = len(keys) - 1
    slot = ((key * 2654435761) >> 7) & mask
    while keys[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@numba.njit(cache=True)
def _grow(data, offsets, order, keys, children, tokens):
    """Put tokens into a prefix tree; `tokens` [nodes] is the token that ends at a node."""
    count = 1
    for token in order:
        node = np.int64(0)
        for place in range(offsets[token], offsets[token + 1]):
            slot = _slot(keys, node, np.int64(data[place]))
            if keys[slot] < 0:
                keys[slot] = node * 256 + np.int64(data[place])
                children[slot] = count
                count += 1
            node = np.int64(children[slot])
        if node > 0 and tokens[node] < 0:
            tokens[node] = token


@numba.njit(cache=True)
def _walk(data, offsets, keys, children, tokens, result):
    for token in range(len(offsets) - 1):
        for start in range(offsets[token], offsets[token + 1]):
            node = np.int64(0)
            for place in range(start, offsets[token + 1]):
                slot = _slot(keys, node, np.int64(data[place]))
                if keys[slot] < 0:
                    break
                node = np.int64(children[slot])
                if tokens[node] >= 0:
                    result[start] = tokens[node]
