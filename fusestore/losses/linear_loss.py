"""The fusion objective over hidden states: output head and loss together, in chunks of tokens.

With a vocabulary of 262,144 the logits of 2,048 tokens take 2 GiB in float32, and so does their
gradient. The chunked loss holds both for one chunk of tokens at a time: it computes the chunk's
logits, replaces them by their gradient, and multiplies that by the head and by the hidden states
before the next chunk. The arithmetic is that of the unchunked loss, and nothing is computed twice;
only the gradients [N, H] and [V, H] are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.losses.forward_gradient import loss_with_gradients
from fusestore.losses.objective import (
    DEFAULT_LM_WEIGHT,
    DEFAULT_TAIL,
    FusionObjective,
    TailMode,
)
from fusestore.losses.row_losses import (
    FusionTerms,
    RowLosses,
    check_batch_shape,
    compute_dtype,
    row_chunks,
)

PRODUCT_LOGITS = {"cpu": 1 << 25}
"""Logits of one matrix product: 128 MiB in float32; smaller ones read the head's weights often."""

PRODUCT_LOGITS_ELSEWHERE = 1 << 28
"""1 GiB: accelerators are faster with few large products."""

_BLOCK_WEIGHTS = 1 << 22


class _Product(NamedTuple):
    """The dtype of the matrix products, and the cap c of c · tanh(logits / c)."""

    dtype: torch.dtype
    softcap: float | None


def linear_fusion_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: Mapping[str, Tensor],
    lm_weight: float = DEFAULT_LM_WEIGHT,
    temperature: float = 1.0,
    tail: TailMode = DEFAULT_TAIL,
    divergence: str = "cross_entropy",
    *,
    temperature_squared: bool = True,
    bias: Tensor | None = None,
    softcap: float | None = None,
    num_positions: Tensor | None = None,
) -> Tensor:
    """`fusion_loss(hidden @ weight.T + bias, batch, …)` without the logits.

    Args:
        hidden: as in `linear_fusion_terms`, and so are `weight`, `batch`, `bias` and `softcap`.
        weight: of the output head.
        batch: as in `fusestore.losses.logit_loss.fusion_terms`.
        lm_weight: λ, here and below as in `FusionObjective`.
        temperature: T.
        tail: `renormalize` or `ghost`.
        divergence: `cross_entropy`, `forward_kl`, `reverse_kl`, `jensen_shannon`, or a registered
            one.
        temperature_squared: whether the fused term is multiplied by T².
        bias: of the output head.
        softcap: of the logits.
        num_positions: as in `fusestore.losses.logit_loss.fusion_terms`.

    Raises:
        InvalidInputError: a setting outside its range.
        IncompatibleError: the tensors or the settings do not fit each other.
    """
    objective = FusionObjective(lm_weight, temperature, tail, divergence, temperature_squared)
    return linear_fusion_terms(
        hidden,
        weight,
        batch,
        objective,
        bias=bias,
        softcap=softcap,
        num_positions=num_positions,
    ).loss


def linear_fusion_terms(
    hidden: Tensor,
    weight: Tensor,
    batch: Mapping[str, Tensor],
    objective: FusionObjective | None = None,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    num_positions: Tensor | None = None,
) -> FusionTerms:
    """`fusion_terms(hidden @ weight.T + bias, batch, objective)` without the logits.

    Under autocast the products run in its dtype, like those of a linear layer; the gradient of
    the weights is added up in float32 over the chunks.

    Args:
        hidden: [B, L, H], the input of the output head.
        weight: [V, H] of the output head; may be tied to the embeddings.
        batch: as in `fusestore.losses.logit_loss.fusion_terms`.
        objective: by default `FusionObjective()`.
        bias: [V] of the output head.
        softcap: c; the logits are c · tanh(· / c), as in Gemma 2.
        num_positions: as in `fusestore.losses.logit_loss.fusion_terms`.

    Raises:
        InvalidInputError: `softcap` is not a positive number, or `num_positions` has another
            shape than [2].
        IncompatibleError: the tensors do not fit each other, or products would run in float16,
            in which their gradients underflow.
    """
    check_batch_shape(batch, hidden.shape, "Hidden states")
    if (
        weight.dim() != 2
        or weight.shape[1] != hidden.shape[2]
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        raise IncompatibleError(
            f"Hidden states of shape {tuple(hidden.shape)} do not fit a head of shape "
            f"{tuple(weight.shape)} and a bias of shape "
            f"{None if bias is None else tuple(bias.shape)}: expected [B, L, H], [V, H] and [V]."
        )
    if softcap is not None and not 0.0 < softcap < float("inf"):
        raise InvalidInputError(f"softcap is {softcap}; it must be a positive number or None.")
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    if dtype == torch.float16:
        raise IncompatibleError(
            "The head's products would run in float16, in which the gradients of a mean over many "
            "tokens underflow. Use bfloat16 or float32, or fusion_loss over the logits."
        )
    rows = RowLosses(
        batch, len(weight), objective or FusionObjective(), compute_dtype(dtype), num_positions
    )
    flat, product = hidden.reshape(-1, hidden.shape[-1]), _Product(dtype, softcap)

    def compute(needs_gradient: Sequence[bool]) -> tuple[FusionTerms, list[Tensor | None]]:
        gradients = _gradients(flat, weight, bias, rows, product, needs_gradient)
        return rows.terms(), gradients

    return loss_with_gradients(compute, flat, weight, bias)


def _gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: RowLosses,
    product: _Product,
    needs_gradient: Sequence[bool],
) -> list[Tensor | None]:
    """Add the losses of flat hidden states [N, H] to `rows`.

    Returns:
        The gradients of `hidden`, `weight` and `bias` where they are needed, those of the head in
        float32 (float64 for float64 products).
    """
    by_hidden, by_weight, by_bias = needs_gradient
    sums = compute_dtype(product.dtype)
    grad_hidden = torch.empty_like(hidden, dtype=product.dtype) if by_hidden else None
    grad_weight = torch.zeros_like(weight, dtype=sums) if by_weight else None
    grad_bias = torch.zeros_like(bias, dtype=sums) if by_bias and bias is not None else None
    with torch.autocast(hidden.device.type, enabled=False):
        head = weight.to(product.dtype)
        for chunk in _products(len(hidden), len(weight), hidden.device):
            inputs = hidden[chunk].to(product.dtype)
            logits = inputs @ head.T
            if bias is not None:
                logits += bias.to(product.dtype)
            gradient = _replace_by_gradient(logits.to(sums), rows, chunk.start, product.softcap)
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            gradient = gradient.to(product.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, head, out=grad_hidden[chunk])
            if grad_weight is not None:
                _add_product(grad_weight, gradient, inputs)
    return [grad_hidden, grad_weight, grad_bias]


def _products(num_rows: int, vocab_size: int, device: torch.device) -> list[slice]:
    size = PRODUCT_LOGITS.get(device.type, PRODUCT_LOGITS_ELSEWHERE)
    step = max(1, size // vocab_size)
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def _replace_by_gradient(
    logits: Tensor, rows: RowLosses, start: int, softcap: float | None
) -> Tensor:
    """Replace the logits of rows `start`… [n, V] by d loss / d logits."""
    for rows_of_chunk in row_chunks(logits):
        chunk = logits[rows_of_chunk]
        if softcap is None:
            rows.replace_by_gradient(chunk, start + rows_of_chunk.start)
        else:
            chunk.div_(softcap).tanh_()
            # d (c · tanh(x / c)) / dx
            slope = 1.0 - chunk.square()
            chunk.mul_(softcap)
            rows.replace_by_gradient(chunk, start + rows_of_chunk.start)
            chunk.mul_(slope)
    return logits


def _add_product(sums: Tensor, gradient: Tensor, inputs: Tensor) -> None:
    """Add gradient.T [V, n] @ inputs [n, H] to `sums` [V, H], in its dtype."""
    if sums.dtype == gradient.dtype:
        sums.addmm_(gradient.T, inputs)
        return
    step = max(1, _BLOCK_WEIGHTS // sums.shape[1])
    for start in range(0, len(sums), step):
        block = slice(start, start + step)
        sums[block] += gradient[:, block].T @ inputs
