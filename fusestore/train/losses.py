"""The fusion objective: λ · CE(next token) + (1 − λ) · H(P_fused, Q), FuseLLM eq. 5.

The fused target stays sparse: nothing of the vocabulary's width is ever built for it. Value and
gradient come from one pass over the logits, in pieces of positions that fit the processor's
cache, computed in float32 (float64 for float64 logits) whatever the logits' type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fusestore.errors import IncompatibleError, InvalidInputError

TailMode = Literal["renormalize", "ghost"]

IGNORED_LABEL = -100
"""In `next_ids`: there is no next token here (end of a document, padding)."""

_PIECE_ELEMENTS = 1 << 20
"""Logits handled at a time: 4 MiB in float32."""


class _HardTarget(NamedTuple):
    """Labels int64 [N] (any id where there is none) and the weight [N] of each one's gradient."""

    labels: Tensor
    scale: Tensor


class FusionTerms(NamedTuple):
    """The loss (differentiable) and its two parts (not), all scalars in nats."""

    loss: Tensor
    lm: Tensor
    fused: Tensor


class SparseTarget(NamedTuple):
    """A distribution per position over its own k token ids and, with a ghost, one outcome more.

    Attributes:
        ids: int64 [N, k]; unused entries repeat a used id of their row.
        probs: [N, k]; 0 in unused entries.
        used: bool [N, k].
        ghost: [N] mass outside the ids; None when the kept entries alone sum to 1.
        mask: bool [N] positions that have a target.
    """

    ids: Tensor
    probs: Tensor
    used: Tensor
    ghost: Tensor | None
    mask: Tensor


def fusion_loss(
    logits: Tensor,
    batch: Mapping[str, Tensor],
    lm_weight: float = 0.9,
    temperature: float = 1.0,
    tail: TailMode = "renormalize",
) -> Tensor:
    """The training loss of a batch; see `fusion_terms`."""
    return fusion_terms(logits, batch, lm_weight, temperature, tail).loss


def fusion_terms(
    logits: Tensor,
    batch: Mapping[str, Tensor],
    lm_weight: float = 0.9,
    temperature: float = 1.0,
    tail: TailMode = "renormalize",
) -> FusionTerms:
    """λ · CE(next_ids) + (1 − λ) · T² · H(P^(1/T), softmax(logits / T)).

    CE is averaged over the positions with a label, the fused term over those of `fused_mask`
    that keep at least one entry; a term without positions is 0. P^(1/T) is renormalised over the
    kept entries (`tail="renormalize"`) or over them and one outcome that stands for everything
    else, held against the student's mass outside the kept ids (`tail="ghost"`; where a row keeps
    the whole vocabulary there is nothing else, and it is treated as `renormalize`).

    Args:
        logits: [B, L, V] floating; row i is scored against the token after token i.
        batch: from `fusestore.data.collate`: `next_ids` int64 [B, L] (−100: no label) and, unless
            `lm_weight` is 1, `fused_ids` int64 [B, L, k] without duplicates among its used
            entries, `fused_logprobs` float32 [B, L, k] (−inf: unused), `fused_tail` float32
            [B, L], `fused_mask` bool [B, L].
        lm_weight: λ in [0, 1].
        temperature: T > 0.
        tail: what to do with the mass that the sparse rows do not keep.

    Raises:
        InvalidInputError: a setting outside its range.
        IncompatibleError: the batch does not fit the logits.
    """
    if not 0.0 <= lm_weight <= 1.0:
        raise InvalidInputError(f"lm_weight is {lm_weight}; it must lie between 0 and 1.")
    if not (temperature > 0.0 and temperature < float("inf")):
        raise InvalidInputError(f"temperature is {temperature}; it must be a positive number.")
    if tail not in ("renormalize", "ghost"):
        raise InvalidInputError(f"tail is {tail!r}; it must be 'renormalize' or 'ghost'.")
    if logits.dim() != 3 or batch["next_ids"].shape != logits.shape[:2]:
        raise IncompatibleError(
            f"Logits of shape {tuple(logits.shape)} do not fit next_ids of shape "
            f"{tuple(batch['next_ids'].shape)}: expected [B, L, V] and [B, L]."
        )
    flat = logits.reshape(-1, logits.shape[-1])
    labels = batch["next_ids"].reshape(-1)
    target = None
    if lm_weight < 1.0:
        target = _sparse_target(flat, batch, temperature, tail)
    loss, lm, fused = _FusionLoss.apply(  # type: ignore[no-untyped-call]
        flat, labels, target, lm_weight, temperature
    )
    return FusionTerms(loss, lm, fused)


def _sparse_target(
    flat: Tensor, batch: Mapping[str, Tensor], temperature: float, tail: TailMode
) -> SparseTarget:
    """P^(1/T) of every position, normalised; [N, k]."""
    ids = batch["fused_ids"].reshape(flat.shape[0], -1)
    dtype = _compute_dtype(flat)
    logprobs = batch["fused_logprobs"].reshape(ids.shape).to(dtype)
    # NaN counts as used, so that a damaged distribution shows in the loss.
    used = logprobs != -torch.inf
    mask = batch["fused_mask"].reshape(-1) & used.any(-1)
    used = used & mask[:, None]
    scaled = torch.where(used, logprobs / temperature, -torch.inf)
    outside = None
    if tail == "ghost":
        outside = batch["fused_tail"].reshape(-1).to(dtype) / temperature
        whole = used.sum(-1) >= flat.shape[-1]
        outside = torch.where(mask & ~whole, outside, -torch.inf)
        total = torch.logaddexp(torch.logsumexp(scaled, -1), outside)
    else:
        total = torch.logsumexp(scaled, -1)
    total = torch.where(mask, total, 0.0)
    # An unused entry takes the place of its row's first used one, with no mass: so it can be
    # gathered and scattered like any other and changes nothing.
    first = ids.gather(-1, used.to(torch.int8).argmax(-1, keepdim=True))
    ids = torch.where(used, ids, torch.where(mask[:, None], first, 0))
    return SparseTarget(
        ids,
        (scaled - total[:, None]).exp(),
        used,
        None if outside is None else (outside - total).exp(),
        mask,
    )


class _FusionLoss(torch.autograd.Function):
    """Loss and gradient over flat logits [N, V]; the gradient is ready after the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context has no public type
        logits: Tensor,
        labels: Tensor,
        target: SparseTarget | None,
        lm_weight: float,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _compute_dtype(logits)
        num_rows, vocab_size = logits.shape
        labelled = labels != IGNORED_LABEL
        lm_rows = labelled.sum().clamp(min=1).to(dtype)
        lm_scale = labelled.to(dtype) * (lm_weight / lm_rows)
        fused_mask = torch.zeros_like(labelled) if target is None else target.mask
        fused_rows = fused_mask.sum().clamp(min=1).to(dtype)
        fused_scale = fused_mask.to(dtype) * ((1 - lm_weight) / fused_rows)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        lm = torch.zeros((), dtype=dtype, device=logits.device)
        fused = torch.zeros((), dtype=dtype, device=logits.device)
        rows_per_piece = max(1, _PIECE_ELEMENTS // vocab_size)
        for start in range(0, num_rows, rows_per_piece):
            rows = slice(start, start + rows_per_piece)
            piece = logits[rows].to(dtype, copy=True)
            hard = _HardTarget(labels[rows].clamp(min=0), lm_scale[rows])
            if target is None:
                lm_nll = _lm_only(piece, hard)
            elif temperature == 1.0:
                soft = _take(target, rows)
                lm_nll, fused_nll = _both(piece, hard, soft, fused_scale[rows])
                fused += torch.where(soft.mask, fused_nll, 0.0).sum()
            else:
                # T² of the loss times the 1/T of d(logits / T) leaves a factor T.
                soft = _take(target, rows)
                tempered = piece / temperature
                nothing = _HardTarget(hard.labels, torch.zeros_like(hard.scale))
                _, fused_nll = _both(tempered, nothing, soft, fused_scale[rows] * temperature)
                fused += torch.where(soft.mask, fused_nll, 0.0).sum()
                lm_nll = _lm_only(piece, hard)
                piece += tempered
            lm += torch.where(labelled[rows], lm_nll, 0.0).sum()
            if gradient is not None:
                gradient[rows] = piece
        lm /= lm_rows
        fused *= temperature**2 / fused_rows
        ctx.gradient = gradient
        ctx.mark_non_differentiable(lm, fused)
        # A term of weight 0 stays out even where it is infinite.
        loss = torch.zeros_like(lm)
        loss = loss + lm_weight * lm if lm_weight > 0.0 else loss
        loss = loss + (1 - lm_weight) * fused if lm_weight < 1.0 else loss
        return loss, lm, fused

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_loss: Tensor,
        _grad_lm: Tensor,
        _grad_fused: Tensor,
    ) -> tuple[Tensor, None, None, None, None]:
        gradient: Tensor = ctx.gradient
        scaled = gradient if bool(grad_loss == 1) else gradient * grad_loss.to(gradient.dtype)
        return scaled, None, None, None, None


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _take(target: SparseTarget, rows: slice) -> SparseTarget:
    return SparseTarget(
        target.ids[rows],
        target.probs[rows],
        target.used[rows],
        None if target.ghost is None else target.ghost[rows],
        target.mask[rows],
    )


def _lm_only(logits: Tensor, hard: _HardTarget) -> Tensor:
    """−log softmax(logits)[label] per row [N]; turns `logits` into the scaled gradient."""
    labels = hard.labels[:, None]
    at_label = logits.gather(-1, labels)[:, 0]
    lse, total = _exponentiate(logits)
    _scale_rows(logits, hard.scale, total)
    logits.scatter_add_(-1, labels, -hard.scale[:, None])
    return lse - at_label


def _both(
    logits: Tensor, hard: _HardTarget, soft: SparseTarget, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """CE of the labels and H(P, softmax(logits)) per row, each [N].

    Turns `logits` into `hard.scale` · d(CE) + `scale` · d(H).
    """
    labels = hard.labels[:, None]
    at_label = logits.gather(-1, labels)[:, 0]
    at_ids = logits.gather(-1, soft.ids)
    if soft.ghost is None:
        lse, total = _exponentiate(logits)
        _scale_rows(logits, hard.scale + scale, total)
        fused_nll = lse * soft.mask - (soft.probs * at_ids).sum(-1)
        at_kept = -scale[:, None] * soft.probs
    else:
        # The mass outside the kept ids is summed by itself: 1 − Σ kept would be lost to rounding
        # for a peaked student. e = p / (mass outside) stays ≤ 1, so nothing can overflow.
        logits.scatter_(-1, soft.ids, _minus_infinity_where(soft, logits))
        lse_rest, total = _exponentiate(logits)
        lse_kept = torch.logsumexp(torch.where(soft.used, at_ids, -torch.inf), -1)
        lse = torch.logaddexp(lse_rest, lse_kept)
        q_rest = (lse_rest - lse).exp()
        _scale_rows(logits, hard.scale * q_rest + scale * (q_rest - soft.ghost), total)
        q_kept = (at_ids - lse[:, None]).exp() * soft.used
        nll_kept = (soft.probs * (lse[:, None] - at_ids)).sum(-1)
        nll_rest = torch.where(soft.ghost > 0, soft.ghost * (lse - lse_rest), 0.0)
        fused_nll = nll_kept + nll_rest
        at_kept = hard.scale[:, None] * q_kept + scale[:, None] * (q_kept - soft.probs)
    logits.scatter_add_(-1, soft.ids, at_kept)
    logits.scatter_add_(-1, labels, -hard.scale[:, None])
    return lse - at_label, fused_nll


def _exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace rows by exp(row − max); returns their logsumexp [N] and the sums [N].

    A row of −inf alone becomes zeros with logsumexp −inf and sum 1.
    """
    peak = logits.amax(-1)
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    logits.sub_(peak[:, None]).exp_()
    total = logits.sum(-1)
    return peak + total.log(), torch.where(total == 0, 1.0, total)


def _scale_rows(exponentials: Tensor, scale: Tensor, total: Tensor) -> None:
    """Multiply each row by scale / total, in place."""
    exponentials.mul_((scale / total)[:, None])


def _minus_infinity_where(soft: SparseTarget, logits: Tensor) -> Tensor:
    """What to put at the ids: −inf in rows with a target, the logits as they are elsewhere."""
    return torch.where(soft.mask[:, None], -torch.inf, logits.gather(-1, soft.ids))
