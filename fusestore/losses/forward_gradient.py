"""A loss that makes its gradients together with its value, in the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusestore.losses.row_losses import FusionTerms

Compute = Callable[[Sequence[bool]], tuple[FusionTerms, Sequence[Tensor | None]]]
"""`needs_gradient -> (terms, gradients)`: for each input that needs one, d loss / d input of the
input's shape; None for the others."""


def loss_with_gradients(compute: Compute, *inputs: Tensor | None) -> FusionTerms:
    """Run `compute` now; the backward pass returns its gradients.

    The gradients may have another dtype than their inputs: they are multiplied by the gradient of
    the loss first and rounded afterwards.

    Args:
        compute: runs without autograd, with its own references to the inputs.
        inputs: the tensors of the gradients, in the order of `compute`.
    """
    loss, lm, fused = _LossWithGradients.apply(  # type: ignore[no-untyped-call]
        compute, *inputs
    )
    return FusionTerms(loss, lm, fused)


class _LossWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context has no public type
        compute: Compute,
        *inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        terms, gradients = compute(ctx.needs_input_grad[1:])
        ctx.dtypes = [None if value is None else value.dtype for value in inputs]
        # Autograd frees tensors that are saved this way right after their use.
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(terms.lm, terms.fused)
        return terms.loss, terms.lm, terms.fused

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_loss: Tensor,
        _grad_lm: Tensor,
        _grad_fused: Tensor,
    ) -> tuple[Tensor | None, ...]:
        return None, *(
            None if gradient is None else _scaled(gradient, grad_loss, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )


def _scaled(gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """The product in `dtype`, without a copy where that changes nothing."""
    if not bool(grad_loss == 1):
        gradient = gradient * grad_loss.to(gradient.dtype)
    return gradient.to(dtype)
