"""Losses over sparse fused distributions, as pure functions of tensors; see docs/losses.md.

torch is imported when a loss is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusestore.losses.divergence_registry import (
        Divergence,
        divergence_names,
        register_divergence,
    )
    from fusestore.losses.linear_loss import linear_fusion_loss, linear_fusion_terms
    from fusestore.losses.logit_loss import fusion_loss, fusion_terms
    from fusestore.losses.objective import FusionObjective
    from fusestore.losses.positions import count_positions
    from fusestore.losses.row_losses import FusionTerms

__all__ = [
    "Divergence",
    "FusionObjective",
    "FusionTerms",
    "count_positions",
    "divergence_names",
    "fusion_loss",
    "fusion_terms",
    "linear_fusion_loss",
    "linear_fusion_terms",
    "register_divergence",
]

_MODULES = {
    "Divergence": "fusestore.losses.divergence_registry",
    "FusionObjective": "fusestore.losses.objective",
    "FusionTerms": "fusestore.losses.row_losses",
    "count_positions": "fusestore.losses.positions",
    "divergence_names": "fusestore.losses.divergence_registry",
    "fusion_loss": "fusestore.losses.logit_loss",
    "fusion_terms": "fusestore.losses.logit_loss",
    "linear_fusion_loss": "fusestore.losses.linear_loss",
    "linear_fusion_terms": "fusestore.losses.linear_loss",
    "register_divergence": "fusestore.losses.divergence_registry",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
