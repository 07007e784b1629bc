"""`MergeSettings`: how weights are merged; the options of `fusestore merge`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fusestore.errors import InvalidInputError
from fusestore.models.precision import Dtype
from fusestore.store.listed import Listed, listed
from fusestore.store.manifest import Frozen

MergeMethod = Literal["linear", "slerp", "task_arithmetic", "ties", "varm", "sce"]

_DENSITY = 0.2
"""The default of TIES without validation data (section 4 of its paper)."""

_SCALED = frozenset({"task_arithmetic", "ties"})
_THINNED = frozenset({"ties", "sce"})
_OWN_WEIGHTS = frozenset({"varm", "sce"})
_WITH_BASE = _SCALED | _OWN_WEIGHTS


class MergeSettings(Frozen):
    """How the weights of models are merged; see docs/merging.md for the formulas."""

    method: MergeMethod = Field(
        default="linear",
        description="Merging method. slerp takes exactly two models; task_arithmetic, ties, varm "
        "and sce need a base model.",
    )
    weights: Listed[float, float] = Field(
        default=listed(),
        description="One weight for each model, in order. By default all are 1. Only their "
        "proportions matter, except for task_arithmetic, where they may be negative. varm and sce "
        "compute their own.",
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
        description="Share of the changes that are kept. ties: the largest of each model. sce: "
        "those that differ most between the models, in each tensor.",
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
        if self.weights and self.method in _OWN_WEIGHTS:
            raise ValueError(f"{self.method} computes its own weights. Leave weights out")
        if self.scale != 1.0 and self.method not in _SCALED:
            raise ValueError(f"{self.method} has no scale; only task_arithmetic and ties do")
        if self.density != _DENSITY and self.method not in _THINNED:
            raise ValueError(f"{self.method} has no density; only ties and sce do")
        return self

    def check_models(self, num_models: int) -> None:
        """Check that the method merges so many models, besides its base.

        Raises:
            InvalidInputError: it does not, or there are not as many weights.
        """
        least = 1 if self.method in _SCALED else 2
        if num_models < least:
            raise InvalidInputError(
                f"Method {self.method} needs at least {least} models, but {num_models} were given. "
                "Name more models."
            )
        if self.method == "slerp" and num_models != 2:
            raise InvalidInputError(
                f"Method slerp interpolates between two models, not {num_models}; merge pairs, or "
                "use linear."
            )
        if self.weights and len(self.weights) != num_models:
            raise InvalidInputError(
                f"There are {len(self.weights)} weights for {num_models} models. Give one weight "
                "for each model."
            )

    def weights_of(self, count: int) -> tuple[float, ...]:
        """One weight for each of `count` models."""
        return self.weights or (1.0,) * count
