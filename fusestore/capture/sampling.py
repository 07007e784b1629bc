"""Draws that depend only on the seed and on the row's number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

_PER_COUNTER = 4
"""64-bit numbers that Philox4x64 makes of one value of its counter."""

_ID_BITS = 32


def uniforms(seed: int, rows: npt.NDArray[np.int64], draws: int) -> npt.NDArray[np.float64]:
    """Points in [0, 1) for each row, rising, float64 [n, draws].

    Philox4x64-10 with the seed as its key and a range of the counter for each row: the points of a
    row do not depend on the other rows, their order or the device.

    Args:
        seed: not negative.
        rows: int64 [n] numbers of rows.
        draws: points per row.
    """
    counters = -(-draws // _PER_COUNTER)
    raw = np.empty((len(rows), counters * _PER_COUNTER), np.uint64)
    # Consecutive rows are one range of the counter.
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for first, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        if first == stop:
            continue
        generator = np.random.Philox(key=seed, counter=int(rows[first]) * counters)
        raw[first:stop] = generator.random_raw(raw[first:stop].size).reshape(stop - first, -1)
    # The leading 53 bits, as many as a float64 holds.
    points: npt.NDArray[np.float64] = (raw[:, :draws] >> np.uint64(11)).astype(np.float64)
    points *= 2.0**-53
    points.sort(axis=1)
    return points


def tally(drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the distinct ids of each row.

    Args:
        drawn: int32 [n, draws], rising along each row.

    Returns:
        ids int32 [n, draws] and log(count / draws) float32 [n, draws], by falling count, then by
        rising id; 0 and −inf for absent entries.
    """
    draws = drawn.shape[1]
    is_first = torch.ones_like(drawn, dtype=torch.bool)
    is_first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    group = is_first.cumsum(1) - 1
    counts = torch.zeros_like(group).scatter_add_(1, group, torch.ones_like(group))
    ids = torch.zeros_like(group).scatter_(1, group, drawn.long())
    # One number that sorts by rising count, then by falling id.
    key = (counts << _ID_BITS) + ((1 << _ID_BITS) - 1 - ids)
    key = torch.where(counts > 0, key, 0).sort(dim=1, descending=True).values
    counts = key >> _ID_BITS
    ids = torch.where(counts > 0, (1 << _ID_BITS) - 1 - (key & ((1 << _ID_BITS) - 1)), 0)
    logprobs = (counts.double() / draws).log().float()
    return ids.to(torch.int32), logprobs
