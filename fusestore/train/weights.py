"""What a run changes, by name: trainable weights, buffers, AdamW's moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusestore.train.sharding import pieces_like, whole


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Trainable parameters (tied ones once) and persistent buffers, as the model holds them."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    persistent = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in persistent}
    return {**parameters, **buffers}


def put_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set what `trained_weights` gives, from whole tensors.

    Raises:
        KeyError, RuntimeError: weights are missing, or of another shape.
    """
    with torch.no_grad():
        for name, value in trained_weights(model).items():
            value.copy_(pieces_like(weights[name], value))


def moments(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """AdamW's states as `<moment>/<parameter>`, whole; all processes must ask.

    Args:
        optimizer: has made a step.
        names: of its parameters, in its order.
    """
    return {
        f"{moment}/{names[index]}": whole(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for moment, value in entry.items()
    }


def put_moments(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Set what `moments` gives.

    Raises:
        KeyError, RuntimeError: some are missing, or of another shape.
    """
    content: dict[str, Any] = optimizer.state_dict()
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    content["state"] = {
        index: {
            "step": tensors[f"step/{name}"],
            "exp_avg": pieces_like(tensors[f"exp_avg/{name}"], value),
            "exp_avg_sq": pieces_like(tensors[f"exp_avg_sq/{name}"], value),
        }
        for index, (name, value) in enumerate(zip(names, parameters, strict=True))
    }
    optimizer.load_state_dict(content)
