"""`ReportSettings`: what the page of a store shows."""

from __future__ import annotations

from pydantic import Field

from fusestore.store.manifest import Frozen


class ReportSettings(Frozen):
    """The fused dataset, the documents and the entries that a page shows."""

    fused: str | None = Field(
        default=None,
        min_length=1,
        description="Fused dataset of the token viewer and the forecast. By default the first one.",
        json_schema_extra={"metavar": "NAME"},
    )
    split: str = Field(
        default="held_out",
        min_length=1,
        description="Split of the corpus that the token viewer shows and the forecast measures. A "
        "corpus without it shows the split of the fused dataset.",
        json_schema_extra={"metavar": "NAME"},
    )
    documents: int = Field(
        default=8,
        ge=1,
        description="Most documents in the token viewer, spread evenly over the split.",
    )
    max_tokens: int = Field(
        default=20_000,
        ge=1,
        description="Most target tokens of these documents together. The first document is shown "
        "whatever its length.",
    )
    entries: int = Field(
        default=5,
        ge=1,
        le=32,
        description="Most entries of a distribution that the token viewer shows.",
    )
    forecast: bool = Field(
        default=True,
        description="Forecast what fusing brings, on a sample of the split. It takes most of the "
        "time.",
    )
