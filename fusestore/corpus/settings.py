"""`CorpusSettings`: the settings of a corpus; the options of `fusestore corpus`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from fusestore.corpus.conversation_forms import InputForm
from fusestore.store.listed import Listed, listed
from fusestore.store.manifest import Frozen
from fusestore.tokenizers.chat_template import GENERATION_PROMPT, RESERVED
from fusestore.tokenizers.conversation import TrainOn

_TEXT: dict[str, JsonValue] = {"panel": "Text"}
_CHAT: dict[str, JsonValue] = {"panel": "Conversations"}
_SPLITS: dict[str, JsonValue] = {"panel": "Splits"}
_SIZE: dict[str, JsonValue] = {"panel": "Size"}
_LIMIT: dict[str, JsonValue] = {**_SIZE, "metavar": "SPLIT=NUMBER ..."}


def _parsed(value: object) -> object:
    """A word of a command line as what it stands for: a template takes the text "false" as true."""
    words: dict[object, bool] = {"true": True, "false": False}
    return words.get(value, value) if isinstance(value, str) else value


TemplateVariables = dict[str, Annotated[str | bool | int | float, BeforeValidator(_parsed)]]

Limits = dict[str, Annotated[int, Field(ge=1)]]
"""Split → maximum number of its documents or bytes."""


class CorpusSettings(Frozen):
    """Settings of a corpus: columns, conversations, splits, and sizes."""

    text_column: str = Field(
        default="text",
        min_length=1,
        description="Column or key that holds the text, in all files but .txt and .md.",
        json_schema_extra={**_TEXT, "metavar": "NAME"},
    )
    form: InputForm = Field(
        default="auto",
        description="What a row or record holds. By default a text if there is a `text_column`, or "
        "else a conversation, whose form its columns tell.",
        json_schema_extra=_TEXT,
    )
    train_on: TrainOn = Field(
        default="assistant",
        description="Turns of a conversation that are trained on and scored: those of the "
        "assistant, all, the assistant's last, or (completion) the assistant's after the last turn "
        "of a user. The end of such a turn is part of it.",
        json_schema_extra=_CHAT,
    )
    keep_white_space: bool = Field(
        default=False,
        description="Whether models read the white space around the content of a turn. Many chat "
        "templates remove it; their models cannot read a turn that has some.",
        json_schema_extra=_CHAT,
    )
    template_variables: TemplateVariables = Field(
        default_factory=dict,
        description="Variables for every chat template, as in enable_thinking=false.",
        json_schema_extra={**_CHAT, "metavar": "NAME=VALUE ..."},
    )
    add_generation_prompt: bool = Field(
        default=False,
        description="Whether a conversation whose last turn is not the assistant's ends with the "
        "header of an answer, as a prompt alone does.",
        json_schema_extra=_CHAT,
    )
    fallback_template: str | None = Field(
        default=None,
        min_length=1,
        description="Chat template of models that have none, such as pretrained ones: a file that "
        "ends in .jinja, as a path like those of inputs, or its text.",
        json_schema_extra={**_CHAT, "metavar": "FILE"},
    )
    license: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="License of the texts, such as cc-by-4.0, which the corpus records and "
        "`fusestore publish` names. It may be stated again later.",
        json_schema_extra={**_TEXT, "metavar": "LICENSE"},
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
    held_out_pattern: Listed[str, str] = Field(
        default=listed(),
        description="Shell pattern of file names. Source documents that match are in the split "
        "held_out.",
        json_schema_extra={**_SPLITS, "names": ["--held-out"], "metavar": "PATTERN ..."},
    )
    max_length: int | None = Field(
        default=1024,
        ge=8,
        description="Maximum number of tokens of a document in any model's tokenizer, BOS "
        "included. Longer texts are cut where tokens of all tokenizers end, longer conversations "
        "before a turn of the user.",
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

    @field_validator("template_variables")
    @classmethod
    def _variables_are_of_templates(cls, variables: TemplateVariables) -> TemplateVariables:
        reserved = sorted(RESERVED & variables.keys())
        if reserved:
            hint = (
                "use the setting of this name" if GENERATION_PROMPT in reserved else "leave it out"
            )
            raise ValueError(
                f"{reserved[0]!r} is an argument of apply_chat_template, not a variable of a "
                f"template; {hint}"
            )
        return variables

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
