"""The merging rules, tensor by tensor: pure functions of float32 tensors of one shape.

Sources: linear, arXiv 2203.05482 (model soups, with weights); SLERP, Shoemake, SIGGRAPH 1985; task
arithmetic, arXiv 2212.04089; TIES, arXiv 2306.01708; VaRM and SCE, FuseChat, arXiv 2402.16107.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_SMALL_SINE = 1e-6
"""Sine of an angle below which two directions count as equal or opposite: the great circle through
them is undetermined, and SLERP is linear interpolation."""

_CHUNK = 2**22
"""Elements that are converted to float64 at a time."""


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`Σ w θ / Σ w`."""
    total = sum(weights)
    merged = tensors[0] * (weights[0] / total)
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        merged.add_(tensor, alpha=weight / total)
    return merged


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two tensors as vectors: `first` at share 0, `second` at share 1.

    `sin((1 − t)Ω)/sin Ω · first + sin(tΩ)/sin Ω · second`, with Ω the angle between them; the
    vectors are not normalized. Linear if the angle is 0 or 180° or a tensor is all zeros.
    """
    norms = math.sqrt(_dot(first, first) * _dot(second, second))
    cosine = max(-1.0, min(1.0, _dot(first, second) / norms)) if norms > 0 else 1.0
    angle = math.acos(cosine)
    if math.sin(angle) < _SMALL_SINE:
        return linear([first, second], [1.0 - share, share])
    return first * (math.sin((1.0 - share) * angle) / math.sin(angle)) + second * (
        math.sin(share * angle) / math.sin(angle)
    )


def task_arithmetic(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], scale: float
) -> Tensor:
    """`θ_base + λ Σ w (θ − θ_base)`; a negative weight unlearns."""
    merged = base.clone()
    for tensor, weight in zip(tensors, weights, strict=True):
        merged.add_(tensor - base, alpha=scale * weight)
    return merged


def ties(
    base: Tensor,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    scale: float,
    thresholds: Sequence[float],
) -> Tensor:
    """TIES (section 3 of the paper): trim, elect signs, average the values with that sign.

    Each task vector `θ − θ_base` is set to 0 below its threshold in magnitude. The sign of a
    parameter is that of the weighted sum of the trimmed task vectors, and `λ` times the weighted
    mean of those with that sign is added; nothing is added if the sum is 0.

    Args:
        base: the model that the others were trained from.
        tensors: of the models.
        weights: one per model, positive; in the paper all are 1.
        scale: λ.
        thresholds: smallest magnitude kept of each task vector, see `magnitude_threshold`.
    """
    trimmed = []
    total = torch.zeros_like(base)
    for tensor, weight, threshold in zip(tensors, weights, thresholds, strict=True):
        vector = tensor - base
        vector[vector.abs() < threshold] = 0.0
        trimmed.append(vector)
        total.add_(vector, alpha=weight)
    elected = total.sign()
    mean = torch.zeros_like(base)
    shares = torch.zeros_like(base)
    for vector, weight in zip(trimmed, weights, strict=True):
        agrees = (vector.sign() == elected) & (elected != 0)
        mean.add_(vector * agrees, alpha=weight)
        shares.add_(agrees, alpha=weight)
    return base + scale * mean / shares.clamp(min=torch.finfo(torch.float32).tiny)


def varm(base: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """VaRM (FuseChat): a mean of the models, weighted by how far each has moved this tensor.

    `Σ w θ` with `w = Σ (θ − θ_base)² / ΣΣ (θ − θ_base)²`: the inner sums are over the tensor's
    elements, the outer one is over the models. All weights are equal if no model has moved it.
    """
    return linear(tensors, _shares_of_change([tensor - base for tensor in tensors]))


def sce(base: Tensor, tensors: Sequence[Tensor], density: float) -> Tensor:
    """SCE (FuseChat): select, calculate, erase.

    Of the task vectors `θ − θ_base`, the share `density` of the elements that vary most between the
    models is selected; a model's coefficient is its share of the sum of the squares of what was
    selected; the entries against the sign of an element's sum are erased. The mean of the rest,
    weighted by the coefficients, is added to the base. Nothing is added where no entry is left.

    Args:
        base: the model that the others were trained from.
        tensors: of the models.
        density: in (0, 1], of the elements that vary at all; at least one is selected.
    """
    vectors = torch.stack([tensor - base for tensor in tensors])
    if density < 1:
        vectors *= _most_varying(vectors, density)
    shares = _shares_of_change(list(vectors))
    elected = vectors.sum(dim=0).sign()
    mean, total = torch.zeros_like(base), torch.zeros_like(base)
    for vector, share in zip(vectors, shares, strict=True):
        agrees = (vector.sign() == elected) & (elected != 0)
        mean.add_(vector * agrees, alpha=share)
        total.add_(agrees, alpha=share)
    return base + mean / total.clamp(min=torch.finfo(torch.float32).tiny)


def _most_varying(vectors: Tensor, density: float) -> Tensor:
    """Bool [*shape]: the share `density` of the elements that vary; of equal ones the first."""
    middle = vectors.mean(dim=0)
    # Ten times as fast as `Tensor.var`, and the threshold six times as fast as `Tensor.topk`.
    variance = torch.zeros_like(middle)
    for vector in vectors:
        variance.add_((vector - middle).square_())
    variance = variance.flatten()
    count = max(1, math.floor(int(variance.count_nonzero()) * density))
    threshold = variance.kthvalue(variance.numel() - count + 1).values
    selected = variance > threshold
    equal = (variance == threshold).nonzero().flatten()
    selected[equal[: count - int(selected.sum())]] = True
    return selected.reshape(middle.shape)


def _shares_of_change(vectors: Sequence[Tensor]) -> list[float]:
    """Each task vector's share of the sum of all squares; equal shares if all are zero."""
    squares = [_dot(vector, vector) for vector in vectors]
    total = math.fsum(squares)
    return [square / total if total else 1 / len(vectors) for square in squares]


def magnitude_threshold(vectors: Callable[[], Iterable[Tensor]], density: float) -> float:
    """The magnitude that a share `density` of a task vector's elements reach.

    Over all tensors together, as in the paper, in two passes and 512 KiB: the bits of float32
    magnitudes have the order of their values, so counting the upper and then the lower halves of
    the bits finds the exact element. At least one element is kept.

    Args:
        vectors: gives the task vector's tensors, float32, finite; called twice.
        density: in (0, 1].
    """
    upper = np.zeros(2**16, np.int64)
    for vector in vectors():
        for bits in _magnitude_bits(vector):
            upper += np.bincount(bits >> 16, minlength=2**16)
    num_kept = max(1, math.floor(int(upper.sum()) * density))
    if upper.sum() == 0:
        return 0.0
    half, above = _bin_of(upper, num_kept)
    lower = np.zeros(2**16, np.int64)
    for vector in vectors():
        for bits in _magnitude_bits(vector):
            lower += np.bincount(bits[bits >> 16 == half] & 0xFFFF, minlength=2**16)
    rest, _ = _bin_of(lower, num_kept - above)
    return float(np.array([half << 16 | rest], np.uint32).view(np.float32)[0])


def _bin_of(counts: np.ndarray[tuple[int], np.dtype[np.int64]], rank: int) -> tuple[int, int]:
    """`(bin, elements in higher bins)` of the element with this rank from the top, from 1."""
    from_top = np.cumsum(counts[::-1])
    index = int(np.searchsorted(from_top, rank))
    return len(counts) - 1 - index, int(from_top[index] - counts[::-1][index])


def _magnitude_bits(
    vector: Tensor,
) -> Iterable[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    for chunk in _chunks(vector):
        yield chunk.abs().numpy().view(np.uint32).astype(np.int64)


def _dot(first: Tensor, second: Tensor) -> float:
    """The inner product, in float64."""
    chunks = zip(_chunks(first), _chunks(second), strict=True)
    return math.fsum(float(torch.dot(a.double(), b.double())) for a, b in chunks)


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK]
