"""The loss of a few rows of logits, and its gradient in their place.

All forms of the loss (`logit_loss`, `linear_loss`) use `RowLosses`, chunk by chunk, in float32
(float64 for float64 logits). A chunk is read and overwritten while it is in the processor's cache;
the target never becomes a dense row of the vocabulary's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fusestore.cache.rows import NO_LABEL
from fusestore.errors import IncompatibleError
from fusestore.losses.divergence_registry import get_divergence
from fusestore.losses.objective import FusionObjective
from fusestore.losses.positions import check_num_positions
from fusestore.losses.sparse_target import SparseTarget, check_ids, sparse_target

CHUNK_LOGITS = {"cpu": 1 << 20}
"""Logits handled at a time: 4 MiB in float32."""

CHUNK_LOGITS_ELSEWHERE = 1 << 26
"""256 MiB: accelerators are faster with few large kernels."""


class FusionTerms(NamedTuple):
    """The loss (differentiable) and its two parts (not), all scalars in nats."""

    loss: Tensor
    lm: Tensor
    fused: Tensor


class RowLosses:
    """Adds up both terms over chunks of N rows of logits and turns each chunk into a gradient."""

    def __init__(
        self,
        batch: Mapping[str, Tensor],
        vocab_size: int,
        objective: FusionObjective,
        dtype: torch.dtype,
        num_positions: Tensor | None,
    ) -> None:
        """Read labels and targets of a batch; see `fusestore.losses.logit_loss.fusion_terms`.

        Raises:
            IncompatibleError: the batch does not fit V = `vocab_size` or the objective.
            InvalidInputError: `num_positions` is not of shape [2].
        """
        labels = batch["next_ids"].reshape(-1)
        labeled = labels != NO_LABEL
        self._objective = objective
        self._labeled = labeled
        self._labels = torch.where(labeled, labels, 0)
        check_ids(self._labels, vocab_size, "next_ids")
        self._target: SparseTarget | None = None
        if objective.lm_weight < 1.0:
            self._target = sparse_target(batch, labeled, vocab_size, objective, dtype)
        distilled = torch.zeros_like(labeled) if self._target is None else self._target.mask
        if num_positions is None:
            num_positions = torch.stack([labeled.sum(), distilled.sum()])
        check_num_positions(num_positions)
        # A term without positions is 0.
        lm_count, fused_count = torch.where(num_positions > 0, num_positions, 1).to(dtype)
        self._lm_share = labeled.to(dtype) / lm_count.to(labels.device)
        self._fused_share = distilled.to(dtype) / fused_count.to(labels.device)
        self._fused_share *= objective.fused_factor
        self._lm = torch.zeros((), dtype=dtype, device=labels.device)
        self._fused = torch.zeros_like(self._lm)

    def replace_by_gradient(self, logits: Tensor, start: int) -> None:
        """Add the losses of rows `start`… [n, V] and turn their logits into d loss / d logits.

        Must be called once for every row; `logits` have the dtype to compute in.
        """
        rows = slice(start, start + len(logits))
        objective = self._objective
        lm_share = self._lm_share[rows]
        lm_scale = objective.lm_weight * lm_share
        labels = self._labels[rows]
        if self._target is None:
            nll = _label_loss(logits, labels, lm_scale)
        else:
            target, share = self._target.rows(rows), self._fused_share[rows]
            scale = (1.0 - objective.lm_weight) * share
            if self._needs_tempered_logits:
                tempered = logits / objective.temperature
                value, _ = _both_losses(
                    tempered,
                    labels,
                    torch.zeros_like(lm_scale),
                    target,
                    scale / objective.temperature,
                    objective,
                    1.0,
                )
                nll = _label_loss(logits, labels, lm_scale)
                logits += tempered
            else:
                value, nll = _both_losses(
                    logits, labels, lm_scale, target, scale, objective, objective.temperature
                )
            self._fused += torch.where(target.mask, value * share, 0.0).sum()
        self._lm += torch.where(self._labeled[rows], nll * lm_share, 0.0).sum()

    @property
    def _needs_tempered_logits(self) -> bool:
        """Whether the fused term needs softmax(logits / T) over the whole vocabulary.

        The other forms need only the kept entries, and the mass of all others at T = 1.
        """
        objective = self._objective
        return (
            objective.temperature != 1.0
            and objective.tail == "renormalize"
            and objective.divergence != "reverse_kl"
        )

    def terms(self) -> FusionTerms:
        """The loss and its two parts, scalars in nats, after all rows."""
        lm_weight = self._objective.lm_weight
        loss = torch.zeros_like(self._lm)
        # A term with weight 0 is left out, because it may be infinite.
        if lm_weight > 0.0:
            loss = loss + lm_weight * self._lm
        if lm_weight < 1.0:
            loss = loss + (1.0 - lm_weight) * self._fused
        return FusionTerms(loss, self._lm, self._fused)


def compute_dtype(logits_dtype: torch.dtype) -> torch.dtype:
    """The dtype for computing the loss of logits of a dtype."""
    return torch.float64 if logits_dtype == torch.float64 else torch.float32


def row_chunks(logits: Tensor) -> Iterator[slice]:
    """Slices that cut logits [N, V] into chunks of rows for `RowLosses`."""
    num_rows, vocab_size = logits.shape
    step = max(1, CHUNK_LOGITS.get(logits.device.type, CHUNK_LOGITS_ELSEWHERE) // vocab_size)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def check_batch_shape(batch: Mapping[str, Tensor], shape: torch.Size, name: str) -> None:
    """Check that `next_ids` [B, L] fits a tensor of shape [B, L, …].

    Raises:
        IncompatibleError: it does not.
    """
    if len(shape) != 3 or batch["next_ids"].shape != shape[:2]:
        raise IncompatibleError(
            f"{name} of shape {tuple(shape)} do not fit next_ids of shape "
            f"{tuple(batch['next_ids'].shape)}: expected [B, L, …] and [B, L]."
        )


def _label_loss(logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """−log softmax(logits)[label] per row [n]; `logits` become `scale` times its gradient."""
    at_label = logits.gather(-1, labels[:, None])[:, 0]
    lse, total = _exponentiate(logits)
    logits.mul_((scale / total)[:, None])
    logits.scatter_add_(-1, labels[:, None], -scale[:, None])
    return lse - at_label


def _both_losses(
    logits: Tensor,
    labels: Tensor,
    lm_scale: Tensor,
    target: SparseTarget,
    scale: Tensor,
    objective: FusionObjective,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """The divergence and −log softmax(logits)[label], each [n].

    `logits` become `lm_scale` · d(label loss) + `scale` · d(divergence).

    The student's outcomes are the kept ids, and one outcome for all other ids with the logsumexp of
    their logits as its logit. It is summed directly, because 1 − Σ kept would round to 0 for a
    peaked student. The outcomes have the exact masses of softmax(logits), and are tempered.
    """
    at_label = logits.gather(-1, labels[:, None])[:, 0]
    at_ids = logits.gather(-1, target.ids)
    # Rows without a target keep their logits; their ids are arbitrary.
    logits.scatter_(-1, target.ids, torch.where(target.mask[:, None], -torch.inf, at_ids))
    rest, total = _exponentiate(logits)
    kept = torch.where(target.used, at_ids, -torch.inf)
    outcomes = torch.cat([kept, rest[:, None]], -1)
    lse = torch.logsumexp(outcomes, -1)
    divergence = get_divergence(objective.divergence)
    value, gradient = divergence(target.logprobs, outcomes / temperature)
    gradient = torch.where(target.mask[:, None], gradient * (scale / temperature)[:, None], 0.0)
    gradient += lm_scale[:, None] * (outcomes - lse[:, None]).exp()
    # The other tokens divide their outcome's gradient by their shares of its mass, e / total.
    logits.mul_((gradient[:, -1] / total)[:, None])
    logits.scatter_add_(-1, target.ids, gradient[:, :-1])
    logits.scatter_add_(-1, labels[:, None], -lm_scale[:, None])
    return value, lse - at_label


def _exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace rows by exp(row − max); returns their logsumexp [n] and the sums [n].

    A row with only −inf becomes zeros, with logsumexp −inf and sum 1.
    """
    peak = logits.amax(-1)
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    logits.sub_(peak[:, None]).exp_()
    total = logits.sum(-1)
    return peak + total.log(), torch.where(total == 0, 1.0, total)
