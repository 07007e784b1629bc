"""Where the documents of a batch lie in its rows, and what a model receives for it.

A *packed* row holds several documents one after the other. Its position ids begin again at 0 with
every document: transformers derives from them which tokens a token may attend to, if the model
receives no attention mask and no cache (`masking_utils`; `flash_attention_2` and its like for a
batch of one row). Rows of one document need no mask either: padding stands after the document, and
a causal model's rows do not depend on later tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchLayout:
    """Where each of n documents lies in a batch of `rows` × `width` token ids.

    Attributes:
        lengths: int64 [n] tokens of each document.
        row: int64 [n] its row.
        start: int64 [n] its first column. Documents of one row do not overlap.
        rows: number of rows.
        width: number of columns.
    """

    lengths: _Ints
    row: _Ints
    start: _Ints
    rows: int
    width: int

    @classmethod
    def padded(cls, lengths: _Ints) -> Self:
        """A row for each document."""
        n = len(lengths)
        return cls(lengths, np.arange(n), np.zeros(n, np.int64), n, int(lengths.max()))

    @classmethod
    def one_row(cls, lengths: _Ints) -> Self:
        """All documents in one row, without padding."""
        ends = np.cumsum(lengths)
        return cls(lengths, np.zeros_like(lengths), ends - lengths, 1, int(ends[-1]))

    @property
    def size(self) -> int:
        """Token ids of the batch, padding included."""
        return self.rows * self.width

    @property
    def is_packed(self) -> bool:
        """Whether a row holds several documents."""
        return bool((self.start > 0).any())

    def positions(self) -> _Ints:
        """Position in its document of each token, documents one after the other: int64 [tokens]."""
        ends = np.cumsum(self.lengths)
        return np.arange(ends[-1]) - np.repeat(ends - self.lengths, self.lengths)

    def slots(self) -> _Ints:
        """`row * width + column` of each token, documents one after the other: int64 [tokens]."""
        return np.repeat(self.row * self.width + self.start, self.lengths) + self.positions()

    def tensors(
        self, documents: Sequence[npt.NDArray[np.int32]], device: str | torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Input ids and, if packed, position ids: int64 [rows, width], both 0 in padding.

        Args:
            documents: token ids of each document.
            device: where the tensors go.
        """
        slots = self.slots()
        input_ids = self._spread(slots, np.concatenate(documents), device)
        if not self.is_packed:
            return input_ids, None
        # A padding token begins at 0 too, so that it is a document of its own.
        return input_ids, self._spread(slots, self.positions(), device)

    def _spread(
        self, slots: _Ints, values: npt.NDArray[np.integer], device: str | torch.device
    ) -> torch.Tensor:
        spread = np.zeros(self.size, np.int64)
        spread[slots] = values
        return torch.from_numpy(spread).view(self.rows, self.width).to(device)
