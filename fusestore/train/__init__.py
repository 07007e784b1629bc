"""Training on fused datasets, and scoring models on held-out text; see docs/training.md.

torch is imported when something of it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusestore.train.held_out import HeldOut, bits_per_byte
    from fusestore.train.loop import TrainingProgress
    from fusestore.train.manifest import TrainedModel
    from fusestore.train.run import train_model
    from fusestore.train.settings import LoraSettings, TrainSettings
    from fusestore.train.student.document_masking import check_document_masking
    from fusestore.train.trainer import train

__all__ = [
    "HeldOut",
    "LoraSettings",
    "TrainSettings",
    "TrainedModel",
    "TrainingProgress",
    "bits_per_byte",
    "check_document_masking",
    "train",
    "train_model",
]

_MODULES = {
    "HeldOut": "fusestore.train.held_out",
    "LoraSettings": "fusestore.train.settings",
    "TrainSettings": "fusestore.train.settings",
    "TrainingProgress": "fusestore.train.loop",
    "TrainedModel": "fusestore.train.manifest",
    "bits_per_byte": "fusestore.train.held_out",
    "check_document_masking": "fusestore.train.student.document_masking",
    "train": "fusestore.train.trainer",
    "train_model": "fusestore.train.run",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
