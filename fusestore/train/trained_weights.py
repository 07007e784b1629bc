"""What a run changes in a model, by name: trainable weights and buffers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Trainable parameters (tied ones once) and persistent buffers, as the model holds them."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    persistent = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in persistent}
    return {**parameters, **buffers}


def put_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set what `trained_weights` gives, in a model that is not cut in pieces.

    Raises:
        KeyError, RuntimeError: weights are missing, or of another shape.
    """
    with torch.no_grad():
        for name, value in trained_weights(model).items():
            value.copy_(weights[name])
