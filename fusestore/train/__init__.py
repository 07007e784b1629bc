"""Losses, the trainer and the evaluation; torch is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusestore.train.evaluate import HeldOut, bits_per_byte
    from fusestore.train.losses import FusionTerms, fusion_loss, fusion_terms
    from fusestore.train.settings import TrainSettings
    from fusestore.train.trainer import TrainingProgress, TrainingResult, train

__all__ = [
    "FusionTerms",
    "HeldOut",
    "TrainSettings",
    "TrainingProgress",
    "TrainingResult",
    "bits_per_byte",
    "fusion_loss",
    "fusion_terms",
    "train",
]

_MODULES = {
    "FusionTerms": "losses",
    "HeldOut": "evaluate",
    "TrainSettings": "settings",
    "TrainingProgress": "trainer",
    "TrainingResult": "trainer",
    "bits_per_byte": "evaluate",
    "fusion_loss": "losses",
    "fusion_terms": "losses",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
