"""`CorpusSettings`: the settings of a corpus; the options of `fusestore corpus`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from fusestore.store.manifest import Frozen

_TEXT: dict[str, JsonValue] = {"panel": "Text"}
_SPLITS: dict[str, JsonValue] = {"panel": "Splits"}
_SIZE: dict[str, JsonValue] = {"panel": "Size"}
_LIMIT: dict[str, JsonValue] = {**_SIZE, "metavar": "SPLIT=NUMBER ..."}

Limits = dict[str, Annotated[int, Field(ge=1)]]
"""Split → maximum number of its documents or bytes."""


class CorpusSettings(Frozen):
    """Settings of a corpus: columns, splits, and sizes."""

    text_column: str = Field(
        default="text",
        min_length=1,
        description="Column or key that holds the text, in all files but .txt and .md.",
        json_schema_extra={**_TEXT, "metavar": "NAME"},
    )
    split_column: str | None = Field(
        default=None,
        min_length=1,
        description="Column that names the split of each row. Without it the held-out rules "
        "decide, and all other documents are in the split train.",
        json_schema_extra={**_SPLITS, "metavar": "NAME"},
    )
    held_out_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of source documents that are in the split held_out, selected by a hash "
        "of their names.",
        json_schema_extra=_SPLITS,
    )
    held_out_pattern: tuple[str, ...] = Field(
        default=(),
        description="Shell pattern of file names. Source documents that match are in the split "
        "held_out.",
        json_schema_extra={**_SPLITS, "names": ["--held-out"], "metavar": "PATTERN ..."},
    )
    max_length: int | None = Field(
        default=1024,
        ge=8,
        description="Maximum number of tokens of a document in any model's tokenizer, BOS "
        "included. Longer documents are cut where tokens of all tokenizers end.",
        json_schema_extra=_SIZE,
    )
    max_documents: Limits = Field(
        default_factory=dict,
        description="Maximum number of source documents in a split, as in train=1000.",
        json_schema_extra=_LIMIT,
    )
    max_bytes: Limits = Field(
        default_factory=dict,
        description="Maximum number of bytes of text in a split, as in train=1000000.",
        json_schema_extra=_LIMIT,
    )
    sample_seed: int | None = Field(
        default=None,
        ge=0,
        description="Seed that selects the documents of a limited split at random. By default the "
        "first documents are kept.",
        json_schema_extra=_SIZE,
    )

    @property
    def splits(self) -> tuple[str, ...] | None:
        """The possible splits of documents; None if a column names them."""
        if self.split_column is not None:
            return None
        holds_out = bool(self.held_out_pattern) or self.held_out_fraction is not None
        return ("train", "held_out") if holds_out else ("train",)

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if self.split_column == self.text_column:
            raise ValueError(
                f"text_column and split_column are both {self.text_column!r}, but the text of a "
                "document cannot name its split. Name another column, or leave split_column out"
            )
        return self

    @model_validator(mode="after")
    def _limits_are_of_splits(self) -> Self:
        for name, limits in (("max_documents", self.max_documents), ("max_bytes", self.max_bytes)):
            unknown = sorted(set(limits) - set(self.splits or limits))
            if unknown:
                raise ValueError(
                    f"{name} limits the split {unknown[0]!r}, but the splits are "
                    f"{', '.join(self.splits or ())}"
                )
        return self
