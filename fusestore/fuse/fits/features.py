"""What a stored row shows of how sure a source is: the features of a learned mixture.

entropy     of the entries and the tail as one outcome, in nats
largest     log of the largest probability
tail        mass outside the entries
known       share of the row's mass that the source knows
agreement   mean probability that the other sources give to this source's likeliest token

None of them looks at the label.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from fusestore.fuse.fits.manifest import FEATURES
from fusestore.fuse.project import Float32Array, Float64Array, SparseRows

ENTROPY = FEATURES.index("entropy")


def row_features(
    rows: npt.NDArray[np.int64], projected: SparseRows, known: Float32Array
) -> Float32Array:
    """Features of each source at n positions, float32 [n, sources, F]; 0 without a row.

    Args:
        rows: int64 [n, sources], index of each source's row among the R rows; −1 for none.
        projected: R rows.
        known: float32 [n, sources].
    """
    features = np.zeros((*rows.shape, len(FEATURES)), np.float32)
    _row_features(rows, *projected, known, features)
    return features


def mean_entropy(features: Float32Array, allowed: npt.NDArray[np.bool_]) -> Float64Array:
    """Mean over the sources that have a row of their rows' entropy, float64 [n]."""
    total = np.zeros(len(features))
    count = np.zeros(len(features))
    for index in range(features.shape[1]):
        total += np.where(allowed[:, index], features[:, index, ENTROPY], 0.0)
        count += allowed[:, index]
    result: Float64Array = total / np.maximum(count, 1.0)
    return result


@numba.njit(cache=True)
def _row_features(rows, ids, logprobs, tail, known, out):
    num_positions, num_sources = rows.shape
    k = ids.shape[1]
    for position in range(num_positions):
        count = 0
        for source in range(num_sources):
            count += rows[position, source] >= 0
        for source in range(num_sources):
            row = rows[position, source]
            if row < 0:
                continue
            entropy = 0.0
            for entry in range(k):
                logprob = np.float64(logprobs[row, entry])
                if logprob > -math.inf:
                    entropy -= math.exp(logprob) * logprob
            mass = math.exp(np.float64(tail[row]))
            if mass > 0.0:
                entropy -= mass * np.float64(tail[row])
            out[position, source, 0] = entropy
            # A row without entries is as unsure as a source can be.
            out[position, source, 1] = max(np.float64(logprobs[row, 0]), -20.0)
            out[position, source, 2] = mass
            out[position, source, 3] = known[position, source]
            if count < 2 or logprobs[row, 0] == -math.inf:
                continue
            agreement = 0.0
            for other in range(num_sources):
                other_row = rows[position, other]
                if other == source or other_row < 0:
                    continue
                for entry in range(k):
                    if logprobs[other_row, entry] == -math.inf:
                        break
                    if ids[other_row, entry] == ids[row, 0]:
                        agreement += math.exp(np.float64(logprobs[other_row, entry]))
                        break
            out[position, source, 4] = agreement / (count - 1)
