"""Runs a causal model over documents and yields its logits in chunks.

The backbone runs once over the whole batch. The output head, which has by far the largest result,
runs on short chunks of the sequence. So no `[batch, time, vocab]` tensor is ever built.
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
"""Logits per chunk, about: 64 MiB in float32, so that the head's weights are read seldom."""

CHUNK_LOGITS_ELSEWHERE = 2**28
"""512 MiB in bfloat16: an accelerator wants few large kernels."""


def pad_batch(
    documents: Sequence[npt.NDArray[np.int32]], device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and mask, int64 [batch, time]; a causal model's rows ignore the padding."""
    longest = max(len(ids) for ids in documents)
    input_ids = torch.zeros(len(documents), longest, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(documents):
        input_ids[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        mask[row, : len(ids)] = 1
    return input_ids.to(device), mask.to(device)


@torch.no_grad()
def logit_chunks(
    model: Any,  # noqa: ANN401 - transformers is untyped
    input_ids: torch.Tensor,
    mask: torch.Tensor,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield `(start, logits)`: logits [batch, chunk, vocab] of positions from `start`, in order.

    The model's own `forward` computes the logits, so that soft-capping or scaling after the output
    head is included. During this call, its backbone is replaced by the result that the backbone has
    already computed. A model without `logits_to_keep` runs whole, in its own dtype, and its logits
    are split into chunks afterwards.

    Not in inference mode: later passes write again to weights that FSDP gathers for a pass.
    """
    batch, time = input_ids.shape
    backbone = getattr(model, model.base_model_prefix, None)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    size = CHUNK_LOGITS.get(input_ids.device.type, CHUNK_LOGITS_ELSEWHERE)
    chunk = max(1, size // (batch * output_width(model)))
    if backbone is None or backbone is model or not keeps:
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        for start in range(0, time, chunk):
            yield start, logits[:, start : start + chunk]
        return
    hidden = backbone(input_ids=input_ids, attention_mask=mask, use_cache=False)
    original = backbone.forward
    backbone.forward = lambda *_args, **_kwargs: hidden
    try:
        for start in range(0, time, chunk):
            kept = torch.arange(start, min(start + chunk, time), device=input_ids.device)
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
