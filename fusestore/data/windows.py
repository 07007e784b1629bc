"""A window's rows as the sample that training code gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SAMPLE_ARRAYS = ("input_ids", "next_ids", "ids", "logprobs", "tail", "kind")
"""What of a fused dataset goes into a sample."""

NO_LABEL = -100
NO_WINDOW = -1
"""`window` of a filler."""

_NO_DISTILLATION = 0
"""Value of `kind` where a position has no fused distribution."""


def sample_of(
    rows: Mapping[str, npt.NDArray[Any]], window: int, *, sampled: bool
) -> dict[str, Tensor]:
    """The sample of window `window`, as `FusedDataset` describes it.

    Args:
        rows: arrays of the store by name, cut to the window's l positions; writable, and the
            sample's own from now on.
        window: its number.
        sampled: whether rows of any source are samples.
    """
    # `torch.tensor` takes several times as long as `from_numpy`.
    tensor = torch.from_numpy
    return {
        "input_ids": tensor(rows["input_ids"]),
        "next_ids": tensor(rows["next_ids"]),
        "fused_ids": tensor(rows["ids"]),
        "fused_logprobs": tensor(rows["logprobs"]),
        "fused_tail": tensor(rows["tail"]),
        "fused_mask": tensor(rows["kind"] != _NO_DISTILLATION),
        "document_end": tensor(rows["next_ids"] == NO_LABEL),
        "fused_sampled": tensor(np.array(sampled)),
        "window": tensor(np.array(window)),
    }


def filler(top_k: int, *, sampled: bool) -> dict[str, Tensor]:
    """A sample of one position that adds nothing to a loss: no label, no distribution."""
    rows: dict[str, npt.NDArray[Any]] = {
        "input_ids": np.zeros(1, np.int32),
        "next_ids": np.full(1, NO_LABEL, np.int32),
        "ids": np.zeros((1, top_k), np.int32),
        "logprobs": np.full((1, top_k), -np.inf, np.float32),
        "tail": np.zeros(1, np.float32),
        "kind": np.full(1, _NO_DISTILLATION, np.uint8),
    }
    return sample_of(rows, NO_WINDOW, sampled=sampled)
