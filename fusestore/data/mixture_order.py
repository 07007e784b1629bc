"""Which dataset's turn it is in a mixture: a pure function of weights and position.

The first p windows of a mixture hold, of every dataset, its share of p to less than one window,
for every p. Where a dataset's windows come to their end, they begin again in the order of its next
own epoch; nothing begins anew where an epoch of the mixture does.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError

_Indices = npt.NDArray[np.int64]

_MAX_PERIOD = 2**20


def integer_weights(weights: Sequence[float] | None, sizes: Sequence[int]) -> tuple[int, ...]:
    """Weights in the smallest integers; a float counts as the decimal it is written as.

    Args:
        weights: one per dataset; None: as many windows as each has.
        sizes: windows of each dataset.

    Raises:
        InvalidInputError: not one positive number per dataset, or too many digits.
    """
    if weights is None:
        parts = [Fraction(size) for size in sizes]
    else:
        try:
            parts = [Fraction(str(weight)) for weight in weights]
        except ValueError as error:
            raise InvalidInputError(f"weights={list(weights)}: expected numbers.") from error
        if len(parts) != len(sizes) or min(parts, default=Fraction(0)) <= 0:
            raise InvalidInputError(
                f"weights={list(weights)} for {len(sizes)} datasets: expected one number above 0 "
                "for each."
            )
    scale = math.lcm(*(part.denominator for part in parts))
    whole = [int(part * scale) for part in parts]
    divisor = math.gcd(*whole)
    whole = [weight // divisor for weight in whole]
    if weights is not None and sum(whole) > _MAX_PERIOD:
        raise InvalidInputError(
            f"weights={list(weights)} are {':'.join(map(str, whole))}: expected integers that add "
            f"up to at most {_MAX_PERIOD:,}. Give fewer digits."
        )
    return tuple(whole)


def interleaving(weights: Sequence[int]) -> _Indices:
    """The dataset at each of A = Σ weights places, after which all begins again.

    Of dataset i with weight a the j-th window (from 0) may come at place ⌊j·A/a⌋ at the earliest,
    and must come before place ⌈(j + 1)·A/a⌉: this is the same as saying that its number among the
    first p windows differs from p·a/A by less than one, for every p. Of those that may come, the
    one that must come first is taken, which meets all such bounds if anything does (Baruah et al.,
    Proportionate Progress, Algorithmica 15, 1996).

    Returns:
        int64 [A] indices into `weights`.
    """
    total = sum(weights)
    # [place, dataset, number]: what may not come yet, and by deadline what may.
    waiting = [(0, index, 0) for index in range(len(weights))]
    ready: list[tuple[int, int, int]] = []
    places = np.empty(total, np.int64)
    for place in range(total):
        while waiting and waiting[0][0] <= place:
            _, index, number = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(number + 1) * total // weights[index]), index, number))
        _, index, number = heapq.heappop(ready)
        places[place] = index
        heapq.heappush(waiting, ((number + 1) * total // weights[index], index, number + 1))
    return places


@dataclass(frozen=True)
class MixtureOrder:
    """The turns of D datasets, without end.

    Attributes:
        sizes: windows of each dataset.
        weights: integers, as `integer_weights` gives them.
    """

    sizes: tuple[int, ...]
    weights: tuple[int, ...]

    @property
    def num_windows(self) -> int:
        """Windows in an epoch of the mixture, n: as many as all datasets have together."""
        return sum(self.sizes)

    def turns(self, epoch: int) -> tuple[_Indices, _Indices]:
        """Whose turn it is at each position of an epoch.

        Returns:
            int64 [n] each: the dataset, and how many of its windows came before, since the
            beginning of the first epoch.
        """
        if epoch < 0:
            raise InvalidInputError(f"epoch={epoch}: expected 0 or more.")
        places, numbers = self._period
        position = np.arange(epoch * self.num_windows, (epoch + 1) * self.num_windows)
        periods, place = np.divmod(position, len(places))
        dataset = places[place]
        return dataset, periods * np.array(self.weights)[dataset] + numbers[place]

    @cached_property
    def _period(self) -> tuple[_Indices, _Indices]:
        """The dataset at each place, and how many of its windows came before in the period."""
        places = interleaving(self.weights)
        numbers = np.empty_like(places)
        for index, weight in enumerate(self.weights):
            numbers[places == index] = np.arange(weight)
        return places, numbers
