"""`Rows`: consecutive rows of a distribution cache as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

NO_LABEL = -100
"""Label id of a position without a next token; the index that PyTorch's losses ignore."""

NOT_TRAINED_ON = -101
"""In a fused dataset, label id of a position whose next token is not trained on."""


@dataclass(frozen=True)
class Rows:
    """n rows; row i is the distribution for the token after token i.

    Attributes:
        ids: int32 [n, k] source token ids, by falling log-probability.
        logprobs: float32 [n, k] natural log-probabilities, −inf for absent entries.
        tail: float32 [n] log of the mass outside the kept entries; NaN if it is not known.
        label_logprob: float32 [n] log-probability of the next token of the document; NaN in a
            document's last row, which has no next token.
    """

    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    tail: npt.NDArray[np.float32]
    label_logprob: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.tail)


def blank_rows(n: int, k: int) -> Rows:
    """Rows of a skipped document: nothing kept, all mass in the tail, no label."""
    return Rows(
        ids=np.zeros((n, k), np.int32),
        logprobs=np.full((n, k), -np.inf, np.float32),
        tail=np.zeros(n, np.float32),
        label_logprob=np.full(n, np.nan, np.float32),
    )


def absent_rows(n: int, k: int) -> Rows:
    """What stands for rows that a cache does not have: nothing kept, tail and label unknown."""
    blank = blank_rows(n, k)
    return replace(blank, tail=np.full(n, np.nan, np.float32))
