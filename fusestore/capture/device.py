"""Selection by tensor operations, on whatever device the logits are.

Memory is read as rarely as such operations allow: the k largest of a row are looked for among the
blocks with the k largest maxima, and the mass of the rest comes from one fused softmax.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

_BLOCK = 64
"""Logits that share a maximum."""

_LOGITS = 2**26
"""Logits handled together: an accelerator wants few large kernels, and 256 MiB for their result."""

_ID_BITS = 32
_LAST_ID = 2**31 - 1

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def top_k_on_device(
    logits: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor, k: int
) -> Entries:
    """Fields of a `Selection` for the rule `top-k`; arguments as for `select`."""
    parts = [_top_k(logits[some], wanted, k) for some, wanted in _parts(logits, positions, labels)]
    ids, logprobs, tail, label_logprob, finite = (
        torch.cat(list(field)) for field in zip(*parts, strict=True)
    )
    return ids, logprobs, tail, label_logprob, finite


def draw_on_device(
    logits: torch.Tensor,
    positions: torch.Tensor,
    labels: torch.Tensor,
    points: npt.NDArray[np.float64],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids int32 [n, draws], rising, at the cumulated masses `points` [n, draws].

    Returns:
        The ids, and `label_logprob` and `finite` of a `Selection`.
    """
    wanted = torch.from_numpy(points)
    parts = []
    done = 0
    for some, numbers in _parts(logits, positions, labels):
        here = wanted[done : done + len(some)].to(logits.device, non_blocking=True)
        parts.append(_draw(logits[some], numbers, here))
        done += len(some)
    ids, label_logprob, finite = (torch.cat(list(field)) for field in zip(*parts, strict=True))
    return ids, label_logprob, finite


def _parts(
    logits: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(1, _LOGITS // logits.shape[-1])
    device = logits.device
    return list(
        zip(
            torch.split(positions.to(device, non_blocking=True), rows),
            torch.split(labels.to(device, non_blocking=True), rows),
            strict=True,
        )
    )


def _top_k(logits: torch.Tensor, labels: torch.Tensor, k: int) -> Entries:
    """Of rows [n, V] of their own: they are overwritten."""
    more = min(k + 1, logits.shape[-1])
    ids = _largest(logits, more)
    values = logits.gather(-1, ids).float()
    peak = values[:, :1]
    values = values - peak
    label = logits.gather(-1, labels[:, None]).float() - peak
    logits.scatter_(-1, ids[:, :k], -torch.inf)
    if more > k:
        # The largest of the rest: its log-softmax among them is minus the log of their mass,
        # relative to it.
        log_share = torch.log_softmax(logits, -1, dtype=torch.float32).gather(-1, ids[:, k:])
        rest = torch.where(values[:, k:] == -torch.inf, -torch.inf, values[:, k:] - log_share)
    else:
        rest = torch.full_like(peak, -torch.inf)
    log_total = torch.logaddexp(torch.logsumexp(values[:, :k], -1, keepdim=True), rest)
    return (
        ids[:, :k].to(torch.int32),
        values[:, :k] - log_total,
        (rest - log_total)[:, 0],
        (label - log_total)[:, 0],
        torch.isfinite(log_total + peak)[:, 0],
    )


def _largest(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Ids int64 [n, k] of the k largest logits of each row, lower ids first in a tie.

    All of them lie in the k blocks with the largest maxima, where a tie goes to the earlier block:
    each of these blocks has an entry that precedes whatever lies in any other.
    """
    n, vocab_size = logits.shape
    whole = vocab_size // _BLOCK
    maxima = logits[:, : whole * _BLOCK].reshape(n, whole, _BLOCK).amax(-1)
    if whole * _BLOCK < vocab_size:
        last = logits[:, whole * _BLOCK :].amax(-1, keepdim=True)
        maxima = torch.cat([maxima, last], dim=-1)
    blocks = _first_by_key(maxima, torch.arange(maxima.shape[1], device=logits.device), k)
    lanes = torch.arange(_BLOCK, device=logits.device)
    ids = (blocks[:, :, None] * _BLOCK + lanes).reshape(n, -1)
    values = logits.gather(-1, ids.clamp(max=vocab_size - 1))
    # Beyond the vocabulary's end there is nothing, and it comes after everything.
    values = values.masked_fill(ids >= vocab_size, -torch.inf)
    # Rows with NaN, whose order is none, may still name such an id.
    return _first_by_key(values, ids, k).clamp(max=vocab_size - 1)


def _first_by_key(values: torch.Tensor, ids: torch.Tensor, k: int) -> torch.Tensor:
    """Ids int64 [n, at most k] by falling value, then by rising id."""
    # Adding 0 makes −0 equal to 0. As integers, floats below 0 run backwards.
    bits = (values.float() + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ _LAST_ID, bits).long()
    key = (ordered << _ID_BITS) + (_LAST_ID - ids)
    top = torch.topk(key, min(k, key.shape[-1]), dim=-1).values
    return _LAST_ID - (top & ((1 << _ID_BITS) - 1))


def _draw(
    logits: torch.Tensor, labels: torch.Tensor, points: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
    cumulated = logprobs.exp().cumsum(-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    # Below the total even where the product rounds up to it: there is a token at each point.
    wanted = torch.minimum(points * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulated, wanted, right=True).clamp(max=logits.shape[-1] - 1)
    return (
        ids.to(torch.int32),
        logprobs.gather(-1, labels[:, None])[:, 0],
        torch.isfinite(total)[:, 0],
    )
