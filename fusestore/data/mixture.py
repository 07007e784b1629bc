"""Several fused datasets as one, in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusestore.data.dataset import FusedDataset
from fusestore.data.mixable import check_mixable, mixture_digest, own_seed
from fusestore.data.mixture_order import MixtureOrder, integer_weights
from fusestore.data.order import permutation


class FusedMixture(Dataset[dict[str, Tensor]]):
    """Windows of several datasets, numbered one dataset after the other.

    `order` is what mixes; give the mixture to `BatchOrder`. An epoch has as many windows as all
    datasets have together. With the default weights, the sizes, each window comes once in it; with
    others, a dataset of more weight begins again in another order of its windows, and one of less
    weight goes on in the next epoch where it stopped in this one.

    Samples are those of `FusedDataset`, but for `window`, the number in the mixture.

    Attributes:
        datasets: in the order given.
        weights: in the smallest integers.
        name: the datasets' names.
        digest: SHA-256 of the datasets' digests and the weights.
        target, window_length, vocab_size, top_k: as in every one of the datasets.
        sampled: whether rows of any source of any dataset are samples.
    """

    def __init__(
        self, datasets: Sequence[FusedDataset], weights: Sequence[float] | None = None
    ) -> None:
        """Mix datasets.

        Args:
            datasets: of one target, window length and number of entries per row.
            weights: how many windows of each, in proportion; None: as many as each has.

        Raises:
            IncompatibleError: the datasets do not belong together.
            InvalidInputError: no datasets, one twice, or weights that are none.
        """
        check_mixable(datasets)
        self.datasets = tuple(datasets)
        sizes = tuple(len(dataset) for dataset in datasets)
        self.weights = integer_weights(weights, sizes)
        self.name = " + ".join(dataset.name for dataset in datasets)
        self.digest = mixture_digest(datasets, self.weights)
        self.target = datasets[0].target
        self.window_length = datasets[0].window_length
        self.vocab_size = datasets[0].vocab_size
        self.top_k = datasets[0].top_k
        self.sampled = any(dataset.sampled for dataset in datasets)
        self._turns = MixtureOrder(sizes, self.weights)
        self._firsts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        """Windows of all datasets."""
        return self._turns.num_windows

    def __getitem__(self, window: int) -> dict[str, Tensor]:
        index, own = self._own(window)
        sample = self.datasets[index][own]
        sample["window"] = torch.tensor(window % len(self))
        return sample

    def __getitems__(self, windows: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several windows, for a DataLoader's batch."""
        return [self[window] for window in windows]

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The window at each position of an epoch, int64 [len(self)].

        Each dataset's windows come in `permutation`s of its own, one after the other, of seeds
        that follow from its digest and `seed`.
        """
        turn, number = self._turns.turns(epoch)
        windows = np.empty_like(turn)
        for index, dataset in enumerate(self.datasets):
            mine = turn == index
            own_epoch, place = np.divmod(number[mine], len(dataset))
            dataset_seed = own_seed(dataset.digest, seed)
            own = np.empty_like(place)
            for each in np.unique(own_epoch).tolist():
                here = own_epoch == each
                own[here] = permutation(len(dataset), dataset_seed, each)[place[here]]
            windows[mine] = self._firsts[index] + own
        return windows

    def describe(self, windows: Sequence[int]) -> str:
        """Windows and the documents they touch, by dataset, for messages."""
        own: dict[int, list[int]] = {}
        for window in windows:
            index, number = self._own(window)
            own.setdefault(index, []).append(number)
        return "; ".join(self.datasets[index].describe(found) for index, found in own.items())

    def largest_token_id(self) -> int:
        """The largest token id anywhere in the datasets; reads all ids once."""
        return max(dataset.largest_token_id() for dataset in self.datasets)

    def _own(self, window: int) -> tuple[int, int]:
        """The dataset, and the window's number in it."""
        if not -len(self) <= window < len(self):
            raise IndexError(f"Window {window} of a mixture of {len(self)} windows.")
        window %= len(self)
        index = int(np.searchsorted(self._firsts, window, side="right")) - 1
        return index, window - int(self._firsts[index])


TrainingDataset = FusedDataset | FusedMixture
"""Map-style windows to train on."""
