"""`MergeSettings`: how weights are merged; the options of `fusestore merge`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fusestore.models.precision import Dtype
from fusestore.store.manifest import Frozen

MergeMethod = Literal["linear", "slerp", "task_arithmetic", "ties"]

_DENSITY = 0.2
"""The default of TIES without validation data (section 4 of its paper)."""

_WITH_BASE = frozenset({"task_arithmetic", "ties"})


class MergeSettings(Frozen):
    """How the weights of models are merged; see docs/merging.md for the formulas."""

    method: MergeMethod = Field(
        default="linear",
        description="Merging method. slerp takes exactly two models; task_arithmetic and ties need "
        "a base model.",
    )
    weights: tuple[float, ...] = Field(
        default=(),
        description="One weight for each model, in order. By default all are 1. Only their "
        "proportions matter, except for task_arithmetic, where they may be negative.",
        json_schema_extra={"names": ["--weight"], "metavar": "NUMBER ..."},
    )
    scale: float = Field(
        default=1.0,
        description="Factor of the change that task_arithmetic and ties add to the base model.",
    )
    density: float = Field(
        default=_DENSITY,
        gt=0.0,
        le=1.0,
        description="Share of each model's changes that ties keeps: the largest ones.",
    )
    dtype: Dtype | None = Field(
        default=None,
        description="Dtype of the merged weights. By default the first model's.",
    )

    @property
    def needs_base(self) -> bool:
        """Whether the method adds changes to a base model."""
        return self.method in _WITH_BASE

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method != "task_arithmetic":
            if any(weight < 0 for weight in self.weights):
                raise ValueError(f"weights {self.weights} are negative; {self.method} takes none")
            if self.weights and not sum(self.weights) > 0:
                raise ValueError(f"weights {self.weights} do not sum to a positive number")
        if self.scale != 1.0 and not self.needs_base:
            raise ValueError(f"{self.method} has no scale; only task_arithmetic and ties do")
        if self.density != _DENSITY and self.method != "ties":
            raise ValueError(f"{self.method} has no density; only ties does")
        return self

    def weights_of(self, count: int) -> tuple[float, ...]:
        """One weight for each of `count` models."""
        return self.weights or (1.0,) * count
