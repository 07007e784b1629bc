"""Losses, the trainer and the evaluation; torch is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusestore.losses.linear_loss import linear_fusion_loss, linear_fusion_terms
    from fusestore.losses.logit_loss import FusionTerms, fusion_loss, fusion_terms
    from fusestore.losses.objective import FusionObjective
    from fusestore.train.document_masking import check_apart
    from fusestore.train.evaluate import HeldOut, bits_per_byte
    from fusestore.train.loop import TrainingProgress
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
    "FusionObjective": "fusestore.losses.objective",
    "FusionTerms": "fusestore.losses.logit_loss",
    "HeldOut": "fusestore.train.evaluate",
    "LoraSettings": "fusestore.train.settings",
    "TrainSettings": "fusestore.train.settings",
    "TrainingProgress": "fusestore.train.loop",
    "TrainingResult": "fusestore.train.trainer",
    "bits_per_byte": "fusestore.train.evaluate",
    "check_apart": "fusestore.train.document_masking",
    "fusion_loss": "fusestore.losses.logit_loss",
    "fusion_terms": "fusestore.losses.logit_loss",
    "linear_fusion_loss": "fusestore.losses.linear_loss",
    "linear_fusion_terms": "fusestore.losses.linear_loss",
    "train": "fusestore.train.trainer",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
