"""Selection by tensor operations, on the device of the logits.

Memory is read as rarely as such operations allow: the k largest logits of a row are selected from
the blocks with the k largest maxima, and the mass of the others comes from one fused softmax.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

_BLOCK = 64
"""Logits that share a maximum."""

SELECTED_LOGITS = 2**26
"""Logits handled together: an accelerator wants few large kernels, and 256 MiB for their result."""

_ID_BITS = 32
_LAST_ID = 2**31 - 1

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def top_k_on_device(
    logits: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor, k: int
) -> Entries:
    """Fields of a `Selection` for the rule `top-k`; arguments as for `select`."""
    results = [
        _top_k(logits[rows], row_labels, k)
        for rows, row_labels in _batches(logits, positions, labels)
    ]
    ids, logprobs, tail, label_logprob, finite = (
        torch.cat(list(field)) for field in zip(*results, strict=True)
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
    masses = torch.from_numpy(points)
    results = []
    done = 0
    for rows, row_labels in _batches(logits, positions, labels):
        row_masses = masses[done : done + len(rows)].to(logits.device, non_blocking=True)
        results.append(_draw(logits[rows], row_labels, row_masses))
        done += len(rows)
    ids, label_logprob, finite = (torch.cat(list(field)) for field in zip(*results, strict=True))
    return ids, label_logprob, finite


def _batches(
    logits: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(1, SELECTED_LOGITS // logits.shape[-1])
    device = logits.device
    return list(
        zip(
            torch.split(positions.to(device, non_blocking=True), rows),
            torch.split(labels.to(device, non_blocking=True), rows),
            strict=True,
        )
    )


def _top_k(logits: torch.Tensor, labels: torch.Tensor, k: int) -> Entries:
    """Fields of a `Selection` of rows [n, V], which are overwritten."""
    more = min(k + 1, logits.shape[-1])
    ids = _largest(logits, more)
    values = logits.gather(-1, ids).float()
    peak = values[:, :1]
    values = values - peak
    label = logits.gather(-1, labels[:, None]).float() - peak
    logits.scatter_(-1, ids[:, :k], -torch.inf)
    if more > k:
        # For the largest of the other logits, its log-softmax among them is minus the log of their
        # mass relative to it.
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

    All of them lie in the k blocks with the largest maxima, if a tie goes to the earlier block:
    each of these blocks has an entry that precedes every entry of any other block.
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
    # Ids beyond the vocabulary come last.
    values = values.masked_fill(ids >= vocab_size, -torch.inf)
    # A row with NaN has no order and may still name such an id.
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
    # Below the total even if the product rounds up to it, so that each point is at a token.
    targets = torch.minimum(points * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulated, targets, right=True).clamp(max=logits.shape[-1] - 1)
    return (
        ids.to(torch.int32),
        logprobs.gather(-1, labels[:, None])[:, 0],
        torch.isfinite(total)[:, 0],
    )
