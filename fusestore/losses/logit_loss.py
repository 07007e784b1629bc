"""The fusion objective over logits: λ · CE(next token) + (1 − λ) · D(P_fused, Q), FuseLLM eq. 5.

The fused target stays sparse. Value and gradient come from one pass over the logits, in chunks of
positions that fit the processor's cache. `fusestore.losses.linear_loss` is the same without logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

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


def fusion_loss(
    logits: Tensor,
    batch: Mapping[str, Tensor],
    lm_weight: float = DEFAULT_LM_WEIGHT,
    temperature: float = 1.0,
    tail: TailMode = DEFAULT_TAIL,
    divergence: str = "cross_entropy",
    *,
    temperature_squared: bool = True,
    num_positions: Tensor | None = None,
) -> Tensor:
    """The training loss of a batch.

    Args:
        logits: as in `fusion_terms`.
        batch: as in `fusion_terms`.
        lm_weight: λ, here and below as in `FusionObjective`.
        temperature: T.
        tail: `renormalize` or `ghost`.
        divergence: `cross_entropy`, `forward_kl`, `reverse_kl`, `jensen_shannon`, or a registered
            one.
        temperature_squared: whether the fused term is multiplied by T².
        num_positions: as in `fusion_terms`.

    Raises:
        InvalidInputError: a setting outside its range.
        IncompatibleError: the batch does not fit the logits or the settings.
    """
    objective = FusionObjective(lm_weight, temperature, tail, divergence, temperature_squared)
    return fusion_terms(logits, batch, objective, num_positions=num_positions).loss


def fusion_terms(
    logits: Tensor,
    batch: Mapping[str, Tensor],
    objective: FusionObjective | None = None,
    *,
    num_positions: Tensor | None = None,
) -> FusionTerms:
    """The training loss of a batch and its two parts.

    The first term is averaged over the positions with a label, the fused term over positions with
    a label and a fused distribution; a term without positions is 0. So a position with label −100
    is not trained on: set −100 to mask the prompts of instructions.

    Args:
        logits: [B, L, V] floating; row i is scored against the token after token i.
        batch: from `fusestore.data.collate`: `next_ids` int64 [B, L] (−100: no label) and, unless
            λ is 1, `fused_ids` int64 [B, L, k] without duplicates among its used entries,
            `fused_logprobs` float32 [B, L, k] (−inf: unused), `fused_tail` float32 [B, L] (used
            by `ghost`), `fused_mask` bool [B, L]; optionally `fused_sampled` bool [B], whether the
            rows of a window are samples. All on the logits' device.
        objective: by default `FusionObjective()`.
        num_positions: [2], the positions that the means of both terms are taken over, from
            `count_positions`, where the batch is a part of an optimizer step; None: those of the
            batch.

    Raises:
        IncompatibleError: the batch does not fit the logits, or has samples where the objective
            would be biased.
        InvalidInputError: `num_positions` has another shape.
    """
    check_batch_shape(batch, logits.shape, "Logits")
    rows = RowLosses(
        batch,
        logits.shape[-1],
        objective or FusionObjective(),
        compute_dtype(logits.dtype),
        num_positions,
    )
    flat = logits.reshape(-1, logits.shape[-1])

    def compute(needs_gradient: Sequence[bool]) -> tuple[FusionTerms, list[Tensor | None]]:
        gradient = _gradient_of_logits(flat, rows, needs_gradient[0])
        return rows.terms(), [gradient]

    return loss_with_gradients(compute, flat)


def _gradient_of_logits(logits: Tensor, rows: RowLosses, needs_gradient: bool) -> Tensor | None:
    """Add the losses of flat logits [N, V] to `rows`; their gradient, where it is needed."""
    dtype = compute_dtype(logits.dtype)
    # In float16 a mean's gradient would underflow before any loss scaling reaches it.
    kept_dtype = dtype if logits.dtype == torch.float16 else logits.dtype
    gradient = torch.empty_like(logits, dtype=kept_dtype) if needs_gradient else None
    for rows_of_chunk in row_chunks(logits):
        chunk = logits[rows_of_chunk].to(dtype, copy=True)
        rows.replace_by_gradient(chunk, rows_of_chunk.start)
        if gradient is not None:
            gradient[rows_of_chunk] = chunk
    return gradient
