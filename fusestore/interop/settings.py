"""`ImportSettings`: how foreign rows are read and stored; the options of `fusestore import`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from fusestore.cache.manifest import DEFAULT_LOGPROB_STEP, Profile, check_profile
from fusestore.capture.settings import BosPolicy, CaptureSettings
from fusestore.store.manifest import Frozen

_READ: dict[str, JsonValue] = {"panel": "What the files hold"}
_KEPT: dict[str, JsonValue] = {"panel": "Kept entries"}
_CORPUS: dict[str, JsonValue] = {"panel": "Corpus"}


def _as_captured(name: str) -> str:
    return str(CaptureSettings.model_fields[name].description)


class ImportSettings(Frozen):
    """How foreign rows are read, and how they are stored."""

    values: Literal["auto", "logprobs", "logits"] = Field(
        default="auto",
        description="What the numbers of the entries are. logprobs: of the whole vocabulary at "
        "temperature 1. logits: raw, so that only their differences are known. auto: what the "
        "format has.",
        json_schema_extra=_READ,
    )
    unknown_tail: Literal["mark", "renormalize"] = Field(
        default="mark",
        description="What to do where the mass outside the entries is not known. mark: keep it "
        "unknown; fusions refuse such a cache. renormalize: take the entries for the whole "
        "distribution, as FuseLLM does.",
        json_schema_extra=_READ,
    )
    special_tokens: Literal["refuse", "spell"] = Field(
        default="refuse",
        description="What to do with special tokens inside a document. refuse: name the document. "
        "spell: their spelling is text of the corpus. At the end of a document they are left out.",
        json_schema_extra=_READ,
    )
    bos: BosPolicy = Field(
        default="auto",
        description="Whether llama.cpp replaced the first token of each chunk by BOS. auto: as "
        "the tokenizer does. Other formats tell it themselves.",
        json_schema_extra=_READ,
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of entries kept of each row. By default all, and 64 of rows "
        "over the whole vocabulary.",
        json_schema_extra={**_KEPT, "short": "-k"},
    )
    profile: Profile = Field(
        default="compact", description=_as_captured("profile"), json_schema_extra=_KEPT
    )
    logprob_step: float | None = Field(
        default=None, ge=0, description=_as_captured("logprob_step"), json_schema_extra=_KEPT
    )
    license: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description=_as_captured("license"),
        json_schema_extra={**_READ, "metavar": "LICENSE"},
    )
    held_out_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Fraction of the documents that go to split held_out of the new corpus. An "
        "existing corpus keeps its splits.",
        json_schema_extra=_CORPUS,
    )

    @model_validator(mode="after")
    def _check_profile(self) -> Self:
        check_profile(self.profile, self.grid)
        return self

    @property
    def grid(self) -> float | None:
        """The grid of log-probabilities in nats; None keeps float32."""
        if self.logprob_step is None:
            return None if self.profile == "lossless" else DEFAULT_LOGPROB_STEP
        return self.logprob_step or None

    @property
    def reading(self) -> dict[str, str]:
        """What changes the content, as the origin of a cache keeps it."""
        names = ("values", "unknown_tail", "special_tokens", "bos", "top_k")
        return {name: str(getattr(self, name)) for name in names if getattr(self, name) is not None}
