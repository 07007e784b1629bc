"""Distributions for positions that no source may supervise.

Row i of a fused dataset is the distribution for the token *after* target token i, so its one-hot is
on token i + 1. The public FuseLLM code puts it on token i itself, which teaches copying; `fusellm`
does the same, for reproduction only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.fuse.project import SparseRows, empty_rows


def one_hot_rows(tokens: npt.NDArray[np.int32], k_out: int) -> SparseRows:
    """Rows with all mass on one token each, n of `k_out` entries, for `tokens` int32 [n]."""
    ids, logprobs, tail = empty_rows(len(tokens), k_out)
    ids[:, 0] = tokens
    logprobs[:, 0] = 0.0
    tail[:] = -np.inf
    return ids, logprobs, tail
