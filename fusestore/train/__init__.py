"""Losses, the trainer and the evaluation; torch is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusestore.train.apart import check_apart
    from fusestore.train.evaluate import HeldOut, bits_per_byte
    from fusestore.train.linear_loss import linear_fusion_loss, linear_fusion_terms
    from fusestore.train.loop import TrainingProgress
    from fusestore.train.losses import FusionTerms, fusion_loss, fusion_terms
    from fusestore.train.objective import FusionObjective
    from fusestore.train.settings import LoraSettings, TrainSettings
    from fusestore.train.trainer import TrainingResult, train

__all__ = [
    "FusionObjective",
    "FusionTerms",
    "HeldOut",
    "LoraSettings",
    "TrainSettings",
    "TrainingProgress",
    "TrainingResult",
    "bits_per_byte",
    "check_apart",
    "fusion_loss",
    "fusion_terms",
    "linear_fusion_loss",
    "linear_fusion_terms",
    "train",
]

_MODULES = {
    "FusionObjective": "objective",
    "FusionTerms": "losses",
    "HeldOut": "evaluate",
    "LoraSettings": "settings",
    "TrainSettings": "settings",
    "TrainingProgress": "loop",
    "TrainingResult": "trainer",
    "bits_per_byte": "evaluate",
    "check_apart": "apart",
    "fusion_loss": "losses",
    "fusion_terms": "losses",
    "linear_fusion_loss": "linear_loss",
    "linear_fusion_terms": "linear_loss",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
