"""What stands at a position where no source may supervise.

Row i of a fused dataset is the distribution for the token *after* target token i, so a one-hot
stands on token i + 1. The public FuseLLM code puts it on token i itself, which teaches copying;
`fusellm` repeats that, for reproduction only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def one_hot_rows(
    tokens: npt.NDArray[np.int32], k_out: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Distributions with all mass on one token each.

    Args:
        tokens: int32 [n].
        k_out: entries in a row.

    Returns:
        `(ids int32 [n, k_out], logprobs float32 [n, k_out], tail float32 [n])`.
    """
    ids = np.zeros((len(tokens), k_out), np.int32)
    logprobs = np.full((len(tokens), k_out), -np.inf, np.float32)
    ids[:, 0] = tokens
    logprobs[:, 0] = 0.0
    return ids, logprobs, np.full(len(tokens), -np.inf, np.float32)
