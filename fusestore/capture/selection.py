"""From logits to what a cache keeps of them: the top k, the tail, the label. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

_BLOCK_LOGITS = 2**19
"""Logits looked at together: their float32 copies stay in a CPU's cache over all passes."""


@dataclass(frozen=True)
class Selection:
    """What is kept of n next-token distributions.

    Attributes:
        ids: int64 [n, k] token ids by falling log-probability.
        logprobs: float32 [n, k] natural log-probabilities at temperature 1.
        tail: float32 [n] log of the mass outside the kept ids.
        label_logprob: float32 [n] log-probability of the label.
        finite: bool [n] whether the row is a distribution at all (no NaN, no +inf).
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    tail: torch.Tensor
    label_logprob: torch.Tensor
    finite: torch.Tensor


def select_top_k(logits: torch.Tensor, labels: torch.Tensor, k: int) -> Selection:
    """Keep the k most likely tokens of each row, computed in float32 from the whole row.

    `sum(exp(logprobs)) + exp(tail) = 1`: the tail is summed from the entries that were not kept,
    not subtracted from one, so a peaked row's small tail keeps its precision.

    Args:
        logits: [n, vocab_size], any float dtype.
        labels: int64 [n]; the token that follows each row.
        k: entries to keep, at most vocab_size.
    """
    # An accelerator wants few large kernels; a CPU wants its data near.
    on_cpu = logits.device.type == "cpu"
    rows = max(1, _BLOCK_LOGITS // logits.shape[-1]) if on_cpu else max(1, len(logits))
    blocks = [
        _select_block(logits[start : start + rows], labels[start : start + rows], k)
        for start in range(0, max(1, len(logits)), rows)
    ]
    return Selection(
        *(
            torch.cat([getattr(block, field.name) for block in blocks])
            for field in fields(Selection)
        )
    )


def _select_block(logits: torch.Tensor, labels: torch.Tensor, k: int) -> Selection:
    logits = logits.float()
    peak = logits.amax(dim=-1, keepdim=True)
    mass = torch.exp(logits - peak)
    total = mass.sum(dim=-1, keepdim=True)
    log_total = torch.log(total)
    top = torch.topk(logits, k, dim=-1)
    # The peak goes first: it may be large, and what remains is small and exact.
    label = (logits.gather(-1, labels.unsqueeze(-1)) - peak) - log_total
    rest = mass.scatter_(-1, top.indices, 0.0).sum(dim=-1, keepdim=True)
    return Selection(
        ids=top.indices,
        logprobs=(top.values - peak) - log_total,
        tail=(torch.log(rest) - log_total).squeeze(-1),
        label_logprob=label.squeeze(-1),
        finite=torch.isfinite(log_total + peak).squeeze(-1),
    )
