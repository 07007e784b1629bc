"""`PublishSettings`: what is published and how; the options of `fusestore publish`."""

from __future__ import annotations

from pydantic import Field, JsonValue, field_validator

from fusestore.store.copy import FILES_AT_ONCE
from fusestore.store.listed import Listed, listed
from fusestore.store.manifest import Frozen
from fusestore.store.registry import split_path

_CARD: dict[str, JsonValue] = {"panel": "Card"}


class PublishSettings(Frozen):
    """What is published with its artifacts, and what the card says."""

    inputs: bool = Field(
        default=False,
        description="Also publish the artifacts that these were made from.",
        json_schema_extra={"names": ["--with-inputs"]},
    )
    private: bool = Field(
        default=False,
        description="Make a new repository of the Hub private. An existing one stays as it is.",
    )
    jobs: int = Field(
        default=FILES_AT_ONCE,
        ge=1,
        description="Number of files copied at the same time.",
        json_schema_extra={"short": "-j"},
    )
    expect: Listed[str, str] = Field(
        default=listed(),
        description="Key `checksum` of the artifact's manifest; anything else is not published. "
        "KIND/NAME=DIGEST if several artifacts are published, each once.",
        json_schema_extra={"metavar": "DIGEST"},
    )
    card_only: bool = Field(
        default=False,
        description="Write the card alone. The artifacts must be published already.",
        json_schema_extra=_CARD,
    )
    title: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Title of a new card. By default the name of the target.",
        json_schema_extra={**_CARD, "metavar": "TEXT"},
    )
    license: dict[str, str] = Field(
        default_factory=dict,
        description="License of a cache's model or of a corpus, in place of the recorded one, as "
        "in cache/teacher=apache-2.0 or corpus/texts=cc-by-4.0.",
        json_schema_extra={**_CARD, "metavar": "KIND/NAME=LICENSE ..."},
    )
    language: Listed[str, str] = Field(
        default=listed(),
        description="Language of the texts, such as en.",
        json_schema_extra={**_CARD, "metavar": "CODE ..."},
    )
    forecast: bool = Field(
        default=False,
        description="Measure for the card what fusing brings, on a sample of the split held_out, "
        "or else of the fused one. Reads the caches.",
        json_schema_extra=_CARD,
    )

    @field_validator("license")
    @classmethod
    def _licenses_are_of_artifacts(cls, licenses: dict[str, str]) -> dict[str, str]:
        for path, text in licenses.items():
            if split_path(path)[0].name not in ("cache", "corpus", "model"):
                raise ValueError(
                    f"{path} has no license of its own; name a cache, a corpus or a model"
                )
            if not text.strip() or len(text) > 200:
                raise ValueError(f"the license of {path} must have 1 to 200 characters")
        return licenses

    @field_validator("language")
    @classmethod
    def _languages_are_codes(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        for code in codes:
            if not (2 <= len(code) <= 35 and code.replace("-", "").isalnum() and code.isascii()):
                raise ValueError(f"{code!r} is no code of a language, such as en or pt-BR")
        return codes
