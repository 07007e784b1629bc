"""From logits to the rows that a cache keeps: entries, tail, label. Pure functions.

Three rules. `top-k`: the k most likely tokens. `top-p`: as few of these as together have mass p.
`sampled`: k draws from the distribution. On CUDA tensor operations run on the device (`device`),
otherwise compiled loops on the CPU (`kernels`); both make the same rows, up to float32 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fusestore.cache.rule import Rule
from fusestore.capture.cpu import draw_on_cpu, top_k_on_cpu
from fusestore.capture.device import draw_on_device, top_k_on_device
from fusestore.capture.sampling import tally, uniforms


@dataclass(frozen=True)
class Selection:
    """The kept rows of n next-token distributions; on CUDA if the logits are, else on the CPU.

    Attributes:
        ids: int32 [n, k] token ids by falling log-probability, then by rising id; 0 for absent
            entries.
        logprobs: float32 [n, k] natural log-probabilities at temperature 1, −inf if absent.
            `sampled`: log of the share of the draws that fell on the token.
        tail: float32 [n] log of the mass outside the kept ids; `sampled`: −inf.
        label_logprob: float32 [n] log-probability of the label.
        finite: bool [n] whether the row is a distribution (no NaN, no +inf). If not, its other
            values have no meaning.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    tail: torch.Tensor
    label_logprob: torch.Tensor
    finite: torch.Tensor


def select(
    rule: Rule,
    logits: torch.Tensor,
    positions: torch.Tensor,
    labels: torch.Tensor,
    rows: npt.NDArray[np.int64],
) -> Selection:
    """Apply a rule to some rows of logits; probabilities come from whole rows, in float32.

    For `top-k` and `top-p`, `sum(exp(logprobs)) + exp(tail) = 1`: the tail is summed from the
    other entries, not subtracted from one, so that a peaked row's small tail keeps its precision.
    For `sampled`, the entries alone sum to 1, and each token's expected share is its
    probability: Random Sampling KD of Sparse Logit Sampling (ACL 2025, arXiv 2503.16870) with the
    distribution itself as the proposal.

    Args:
        rule: selects the kept entries.
        logits: [m, V], any float dtype.
        positions: int64 [n], on the CPU: which rows of the logits.
        labels: int64 [n], on the CPU: the token that follows each of them.
        rows: int64 [n] the rows' numbers in the cache; with the seed, they determine the draws.
    """
    on_cuda = logits.device.type == "cuda"
    if not on_cuda:
        # Other accelerators lack float64 or sorting of integers, and share the CPU's memory.
        logits = logits.cpu()
    if rule.name == "sampled":
        points = uniforms(rule.seed or 0, rows, rule.top_k)
        draw = draw_on_device if on_cuda else draw_on_cpu
        drawn, label_logprob, finite = draw(logits, positions, labels, points)
        ids, logprobs = tally(drawn)
        tail = torch.full_like(label_logprob, -torch.inf)
        return Selection(ids, logprobs, tail, label_logprob, finite)
    top_k = top_k_on_device if on_cuda else top_k_on_cpu
    selection = Selection(*top_k(logits, positions, labels, rule.top_k))
    return selection if rule.top_p is None else cut_to_nucleus(selection, rule.top_p)


def cut_to_nucleus(selection: Selection, top_p: float) -> Selection:
    """Keep the first entries of each row, as few as reach mass `top_p`, at least one.

    The mass of removed entries is added to the tail. A row with less mass than `top_p` in its
    entries stays unchanged.
    """
    mass = selection.logprobs.exp()
    kept = mass.cumsum(-1) - mass < top_p
    kept[:, 0] = True
    cut = selection.logprobs.masked_fill(kept, -torch.inf)
    return Selection(
        ids=selection.ids.masked_fill(~kept, 0),
        logprobs=selection.logprobs.masked_fill(~kept, -torch.inf),
        tail=torch.logaddexp(selection.tail, torch.logsumexp(cut, -1)),
        label_logprob=selection.label_logprob,
        finite=selection.finite,
    )
