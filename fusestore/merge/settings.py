"""`MergeSettings`: how weights are merged."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fusestore.store.manifest import Frozen

MergeMethod = Literal["linear", "slerp", "task_arithmetic", "ties"]

_DENSITY = 0.2
"""Of TIES where nothing is validated (section 4 of its paper)."""

_WITH_BASE = frozenset({"task_arithmetic", "ties"})


class MergeSettings(Frozen):
    """How weights are merged; see docs/merging.md.

    Attributes:
        method: linear, slerp (of two models), task_arithmetic or ties (both need a base model).
        weights: one for each model, in order; all 1 unless given. linear, slerp and ties use their
            proportions, task_arithmetic their values, which may be negative.
        scale: λ, by which task_arithmetic and ties multiply what they add to the base.
        density: share of each task vector that ties keeps.
        dtype: of the written weights; the first model's unless given.
    """

    method: MergeMethod = "linear"
    weights: tuple[float, ...] = ()
    scale: float = 1.0
    density: float = Field(default=_DENSITY, gt=0.0, le=1.0)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @property
    def needs_base(self) -> bool:
        """Whether the method adds to a base model."""
        return self.method in _WITH_BASE

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method != "task_arithmetic":
            if any(weight < 0 for weight in self.weights):
                raise ValueError(f"weights {self.weights} are negative; {self.method} takes none")
            if self.weights and not sum(self.weights) > 0:
                raise ValueError(f"weights {self.weights} do not sum to a positive number")
        if self.scale != 1.0 and not self.needs_base:
            raise ValueError(f"{self.method} has no scale; task_arithmetic and ties have")
        if self.density != _DENSITY and self.method != "ties":
            raise ValueError(f"{self.method} has no density; ties has")
        return self

    def weights_of(self, count: int) -> tuple[float, ...]:
        """One weight for each of `count` models."""
        return self.weights or (1.0,) * count
