"""How far two results of one model are apart, and how far rounding alone takes them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusestore.models.quantization import quantizes_activations

_MASKED = -1e4
"""Log-probabilities below this are of ids that the model never gives."""


_COARSE_SHARE = 0.25
"""The `share` by which rounding of activations to 8 bits or fewer may move a row."""


class Distance(NamedTuple):
    """How far rows moved.

    Attributes:
        nats: the largest change of a log-probability.
        share: the same as a share of the row's spread: its largest log-probability less the median.
    """

    nats: float
    share: float


def distance(rows: Tensor, others: Tensor) -> Distance:
    """How far logits moved: the largest distance among pairs of rows.

    Args:
        rows: logits [..., V]. Those that are not finite are not compared: that is not rounding, and
            a capture reports it with the document.
        others: logits of the same shape.
    """
    before, after = (_logprobs(logits) for logits in (rows, others))
    known = ~before.isnan().any(-1)
    before, after = before[known], after[known]
    # Equal infinities are no distance; NaN on one side only is an infinite distance.
    moved = torch.where(before == after, 0.0, (before - after).abs()).nan_to_num(math.inf)
    if moved.numel() == 0:
        return Distance(0.0, 0.0)
    nats = moved.amax(-1)
    present = before.masked_fill(before < _MASKED, torch.nan)
    spread = before.amax(-1) - present.nanmedian(-1).values
    share = torch.where(nats == 0, 0.0, nats / spread)
    return Distance(float(nats.max()), float(share.max()))


def rounding_share(model: Any, logits: Tensor) -> float:  # noqa: ANN401 - transformers is untyped
    """The `share` up to which rows may move by rounding.

    Batches of other shapes are computed by other kernels, which add in another order. What remains
    equal is at least half of the digits of the coarsest format in use: 3e-4 of the spread in
    float32, 3e-2 in float16, 9e-2 in bfloat16. A row that reads a token it must not read moves by
    more than that: rows differ from each other by about their whole spread. Where activations are
    rounded to 8 bits, the least difference may take a number to the next step, which is a share of
    1/127 (2 to 12 % in float8) of the largest: rows of SmolLM2 moved by up to 0.17 of the spread.
    """
    if quantizes_activations(model):
        return _COARSE_SHARE
    formats = {logits.dtype, *(parameter.dtype for parameter in model.parameters())}
    # Narrower formats store quantized weights; nothing is computed in them.
    computing = [dtype for dtype in formats if dtype.is_floating_point and dtype.itemsize > 1]
    return math.sqrt(max(torch.finfo(dtype).eps for dtype in computing))


def _logprobs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.float32)
