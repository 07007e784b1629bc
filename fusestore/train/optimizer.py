"""AdamW as every run has it."""

from __future__ import annotations

import torch

from fusestore.train.settings import TrainSettings


def adamw(
    model: torch.nn.Module, settings: TrainSettings
) -> tuple[list[str], torch.optim.Optimizer]:
    """AdamW over all trainable parameters, and their names in its order."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    decayed = [(name, value) for name, value in named if value.dim() >= 2]
    others = [(name, value) for name, value in named if value.dim() < 2]
    groups = [
        {"params": [value for _, value in decayed], "weight_decay": settings.weight_decay},
        {"params": [value for _, value in others], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=True,
    )
    return [name for name, _ in decayed + others], optimizer
