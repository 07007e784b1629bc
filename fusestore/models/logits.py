"""Runs a causal model over documents and yields its logits in chunks.

The backbone runs once over the whole batch. The output head, which has by far the largest result,
runs on short chunks of the sequence. So no `[batch, time, vocab]` tensor is ever built.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from fusestore.models.backbone import backbone_among, called_modules, part_at, run_once
from fusestore.models.loading import output_width
from fusestore.models.rounding import distance, rounding_share

CHUNK_LOGITS = {"cpu": 2**24}
"""Logits per chunk, about: 64 MiB in float32, so that the head's weights are read seldom."""

CHUNK_LOGITS_ELSEWHERE = 2**28
"""512 MiB in bfloat16: an accelerator wants few large kernels."""

_PROBE = (2, 4)
"""Documents and tokens of the pass that finds a model's backbone."""

_backbones: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()


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
def whole_logits(
    model: Any,  # noqa: ANN401 - transformers is untyped
    input_ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits [batch, time, vocab] of one pass of the model."""
    inputs = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    known = inspect.signature(model.forward).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        inputs = {name: value for name, value in inputs.items() if name in known}
    logits = model(**inputs).logits
    # Where each process has a part of the vocabulary, the parts are gathered.
    whole: torch.Tensor = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
    return whole


@torch.no_grad()
def logit_chunks(
    model: Any,  # noqa: ANN401
    input_ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield `(start, logits)`: logits [batch, chunk, vocab] of positions from `start`, in order.

    With `slots`, int64 [n], indices into the `batch · time` positions: logits [1, chunk, vocab] of
    `slots` from `start`. The output head runs on these positions alone.

    The model's own `forward` computes the logits, so that soft-capping or scaling after the output
    head is included. It is called once per chunk; its backbone runs at the first call, and every
    call continues with the hidden states of a chunk. A model whose logits cannot be made so runs
    whole, and its logits are split into chunks afterwards: see `has_chunked_logits`.

    A causal model needs no mask for padding on the right, and attention is faster without one.
    Packed rows need `position_ids`, see `batch_layout`.

    Not in inference mode: later passes write again to weights that FSDP gathers for a pass.
    """
    batch, time = input_ids.shape
    size = CHUNK_LOGITS.get(input_ids.device.type, CHUNK_LOGITS_ELSEWHERE)
    rows, count = (batch, time) if slots is None else (1, len(slots))
    chunk = max(1, size // (rows * output_width(model)))
    parts = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    positions = parts if slots is None else [slots[part] for part in parts]
    backbone = _backbone(model, input_ids)
    chunks: Iterator[torch.Tensor]
    if backbone is None:
        whole = whole_logits(model, input_ids, mask, position_ids)
        chunks = (part_at(whole, each) for each in positions)
    else:
        chunks = _in_chunks(model, backbone, positions, input_ids, mask, position_ids)
    for part, logits in zip(parts, chunks, strict=True):
        yield part.start, logits


def has_chunked_logits(model: Any, input_ids: torch.Tensor) -> bool:  # noqa: ANN401
    """Whether the model's logits can be made in chunks; found out by running it, once per model.

    Args:
        model: a causal language model.
        input_ids: int64 [batch, time]: ids to run it on.
    """
    return _backbone(model, input_ids) is not None


def _backbone(model: Any, input_ids: torch.Tensor) -> str | None:  # noqa: ANN401
    """The name of the model's backbone, if its logits can be made in chunks by `_in_chunks`."""
    if model not in _backbones:
        batch, time = _PROBE
        indices = torch.arange(batch * time, device=input_ids.device) % input_ids.numel()
        ids = input_ids.flatten()[indices].view(batch, time)
        with called_modules(model) as calls:
            whole = whole_logits(model, ids)
        name = backbone_among(model, calls)
        if name is not None and not _chunks_equal(model, name, ids, whole):
            name = None
        _backbones[model] = name
    return _backbones[model]


def _chunks_equal(
    model: Any,  # noqa: ANN401
    backbone: str,
    input_ids: torch.Tensor,
    whole: torch.Tensor,
) -> bool:
    half = input_ids.shape[1] // 2
    slots = torch.arange(0, input_ids.numel(), 3)
    wanted: list[slice | torch.Tensor] = [slice(0, half), slice(half, None), slots]
    try:
        first, second, picked = _in_chunks(model, backbone, wanted, input_ids)
    except Exception:
        # The code of a model may raise anything when it is given a part of its hidden states.
        return False
    pairs = ((whole, torch.cat([first, second], 1)), (part_at(whole, slots), picked))
    return all(
        logits.shape == expected.shape
        and distance(expected, logits).share <= rounding_share(model, whole)
        for expected, logits in pairs
    )


def _in_chunks(
    model: Any,  # noqa: ANN401
    backbone: str,
    wanted: Sequence[slice | torch.Tensor],
    input_ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """The logits at each of the wanted positions, as `run_once` takes them."""
    with run_once(model.get_submodule(backbone)) as positions:
        for each in wanted:
            positions[0] = each
            yield whole_logits(model, input_ids, mask, position_ids)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator (or torch on the CPU) ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
