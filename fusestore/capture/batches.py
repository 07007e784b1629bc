"""Which documents run together. Pure functions of their lengths.

Packed documents leave next to no padding. Padded documents run in *length buckets*: batches end
where the next document would cost more in padding than a batch costs in launches, so a batch may be
smaller than the budget.

Shares of padding among 262,144 tokens at a budget of 32,768, documents of log-normal length (median
400, σ = 1, at most 4,096): as many padded documents as fit 15.7 %, buckets 2.2 %, rows 0.5 %, one
row none. `benchmarks/packing.py` prints them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from fusestore.models.batch_layout import BatchLayout
from fusestore.models.causality import Batching

_MIN_ROW = 1_024
"""Least width of packed rows. Short documents alone cannot fill rows of their own length; attention
over so few tokens costs little."""

_Ints = npt.NDArray[np.int64]


class Limits(NamedTuple):
    """How large batches are.

    Attributes:
        tokens: token ids of a batch, padding included, unless one document has more.
        launch: what a batch costs beside its tokens, in tokens: buckets trade it for padding.
        documents: documents of a batch, whatever their tokens; None for no such limit. Rows of
            `rows` are then of one document each.
        switch: documents of at most so many tokens never run beside longer ones; see
            `switch_length`. None if all may run together.
    """

    tokens: int
    launch: int
    documents: int | None = None
    switch: int | None = None


_LIMITS = {"cpu": Limits(tokens=4_096, launch=32)}
_ACCELERATOR_LIMITS = Limits(tokens=32_768, launch=192)
"""An accelerator computes about `launch` tokens while the kernels of a pass are launched. With more
for `launch`, buckets of 262,144 tokens would have more than 3 % padding."""


def limits_on(device: str) -> Limits:
    """The limits of batches on a device, by its type as torch names it."""
    return _LIMITS.get(device, _ACCELERATOR_LIMITS)


class Batch(NamedTuple):
    """Documents that run together.

    Attributes:
        documents: int64 [n] their numbers.
        layout: where each lies.
    """

    documents: _Ints
    layout: BatchLayout


def plan_batches(lengths: _Ints, batching: Batching, limits: Limits) -> Iterator[Batch]:
    """Divide documents into batches; each is in one of them.

    Args:
        lengths: int64 [n] tokens of each document, longest first, none 0.
        batching: which documents may run together.
        limits: how large batches are.
    """
    longer = 0 if limits.switch is None else int((lengths > limits.switch).sum())
    for first, part in ((0, lengths[:longer]), (longer, lengths[longer:])):
        if len(part) == 0:
            continue
        if batching == "rows" and limits.documents is None:
            for documents, layout in _rows(part, limits.tokens):
                yield Batch(documents + first, layout)
            continue
        make = BatchLayout.one_row if batching == "one row" else BatchLayout.padded
        for start, stop in pairwise(_bounds(part, batching, limits)):
            yield Batch(np.arange(first + start, first + stop), make(part[start:stop]))


def _bounds(lengths: _Ints, batching: Batching, limits: Limits) -> list[int]:
    """The first document of each batch of neighbors, and one past the last."""
    n = len(lengths)
    if batching == "one document":
        return list(range(n + 1))
    if batching == "padded" and limits.documents is None:
        return [int(bound) for bound in _bucket_bounds(lengths, limits.tokens, limits.launch)]
    ends = np.cumsum(lengths)
    bounds = [0]
    while (start := bounds[-1]) < n:
        if limits.documents is not None:
            count = limits.documents
        elif batching == "one row":
            before = ends[start] - lengths[start]
            count = int(np.searchsorted(ends, before + limits.tokens, side="right")) - start
        else:
            count = limits.tokens // int(lengths[start])
        stop = min(start + max(1, count), n)
        if batching == "one length":
            equal = int(np.searchsorted(-lengths, -lengths[start], side="right"))
            stop = min(stop, equal)
        bounds.append(stop)
    return bounds


@numba.njit(cache=True)
def _bucket_bounds(lengths: _Ints, tokens: int, launch: int) -> _Ints:
    """Bounds of batches of neighbors with the least padded tokens and launches together.

    Dynamic programming over where the last batch begins: least[j] is the least cost of the first j
    documents. A batch of documents i to j − 1 costs (j − i) · lengths[i] + launch.
    """
    n = len(lengths)
    least = np.empty(n + 1, np.int64)
    begin = np.empty(n + 1, np.int64)
    least[0] = 0
    lowest = 0
    for j in range(1, n + 1):
        # Later batches have shorter documents, so what is too early for j is so for all later.
        while lowest < j - 1 and (j - lowest) * lengths[lowest] > tokens:
            lowest += 1
        least[j] = least[j - 1] + lengths[j - 1] + launch
        begin[j] = j - 1
        for i in range(lowest, j - 1):
            cost = least[i] + (j - i) * lengths[i] + launch
            if cost < least[j]:
                least[j] = cost
                begin[j] = i
        # The costs have the Monge property: where the last batch best begins never moves back.
        lowest = max(lowest, begin[j])
    reverse = [n]
    while reverse[-1] > 0:
        reverse.append(begin[reverse[-1]])
    return np.array(reverse[::-1])


def _rows(lengths: _Ints, tokens: int) -> Iterator[Batch]:
    """Packed rows: each begins with the longest document that is left, then whatever still fits.

    The longest of those that fit comes next, so the shortest remain to fill the last rows.
    """
    waiting = _Waiting(lengths)
    left = int(lengths.sum())
    while left:
        width = max(waiting.longest, min(_MIN_ROW, tokens, left))
        row: list[int] = []
        start: list[int] = []
        documents: list[int] = []
        used = 0
        rows = 0
        while left and (rows == 0 or (rows + 1) * width <= tokens):
            column = 0
            while (document := waiting.take(width - column)) is not None:
                documents.append(document)
                row.append(rows)
                start.append(column)
                column += int(lengths[document])
            used = max(used, column)
            left -= column
            rows += 1
        numbers = np.array(documents)
        yield Batch(
            numbers,
            BatchLayout(lengths[numbers], np.array(row), np.array(start), rows, used),
        )


class _Waiting:
    """Documents by length, of which the longest that fits is taken."""

    def __init__(self, lengths: _Ints) -> None:
        self._documents: dict[int, list[int]] = {}
        for document in range(len(lengths) - 1, -1, -1):
            self._documents.setdefault(int(lengths[document]), []).append(document)
        self._lengths = sorted(self._documents)

    @property
    def longest(self) -> int:
        return self._lengths[-1]

    def take(self, room: int) -> int | None:
        """The first of the longest documents with at most `room` tokens; None if there is none."""
        index = bisect_right(self._lengths, room) - 1
        if index < 0:
            return None
        length = self._lengths[index]
        documents = self._documents[length]
        document = documents.pop()
        if not documents:
            del self._lengths[index]
        return document
