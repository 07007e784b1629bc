"""How much two sparse distributions diverge, and whether they agree on the likeliest token.

Of the ids that it did not keep, a sparse row has only their total mass, its tail. As for labels,
that mass is spread evenly over them; under this rule the divergence below is exact.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from fusestore.fuse.project import Float64Array, SparseRows
from fusestore.fuse.scores import MAX_NATS


def divergence(left: SparseRows, right: SparseRows, vocab_size: int) -> Float64Array:
    """KL(left ‖ right) in nats of n pairs of rows over `vocab_size` tokens, float64 [n].

    A token with probability 0 in `right` counts with log-probability −10⁶.
    """
    slots = np.full(vocab_size, -1, np.int32)
    result = np.empty(len(left[2]), np.float64)
    _divergence(*left, *right, slots, result)
    return result


def same_top(left: SparseRows, right: SparseRows) -> npt.NDArray[np.bool_]:
    """Whether the likeliest tokens are the same, bool [n]; a row without entries has none."""
    both_kept = np.isfinite(left[1][:, 0]) & np.isfinite(right[1][:, 0])
    result: npt.NDArray[np.bool_] = both_kept & (left[0][:, 0] == right[0][:, 0])
    return result


@numba.njit(cache=True)
def _divergence(p_ids, p_logprobs, p_tail, q_ids, q_logprobs, q_tail, slots, result):
    """`slots` is scratch [vocab_size], −1 everywhere: the index of a token among q's entries."""
    vocab_size = len(slots)
    for row in range(len(p_tail)):
        num_p = num_q = num_both = 0
        for entry in range(q_ids.shape[1]):
            if q_logprobs[row, entry] > -math.inf:
                slots[q_ids[row, entry]] = entry
                num_q += 1
        for entry in range(p_ids.shape[1]):
            if p_logprobs[row, entry] > -math.inf:
                num_p += 1
                num_both += slots[p_ids[row, entry]] >= 0
        p_rest = _share(p_tail[row], vocab_size - num_p)
        q_rest = _share(q_tail[row], vocab_size - num_q)
        total = 0.0
        for entry in range(p_ids.shape[1]):
            if p_logprobs[row, entry] > -math.inf:
                slot = slots[p_ids[row, entry]]
                q = np.float64(q_logprobs[row, slot]) if slot >= 0 else q_rest
                total += _term(np.float64(p_logprobs[row, entry]), q)
                if slot >= 0:
                    slots[p_ids[row, entry]] = -1
        for entry in range(q_ids.shape[1]):
            if q_logprobs[row, entry] > -math.inf and slots[q_ids[row, entry]] >= 0:
                total += _term(p_rest, np.float64(q_logprobs[row, entry]))
                slots[q_ids[row, entry]] = -1
        total += (vocab_size - num_p - num_q + num_both) * _term(p_rest, q_rest)
        # Rounding may put two equal rows slightly below 0.
        result[row] = max(total, 0.0)


@numba.njit(cache=True)
def _share(tail, count):
    return np.float64(tail) - math.log(count) if count > 0 else -math.inf


@numba.njit(cache=True)
def _term(p, q):
    return math.exp(p) * (p - max(q, -MAX_NATS)) if p > -math.inf else 0.0
