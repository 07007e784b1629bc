"""The built-in divergences of a student's distribution Q from a target P, and their gradients.

Pure functions of tensors; see `divergence_registry.Divergence` for arguments and results.
Formulas: docs/losses.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusestore.losses.divergence_registry import register_divergence


@register_divergence("cross_entropy", unbiased=True)
def cross_entropy(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """−Σ P log Q (FuseLLM, eq. 5)."""
    logq = torch.log_softmax(student, -1)
    p = target.exp()
    return -_weighted(p, logq).sum(-1), logq.exp() - p


@register_divergence("forward_kl", unbiased=True)
def forward_kl(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Σ P log(P / Q): the gradient of the cross-entropy, with a least value of 0."""
    logq = torch.log_softmax(student, -1)
    p = target.exp()
    return _weighted(p, target - logq).sum(-1), logq.exp() - p


@register_divergence("reverse_kl")
def reverse_kl(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Σ Q log(Q / P), of Q given that the outcome is one of P's."""
    # Without the condition the value is infinite where P has no mass.
    logq = torch.log_softmax(student.masked_fill(target == -torch.inf, -torch.inf), -1)
    q = logq.exp()
    ratio = logq - target
    value = _weighted(q, ratio).sum(-1)
    return value, _weighted(q, ratio - value[:, None])


@register_divergence("jensen_shannon")
def jensen_shannon(target: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """½ Σ P log(P / M) + ½ Σ Q log(Q / M), M = (P + Q) / 2."""
    logq = torch.log_softmax(student, -1)
    p, q = target.exp(), logq.exp()
    log_mean = torch.logaddexp(target, logq) - math.log(2)
    ratio = logq - log_mean
    from_q = _weighted(q, ratio).sum(-1)
    value = (_weighted(p, target - log_mean).sum(-1) + from_q) / 2
    return value, _weighted(q, ratio - from_q[:, None]) / 2


def _weighted(probs: Tensor, values: Tensor) -> Tensor:
    """The products; 0 where the probability is 0, even for infinite values."""
    return torch.where(probs == 0, 0.0, probs * values)
