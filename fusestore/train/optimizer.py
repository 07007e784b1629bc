"""AdamW, and the schedules of the learning rate and of the text's weight λ."""

from __future__ import annotations

import math

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
        eps=settings.eps,
        fused=True,
    )
    return [name for name, _ in decayed + others], optimizer


def learning_rate_at(settings: TrainSettings, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) out of `total_steps`.

    Rises linearly over the warm-up and reaches the peak at its last step; then falls from the peak
    to `final_learning_rate`, the value of a step after the last.
    """
    warmup_steps = round(settings.warmup * total_steps)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if settings.schedule == "constant":
        share = 1.0
    elif settings.schedule == "linear":
        share = 1.0 - progress
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    floor = settings.final_learning_rate
    return settings.learning_rate * (floor + (1.0 - floor) * share)


def lm_weight_at(settings: TrainSettings, step: int, total_steps: int) -> float:
    """λ of optimizer step `step` (from 0) out of `total_steps`.

    λ + (λ_final − λ) · step / total_steps, as in FuseLLM's code for λ_final = 1.
    """
    first, final = settings.lm_weights
    return first + (final - first) * step / total_steps
