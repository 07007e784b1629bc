"""Dynamic time warping as plain programs: the full matrix, walked back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from rapidfuzz.distance import Levenshtein

from fusestore.align.edit_distance import text_of


def plain_warp(source, target):
    """The path of dynamic time warping on a full float matrix, walked back with argmin."""

    def distance(left, right):
        return Levenshtein.distance(
            text_of(left.replace(b" ", b"")), text_of(right.replace(b" ", b""))
        )

    total = np.full((len(source) + 1, len(target) + 1), np.inf)
    total[0, 0] = 0.0
    for i, left in enumerate(source):
        for j, right in enumerate(target):
            total[i + 1, j + 1] = distance(left, right) + min(
                total[i, j], total[i, j + 1], total[i + 1, j]
            )
    i, j = len(source), len(target)
    path = []
    while True:
        path.append((i - 1, j - 1))
        if (i, j) == (1, 1):
            return path
        options = [total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]]
        step = int(np.argmin(options))
        i -= step in (0, 1)
        j -= step in (0, 2)


def plain_pairs(source, target):
    """Source position by target position, for pairs that are one-to-one on both sides."""
    if not source or not target:
        return {}
    path = plain_warp(source, target)
    sources, targets = [i for i, _ in path], [j for _, j in path]
    return {j: i for i, j in path if sources.count(i) == 1 and targets.count(j) == 1}


def plain_anchored(source, target, exact):
    """`plain_warp` from one pair of equal bytes to the next, the pairs themselves included."""
    anchors = [(0, 0), *((i, j) for j, i in enumerate(exact) if i >= 0)]
    anchors.append((len(source) - 1, len(target) - 1))
    path = {(0, 0)}
    for (i, j), (k, m) in pairwise(dict.fromkeys(anchors)):
        path |= {(i + a, j + b) for a, b in plain_warp(source[i : k + 1], target[j : m + 1])}
    sources, targets = [i for i, _ in path], [j for _, j in path]
    return {j: i for i, j in path if sources.count(i) == 1 and targets.count(j) == 1}
