"""How far a student's distribution is from a target's, and which way it has to move.

Pure functions over the outcomes of a position, given as log-probabilities. −inf in the target says
that there is no such outcome, or that it has no mass. The student's are logits: any row of them,
shifted by any constant. Formulas: docs/losses.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fusestore.losses.objective import Divergence


def divergence(kind: Divergence, target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Value [N] and its gradient by the student's logits [N, m], for N rows of m outcomes.

    Args:
        kind: which one.
        target: log P [N, m]; Σ P = 1 in every row.
        student: logits [N, m] of the same dtype; −inf where there is no outcome.

    Returns:
        Nats, and their derivative by `student`. Rows whose target is −inf throughout have
        neither; what stands there means nothing and may be NaN.
    """
    return _DIVERGENCES[kind](target, student)


def _cross_entropy(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    logq = torch.log_softmax(student, -1)
    p = target.exp()
    return -_weighted(p, logq).sum(-1), logq.exp() - p


def _forward_kl(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    logq = torch.log_softmax(student, -1)
    p = target.exp()
    return _weighted(p, target - logq).sum(-1), logq.exp() - p


def _reverse_kl(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    # Infinite wherever P has no mass: so Q is the student's given that the outcome is one of P's.
    logq = torch.log_softmax(student.masked_fill(target == -torch.inf, -torch.inf), -1)
    q = logq.exp()
    ratio = logq - target
    value = _weighted(q, ratio).sum(-1)
    return value, _weighted(q, ratio - value[:, None])


def _jensen_shannon(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    logq = torch.log_softmax(student, -1)
    p, q = target.exp(), logq.exp()
    log_mean = torch.logaddexp(target, logq) - math.log(2)
    ratio = logq - log_mean
    from_q = _weighted(q, ratio).sum(-1)
    value = (_weighted(p, target - log_mean).sum(-1) + from_q) / 2
    return value, _weighted(q, ratio - from_q[:, None]) / 2


def _weighted(probs: Tensor, values: Tensor) -> Tensor:
    """The products, 0 where the probability is 0 whatever the value."""
    return torch.where(probs == 0, 0.0, probs * values)


_DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "cross_entropy": _cross_entropy,
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jensen_shannon": _jensen_shannon,
}
