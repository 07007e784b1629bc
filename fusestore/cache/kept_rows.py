"""`KeptRows`: which tokens of a corpus have a row in a cache.

A cache has a row for every token, or, with `only` supervised, for those whose row may be used. Rows
that are not kept take no space: the arrays hold the kept ones, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KeptRows:
    """R rows of T tokens, in S runs.

    Attributes:
        runs: int64 [S, 2]: tokens `[value[i, 0], value[i, 1])` have a row each, all others none.
            They rise, and none is empty or begins where the one before ends.

    Raises:
        InvalidInputError: they are not such runs.
    """

    runs: _Ints

    def __post_init__(self) -> None:
        bounds = self.runs.reshape(-1)
        if len(bounds) and (bounds[0] < 0 or np.any(bounds[1:] <= bounds[:-1])):
            raise InvalidInputError("The runs of kept rows are not rising and separate.")

    @classmethod
    def all(cls, num_tokens: int) -> Self:
        """A row for each of the tokens."""
        return cls(np.array([[0, num_tokens]], np.int64)[: min(num_tokens, 1)])

    @classmethod
    def where(cls, is_kept: npt.NDArray[np.bool_]) -> Self:
        """By a mask, bool [T]."""
        edges = np.flatnonzero(np.diff(is_kept, prepend=[False], append=[False]))
        return cls(edges.reshape(-1, 2).astype(np.int64))

    @cached_property
    def _first_rows(self) -> _Ints:
        """int64 [S + 1]: the first row of each run, and R."""
        lengths = self.runs[:, 1] - self.runs[:, 0]
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    @property
    def num_rows(self) -> int:
        """R."""
        return int(self._first_rows[-1])

    def rows_before(self, tokens: _Ints) -> _Ints:
        """Number of rows of all tokens before each of these, int64 of the same shape."""
        if not len(self.runs):
            return np.zeros_like(tokens)
        run = np.searchsorted(self.runs[:, 0], tokens, side="right") - 1
        inside = np.minimum(tokens, self.runs[run, 1]) - self.runs[run, 0]
        result: _Ints = np.where(run < 0, 0, self._first_rows[run] + inside)
        return result

    def rows_of(self, start: int, stop: int) -> tuple[int, int]:
        """The rows `[first, last)` of tokens `[start, stop)`."""
        first, last = self.rows_before(np.array([start, max(start, stop)])).tolist()
        return first, last

    def tokens(self, first: int, last: int) -> _Ints:
        """int64 [last - first]: the tokens of rows `[first, last)`."""
        return self.tokens_of(np.arange(first, last))

    def tokens_of(self, rows: _Ints) -> _Ints:
        """The tokens of some rows, int64 of the same shape."""
        run = np.searchsorted(self._first_rows, rows, side="right") - 1
        tokens: _Ints = self.runs[run, 0] + rows - self._first_rows[run]
        return tokens

    def mask(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Whether each of tokens `[start, stop)` has a row, bool [stop - start]."""
        result = np.zeros(max(0, stop - start), np.bool_)
        result[self.tokens(*self.rows_of(start, stop)) - start] = True
        return result

    def take(self, ranges: list[tuple[int, int]]) -> Self:
        """The rows of ranges `[start, stop)` of tokens, which then lie one after the other."""
        masks = [self.mask(start, stop) for start, stop in ranges]
        return type(self).where(np.concatenate([np.zeros(0, np.bool_), *masks]))
