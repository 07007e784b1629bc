"""The fusion objective over logits: λ · CE(next token) + (1 − λ) · D(P_fused, Q), FuseLLM eq. 5.

The fused target stays sparse. Value and gradient come from one pass over the logits, in pieces of
positions that fit the processor's cache. `fusestore.losses.linear_loss` is the same without logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusestore.losses.objective import Divergence, FusionObjective, TailMode
from fusestore.losses.row_losses import RowLosses, check_batch_shape, compute_dtype, pieces


class FusionTerms(NamedTuple):
    """The loss (differentiable) and its two parts (not), all scalars in nats."""

    loss: Tensor
    lm: Tensor
    fused: Tensor


def fusion_loss(
    logits: Tensor,
    batch: Mapping[str, Tensor],
    lm_weight: float = 0.9,
    temperature: float = 1.0,
    tail: TailMode = "renormalize",
    divergence: Divergence = "cross_entropy",
    *,
    temperature_squared: bool = True,
) -> Tensor:
    """The training loss of a batch.

    Args:
        logits: as in `fusion_terms`.
        batch: as in `fusion_terms`.
        lm_weight: λ, here and below as in `FusionObjective`.
        temperature: T.
        tail: `renormalize` or `ghost`.
        divergence: `cross_entropy`, `forward_kl`, `reverse_kl` or `jensen_shannon`.
        temperature_squared: whether the fused term is multiplied by T².

    Raises:
        InvalidInputError: a setting outside its range.
        IncompatibleError: the batch does not fit the logits or the settings.
    """
    objective = FusionObjective(lm_weight, temperature, tail, divergence, temperature_squared)
    return fusion_terms(logits, batch, objective).loss


def fusion_terms(
    logits: Tensor, batch: Mapping[str, Tensor], objective: FusionObjective | None = None
) -> FusionTerms:
    """The training loss of a batch and its two parts.

    The first term is averaged over the positions with a label, the fused one over those that
    have a label and a fused distribution; a term without positions is 0. So a position whose
    label is −100 is not trained on at all: that is how to mask the prompts of instructions.

    Args:
        logits: [B, L, V] floating; row i is scored against the token after token i.
        batch: from `fusestore.data.collate`: `next_ids` int64 [B, L] (−100: no label) and, unless
            λ is 1, `fused_ids` int64 [B, L, k] without duplicates among its used entries,
            `fused_logprobs` float32 [B, L, k] (−inf: unused), `fused_tail` float32 [B, L] (used
            by `ghost`), `fused_mask` bool [B, L]; `fused_sampled` bool [B], if there, says which
            windows' rows are samples. All on the logits' device.
        objective: the default one unless given.

    Raises:
        IncompatibleError: the batch does not fit the logits, or has samples where the objective
            would be biased.
    """
    check_batch_shape(batch, logits.shape, "Logits")
    rows = RowLosses(
        batch, logits.shape[-1], objective or FusionObjective(), compute_dtype(logits.dtype)
    )
    loss, lm, fused = _FusionLoss.apply(  # type: ignore[no-untyped-call]
        logits.reshape(-1, logits.shape[-1]), rows
    )
    return FusionTerms(loss, lm, fused)


class _FusionLoss(torch.autograd.Function):
    """Loss and gradient over flat logits [N, V]; the gradient is ready after the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context has no public type
        logits: Tensor,
        rows: RowLosses,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = compute_dtype(logits.dtype)
        # In float16 a mean's gradient would underflow before any loss scaling reaches it.
        kept_dtype = dtype if logits.dtype == torch.float16 else logits.dtype
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(logits, dtype=kept_dtype)
        for here in pieces(logits):
            piece = logits[here].to(dtype, copy=True)
            rows.replace_by_gradient(piece, here.start)
            if gradient is not None:
                gradient[here] = piece
        ctx.dtype = logits.dtype
        # Saved this way autograd lets go of it as soon as it is used.
        ctx.save_for_backward(gradient)
        loss, lm, fused = rows.terms()
        ctx.mark_non_differentiable(lm, fused)
        return loss, lm, fused

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_loss: Tensor,
        _grad_lm: Tensor,
        _grad_fused: Tensor,
    ) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return scaled(gradient, grad_loss, ctx.dtype), None


def scaled(gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """The product in `dtype`, without a copy where that changes nothing."""
    if not bool(grad_loss == 1):
        gradient = gradient * grad_loss.to(gradient.dtype)
    return gradient.to(dtype)
