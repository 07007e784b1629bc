"""The order of datasets in a mixture: a pure function of weights and position.

For every p, the number of a dataset's windows among the first p of a mixture differs from its share
of p by less than one. After a dataset's last window follows its next epoch, in another order; an
epoch of the mixture restarts no dataset.
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
    """Weights as the smallest integers; a float stands for its decimal notation.

    Args:
        weights: one per dataset; None: the sizes.
        sizes: windows of each dataset.

    Raises:
        InvalidInputError: not one positive number per dataset, or too many digits.
    """
    if weights is None:
        fractions = [Fraction(size) for size in sizes]
    else:
        try:
            fractions = [Fraction(str(weight)) for weight in weights]
        except ValueError as error:
            raise InvalidInputError(f"weights={list(weights)}: expected numbers.") from error
        if len(fractions) != len(sizes) or min(fractions, default=Fraction(0)) <= 0:
            raise InvalidInputError(
                f"weights={list(weights)} for {len(sizes)} datasets: expected one number above 0 "
                "for each."
            )
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * scale) for fraction in fractions]
    divisor = math.gcd(*whole)
    whole = [weight // divisor for weight in whole]
    if weights is not None and sum(whole) > _MAX_PERIOD:
        raise InvalidInputError(
            f"weights={list(weights)} are {':'.join(map(str, whole))}: expected integers that add "
            f"up to at most {_MAX_PERIOD:,}. Give fewer digits."
        )
    return tuple(whole)


def interleaving(weights: Sequence[int]) -> _Indices:
    """The dataset at each of A = Σ weights places, which then repeat.

    For dataset i with weight a, the earliest place of the j-th window (from 0) is ⌊j·A/a⌋, and its
    deadline is before place ⌈(j + 1)·A/a⌉. Equivalently, the number of its windows among the first
    p differs from p·a/A by less than one, for every p. Each place gets the window with the first
    deadline among those that may come, which meets all deadlines if any order does (Baruah et al.,
    Proportionate Progress, Algorithmica 15, 1996).

    Returns:
        int64 [A] indices into `weights`.
    """
    total = sum(weights)
    # (earliest place, dataset, number) of windows that may not come yet; (deadline, …) of others.
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
    """The infinite sequence of turns of D datasets.

    Attributes:
        sizes: windows of each dataset.
        weights: integers, as `integer_weights` gives them.
    """

    sizes: tuple[int, ...]
    weights: tuple[int, ...]

    @property
    def num_windows(self) -> int:
        """Windows in an epoch of the mixture, n: those of all datasets."""
        return sum(self.sizes)

    def turns(self, epoch: int) -> tuple[_Indices, _Indices]:
        """The dataset at each position of an epoch.

        Returns:
            int64 [n] each: the dataset, and the number of its windows before this position, from
            the beginning of the first epoch.
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
        """The dataset at each place of a period, and the number of its windows before it."""
        places = interleaving(self.weights)
        numbers = np.empty_like(places)
        for index, weight in enumerate(self.weights):
            numbers[places == index] = np.arange(weight)
        return places, numbers
