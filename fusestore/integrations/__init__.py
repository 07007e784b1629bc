"""fusestore in other people's trainers; see docs/training.md.

A trainer's package is imported when its adapter is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fusestore.errors import MissingDependencyError

if TYPE_CHECKING:
    from fusestore.integrations.accelerate_step import fusion_backward
    from fusestore.integrations.axolotl_plugin import FusestorePlugin
    from fusestore.integrations.fusion_mixin import FusionTrainerMixin
    from fusestore.integrations.hf_trainer import FusionTrainer
    from fusestore.integrations.lightning_module import FusionModule
    from fusestore.integrations.step_loader import StepLoader
    from fusestore.integrations.trl_trainer import FusionSFTTrainer

__all__ = [
    "FusestorePlugin",
    "FusionModule",
    "FusionSFTTrainer",
    "FusionTrainer",
    "FusionTrainerMixin",
    "StepLoader",
    "fusion_backward",
]

_MODULES = {
    "FusestorePlugin": "axolotl_plugin",
    "FusionModule": "lightning_module",
    "FusionSFTTrainer": "trl_trainer",
    "FusionTrainer": "hf_trainer",
    "FusionTrainerMixin": "fusion_mixin",
    "StepLoader": "step_loader",
    "fusion_backward": "accelerate_step",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "fusestore":
            raise
        raise MissingDependencyError(
            f"{name} needs the package {package}, which is not installed: pip install {package}"
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
