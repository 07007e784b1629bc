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
    """Windows of several datasets, numbered dataset by dataset.

    `order` mixes them; give the mixture to `BatchOrder`. An epoch has as many windows as all
    datasets together. With the default weights, the sizes, it has each window once. With others, a
    dataset with more weight is repeated in another order of its windows, and a dataset with less
    weight continues in the next epoch where it stopped in this epoch.

    Samples are those of `FusedDataset`, except that `window` is the number in the mixture.

    Attributes:
        datasets: in the caller's order.
        weights: in the smallest integers.
        name: the datasets' names.
        digest: SHA-256 of the datasets' digests and the weights.
        target, window_length, vocab_size, top_k: equal to those of every dataset.
        sampled: whether rows of any source of any dataset are samples.
        whole_documents: whether windows of any dataset hold whole documents.
    """

    def __init__(
        self, datasets: Sequence[FusedDataset], weights: Sequence[float] | None = None
    ) -> None:
        """Mix datasets.

        Args:
            datasets: of one target, window length and number of entries per row.
            weights: relative number of windows of each dataset; None: its size.

        Raises:
            IncompatibleError: the datasets do not belong together.
            InvalidInputError: no datasets, the same dataset twice, or invalid weights.
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
        self.whole_documents = any(dataset.whole_documents for dataset in datasets)
        self._turns = MixtureOrder(sizes, self.weights)
        self._firsts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        """Windows of all datasets."""
        return self._turns.num_windows

    def __getitem__(self, window: int) -> dict[str, Tensor]:
        index, number = self._locate(window)
        sample = self.datasets[index][number]
        sample["window"] = torch.tensor(window % len(self))
        return sample

    def __getitems__(self, windows: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several windows, for a DataLoader's batch."""
        return [self[window] for window in windows]

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The window at each position of an epoch, int64 [len(self)].

        Each dataset's windows come in successive `permutation`s with a seed that follows from its
        digest and `seed`.
        """
        turn, number = self._turns.turns(epoch)
        windows = np.empty_like(turn)
        for index, dataset in enumerate(self.datasets):
            is_turn = turn == index
            dataset_epoch, place = np.divmod(number[is_turn], len(dataset))
            dataset_seed = own_seed(dataset.digest, seed)
            numbers = np.empty_like(place)
            for each in np.unique(dataset_epoch).tolist():
                in_epoch = dataset_epoch == each
                order = permutation(len(dataset), dataset_seed, each)
                numbers[in_epoch] = order[place[in_epoch]]
            windows[is_turn] = self._firsts[index] + numbers
        return windows

    def place_of(self, window: int, position: int) -> str:
        """A position of a window, for messages."""
        index, number = self._locate(window)
        return self.datasets[index].place_of(number, position)

    def describe(self, windows: Sequence[int]) -> str:
        """Windows and the documents they touch, by dataset, for messages."""
        by_dataset: dict[int, list[int]] = {}
        for window in windows:
            index, number = self._locate(window)
            by_dataset.setdefault(index, []).append(number)
        return "; ".join(
            self.datasets[index].describe(numbers) for index, numbers in by_dataset.items()
        )

    def largest_token_id(self) -> int:
        """The largest token id in the datasets; reads all ids."""
        return max(dataset.largest_token_id() for dataset in self.datasets)

    def _locate(self, window: int) -> tuple[int, int]:
        """The index of the window's dataset, and its number in the dataset."""
        if not -len(self) <= window < len(self):
            raise IndexError(f"Window {window} of a mixture of {len(self)} windows.")
        window %= len(self)
        index = int(np.searchsorted(self._firsts, window, side="right")) - 1
        return index, window - int(self._firsts[index])


TrainingDataset = FusedDataset | FusedMixture
"""Map-style windows to train on."""
