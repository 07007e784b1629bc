"""What can be chosen about a forecast, beside the recipe that it is of."""

from __future__ import annotations

from typing import get_args

from pydantic import Field, field_validator

from fusestore.fuse.choices import Granularity
from fusestore.store.manifest import Frozen


class ForecastSettings(Frozen):
    """Where a forecast looks, and which ways of fusing it compares."""

    split: str = Field(
        default="held_out",
        min_length=1,
        description="Split of the corpus to look at, in place of the recipe's: a forecast is of "
        "text that nothing trains on.",
    )
    strategies: tuple[str, ...] = Field(
        default=("mince", "avgce", "packllm", "uniform"),
        description="Strategies to compare, for all sources together; the recipe's is compared "
        "too.",
        json_schema_extra={"names": ["--compare"], "metavar": "STRATEGY ..."},
    )
    granularities: tuple[Granularity, ...] = Field(
        default=get_args(Granularity),
        description="Units of weighting to compare; the recipe's is compared too.",
        json_schema_extra={"names": ["--compare-by"]},
    )

    @field_validator("strategies")
    @classmethod
    def _strategies_are_registered(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # Here, because it imports NumPy.
        from fusestore.fuse.strategies import get_strategy

        for name in names:
            get_strategy(name)
        return names
