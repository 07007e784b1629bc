"""Running a causal model over documents and looking at its logits piece by piece.

The backbone runs once over the whole batch; the output head, whose result is by far the largest
tensor, runs on short pieces of the sequence. So no `[batch, time, vocab]` tensor is ever built.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fusestore.models.loading import output_width

CHUNK_LOGITS = {"cpu": 2**24}
"""Logits per piece, about: 64 MiB in float32, enough to read the output head's weights seldom."""

CHUNK_LOGITS_ELSEWHERE = 2**28
"""512 MiB in bfloat16: an accelerator wants few large kernels."""


def pad_batch(
    documents: Sequence[npt.NDArray[np.int32]], device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and mask, int64 [batch, time]; a causal model's rows never see the pad."""
    longest = max(len(ids) for ids in documents)
    input_ids = torch.zeros(len(documents), longest, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(documents):
        input_ids[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        mask[row, : len(ids)] = 1
    return input_ids.to(device), mask.to(device)


@torch.no_grad()
def logit_pieces(
    model: Any,  # noqa: ANN401 - transformers is untyped
    input_ids: torch.Tensor,
    mask: torch.Tensor,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield `(start, logits)`: logits [batch, piece, vocab] of positions from `start`, in order.

    The logits are the model's own, whatever follows its output head (soft-capping, scaling),
    because the model's own `forward` makes them: its backbone is replaced, for the length of
    this call, by the result it has already computed. A model without `logits_to_keep` runs whole,
    in its own dtype, and is cut into pieces afterwards.

    Not in inference mode: weights that FSDP gathers for a pass are written again by later ones.
    """
    batch, time = input_ids.shape
    backbone = getattr(model, model.base_model_prefix, None)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    size = CHUNK_LOGITS.get(input_ids.device.type, CHUNK_LOGITS_ELSEWHERE)
    piece = max(1, size // (batch * output_width(model)))
    if backbone is None or backbone is model or not keeps:
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        for start in range(0, time, piece):
            yield start, logits[:, start : start + piece]
        return
    hidden = backbone(input_ids=input_ids, attention_mask=mask, use_cache=False)
    original = backbone.forward
    backbone.forward = lambda *_args, **_kwargs: hidden
    try:
        for start in range(0, time, piece):
            kept = torch.arange(start, min(start + piece, time), device=input_ids.device)
            output = model(
                input_ids=input_ids, attention_mask=mask, use_cache=False, logits_to_keep=kept
            )
            yield start, output.logits
    finally:
        backbone.forward = original


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator (or torch on the CPU) ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
