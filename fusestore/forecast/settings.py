"""`ForecastSettings`: what a forecast of a recipe compares, and on which text."""

from __future__ import annotations

from typing import get_args

from pydantic import Field, field_validator

from fusestore.fuse.choices import Granularity
from fusestore.store.listed import Listed, listed
from fusestore.store.manifest import Frozen


class ForecastSettings(Frozen):
    """The text that a forecast measures, and the strategies and granularities that it compares."""

    split: str = Field(
        default="held_out",
        min_length=1,
        description="Split of the corpus to measure, in place of the recipe's split. Choose text "
        "that no model trains on.",
        json_schema_extra={"metavar": "NAME"},
    )
    strategies: Listed[str, str] = Field(
        default=listed(
            "mince", "avgce", "packllm", "uniform", "temperature", "em", "loglinear", "gate"
        ),
        description="Strategies to compare, each over all sources. The recipe's strategy is "
        "always compared. By default those that are fitted are left out if the corpus has no "
        "split to fit them on.",
        json_schema_extra={"names": ["--compare"], "metavar": "STRATEGY ..."},
    )
    granularities: Listed[Granularity, Granularity] = Field(
        default=listed(*get_args(Granularity)),
        description="Granularities to compare. The recipe's granularity is always compared.",
        json_schema_extra={"names": ["--compare-by"]},
    )

    @field_validator("strategies")
    @classmethod
    def _strategies_are_registered(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # Imported when it is used, because it imports NumPy.
        from fusestore.fuse.strategies import check_strategy

        for name in names:
            check_strategy(name)
        return names
