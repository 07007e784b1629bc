"""What a run changes, as plain tensors by name: trainable weights, buffers, AdamW's moments.

Every function is called in all processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Trainable parameters (tied ones once) and persistent buffers, as the model holds them."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    persistent = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in persistent}
    return {**parameters, **buffers}


def put_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set what `trained_weights` gives.

    Raises:
        KeyError, RuntimeError: weights are missing, or of another shape.
    """
    with torch.no_grad():
        for name, value in trained_weights(model).items():
            value.copy_(weights[name])


def moments(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """AdamW's states as `<moment>/<parameter>`.

    Args:
        optimizer: has made a step.
        names: of its parameters, in its order.
    """
    return {
        f"{moment}/{names[index]}": value
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
    content["state"] = {
        index: {moment: tensors[f"{moment}/{name}"] for moment in _MOMENTS}
        for index, name in enumerate(names)
    }
    optimizer.load_state_dict(content)
