"""`Recipe`: the complete, hashable description of a fusion.

sources = ["smollm2", "gemma3"]   # or [[sources]] tables, to name an alignment or a weight
target = "smollm2"                # a name in the store, a model, or a tokenizer's digest
strategy = "uniform"

`fusestore.fuse.resolve` completes a recipe from the store. The whole recipe, with every name and
digest, is kept with the fused dataset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fusestore.align.settings import (
    DEFAULT_METHOD,
    DEFAULT_VOCABULARY,
    TokenMethod,
    VocabularyMethod,
)
from fusestore.fuse.choices import (
    LEARNED,
    AcceptedKind,
    FitBy,
    Granularity,
    Packing,
    Score,
    UnalignedPolicy,
)
from fusestore.storage.location import Location
from fusestore.store.codec import MAX_STEP, MIN_STEP
from fusestore.store.listed import Listed, listed
from fusestore.store.manifest import Frozen, canonical_json, digest_bytes
from fusestore.store.presets import SettingsWithPresets
from fusestore.store.settings_file import check_keys, parse_settings, read_settings_file

_WITHOUT_WEIGHTS = frozenset({"mince", "avgce", "packllm", "uniform", "single", *LEARNED})
_DIGEST = re.compile(r"[0-9a-f]{16,64}")

_INPUTS: dict[str, JsonValue] = {"panel": "Inputs"}
_WEIGHTING: dict[str, JsonValue] = {"panel": "Weighting"}
_POSITIONS: dict[str, JsonValue] = {"panel": "Positions"}
_OUTPUT: dict[str, JsonValue] = {"panel": "Output"}

KEPT = {"kept": True}
"""Validation context of a recipe that a store keeps: its strategy may be registered elsewhere."""


class RecipeSource(Frozen):
    """One source of a fusion."""

    cache: str = Field(min_length=1, description="Name of the source's distribution cache.")
    alignment: str | None = Field(
        default=None,
        description="Name of the cache's alignment to the target. Needed only if the store has "
        "several by the recipe's method.",
    )
    weight: float = Field(
        default=1.0,
        ge=0.0,
        description="Weight of the source for `strategy` weighted, relative to the other sources.",
    )


def _source_of(value: Any) -> Any:  # noqa: ANN401 - pydantic validates the result
    """The table of a source in the form `NAME` or `NAME=WEIGHT`."""
    if not isinstance(value, str):
        return value
    cache, equals, weight = value.partition("=")
    return {"cache": cache, "weight": weight} if equals else {"cache": cache}


SourceEntry = Annotated[
    RecipeSource, BeforeValidator(_source_of, json_schema_input_type=str | RecipeSource)
]
"""A source in a recipe: a table, `NAME`, or `NAME=WEIGHT`."""


class Recipe(SettingsWithPresets):
    """The complete description of a fusion; see docs/fusion.md for every choice."""

    PRESETS: ClassVar = {
        "fusellm": {
            "strategy": "mince",
            "score": "token_ce",
            "kinds": ("span", "mined"),
            "unaligned": "fusellm",
            "top_k": 10,
            "keep_label": False,
            "window_length": 2048,
            "alignment_method": "mined",
            "vocabulary_method": "mined",
        }
    }

    sources: Listed[SourceEntry, str | RecipeSource] = Field(
        min_length=1,
        description="Distribution caches to fuse, each with its weight for `strategy` weighted. "
        "Of equal scores, that of the cache that is listed first wins.",
        json_schema_extra={**_INPUTS, "names": ["--source"], "metavar": "NAME[=WEIGHT] ..."},
    )
    target: str | None = Field(
        default=None,
        min_length=1,
        description="Target model: a name in the store, a folder, hub id, .gguf file, "
        "package:NAME, or a tokenizer's digest. By default the sources' tokenizer, if they share "
        "one.",
        json_schema_extra={**_INPUTS, "short": "-t", "metavar": "MODEL"},
    )
    corpus: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the corpus. By default the corpus of the sources.",
        json_schema_extra={**_INPUTS, "metavar": "NAME"},
    )
    split: str = Field(
        default="train",
        min_length=1,
        description="Split of the corpus that is fused.",
        json_schema_extra={**_INPUTS, "metavar": "NAME"},
    )
    strategy: str = Field(
        default="uniform",
        description="Rule that turns scores of sources into weights: uniform, mince, avgce, "
        "packllm, weighted, single, one that a plugin registers, or one that is fitted: em, "
        "loglinear, gate, temperature.",
        json_schema_extra={**_WEIGHTING, "metavar": "NAME"},
    )
    score: Score = Field(
        default="bits_per_byte",
        description="Score of a source on a text; smaller is better. bits_per_byte: comparable "
        "across tokenizers. aligned_ce: cross-entropy at aligned positions. token_ce: "
        "cross-entropy of the source's own tokens, as in the paper.",
        json_schema_extra=_WEIGHTING,
    )
    granularity: Granularity = Field(
        default="document",
        description="Unit of text over which sources are scored and weighted.",
        json_schema_extra=_WEIGHTING,
    )
    fit: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{16,64}$",
        description="Fit of a learned strategy, by its digest or the first 16 digits. By default "
        "it is found in the store, or made and stored.",
        json_schema_extra={**_WEIGHTING, "metavar": "DIGEST"},
    )
    fit_split: str = Field(
        default="train",
        min_length=1,
        description="Split of the corpus that a learned strategy is fitted on.",
        json_schema_extra={**_WEIGHTING, "metavar": "NAME"},
    )
    fit_by: FitBy = Field(
        default="global",
        description="What the weights of strategy em depend on. global: nothing. domain: the "
        "folder or file of a document. entropy: how unsure the sources are at a position.",
        json_schema_extra=_WEIGHTING,
    )
    fit_temperature: bool = Field(
        default=False,
        description="Whether em, loglinear and gate fit a temperature of each source first.",
        json_schema_extra=_WEIGHTING,
    )
    # By a `mined` pair the source has read other text than the target.
    kinds: Listed[AcceptedKind, AcceptedKind] = Field(
        default=listed("span", "inside"),
        min_length=1,
        description="Alignment kinds that may supervise a position. span: both tokens end at the "
        "same byte. inside: the target's token ends inside the source's; the row before it, "
        "conditioned on the bytes since. mined: paired by edit distance, as in the paper.",
        json_schema_extra={**_POSITIONS, "names": ["--kind"]},
    )
    unaligned: UnalignedPolicy = Field(
        default="skip",
        description="Distribution at positions that no source supervises. skip: none. label: the "
        "next token alone. target: the target's own row. fusellm: the token itself alone, as in "
        "FuseLLM's code.",
        json_schema_extra=_POSITIONS,
    )
    target_cache: str | None = Field(
        default=None,
        description="Distribution cache of the target, for `unaligned` target. By default the "
        "cache that `target` names.",
        json_schema_extra={**_POSITIONS, "metavar": "NAME"},
    )
    top_k: int = Field(
        default=32,
        ge=1,
        description="Maximum number of entries kept of each fused distribution.",
        json_schema_extra={**_OUTPUT, "short": "-k"},
    )
    min_probability: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Least probability of an entry. The others join the tail, except for the most "
        "probable and, with `keep_label`, the next token. By default none does.",
        json_schema_extra={**_OUTPUT, "metavar": "P"},
    )
    logprob_step: float | None = Field(
        default=None,
        ge=MIN_STEP,
        le=MAX_STEP,
        description="Step in nats to which log-probabilities are rounded, such as 0.0625: the "
        "shared form needs fewer bytes for them. A row keeps its mass. By default none is.",
        json_schema_extra={**_OUTPUT, "metavar": "NATS"},
    )
    keep_label: bool | None = Field(
        default=None,
        description="Whether each fused distribution holds the next token, with the exact "
        "probability that the sources give it. By default it does, unless rows of a source are "
        "samples.",
        json_schema_extra=_OUTPUT,
    )
    window_length: int = Field(
        default=1024,
        ge=1,
        description="Maximum number of target tokens in a window.",
        json_schema_extra=_OUTPUT,
    )
    packing: Packing | None = Field(
        default=None,
        description="How windows are cut. stream: from all documents laid end to end. document: "
        "from each document alone. whole: between documents, so that none is cut. By default whole "
        "for conversations, stream for texts.",
        json_schema_extra=_OUTPUT,
    )
    vocabulary_method: VocabularyMethod = DEFAULT_VOCABULARY
    alignment_method: TokenMethod = DEFAULT_METHOD
    rows_per_shard: int = Field(
        default=65_536,
        ge=1,
        description="Target positions of one shard, which is computed whole.",
        json_schema_extra=_OUTPUT,
    )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, as hexadecimal."""
        return digest_bytes(canonical_json(self.model_dump(mode="json")))

    @property
    def has_window_table(self) -> bool:
        """Whether windows begin where documents do, so that their beginnings are stored."""
        return self.packing in ("document", "whole")

    @property
    def target_digest(self) -> str | None:
        """The target where it is a tokenizer's digest, whole or its first 16 digits or more."""
        if self.target is not None and _DIGEST.fullmatch(self.target):
            return self.target
        return None

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str = "the recipe") -> Self:
        """Validate plain values; messages name the recipe by `where`.

        Raises:
            InvalidInputError: a key is unknown (the nearest right one is suggested) or missing,
                or a value is invalid.
        """
        sources = content.get("sources")
        for number, source in enumerate(sources if isinstance(sources, list) else [], start=1):
            if isinstance(source, Mapping):
                check_keys(source, list(RecipeSource.model_fields), f"source {number} of {where}")
        return parse_settings(cls, content, where)

    @field_validator("strategy")
    @classmethod
    def _strategy_is_registered(cls, name: str, info: ValidationInfo) -> str:
        if info.context != KEPT:
            # Imported when it is used, because it imports NumPy.
            from fusestore.fuse.strategies import check_strategy

            check_strategy(name)
        return name

    @field_validator("kinds")
    @classmethod
    def _kinds_in_order(cls, kinds: tuple[AcceptedKind, ...]) -> tuple[AcceptedKind, ...]:
        if len(set(kinds)) < len(kinds):
            raise ValueError("kinds lists a kind twice")
        # Their order has no effect, so it must not change the digest.
        return tuple(kind for kind in get_args(AcceptedKind) if kind in kinds)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [source.cache for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("a cache is listed twice among the sources")
        if self.strategy == "single" and len(names) != 1:
            raise ValueError(f"strategy 'single' takes one source, not {len(names)}")
        weights = [source.weight for source in self.sources]
        if not sum(weights) > 0:
            raise ValueError(f"the sources' weights {weights} do not sum to a positive number")
        if self.strategy in _WITHOUT_WEIGHTS and any(weight != 1.0 for weight in weights):
            raise ValueError(
                f"strategy {self.strategy!r} does not use weights; "
                "remove them or choose strategy 'weighted'"
            )
        if self.fit is not None and self.strategy not in LEARNED:
            raise ValueError(
                f"strategy {self.strategy!r} uses no fit; remove it or choose one of "
                f"{', '.join(sorted(LEARNED))}"
            )
        if self.target_cache is not None and self.unaligned != "target":
            raise ValueError("target_cache is only used with unaligned = 'target'")
        # Any other target may be the name of a cache in the store.
        digest_only = self.target is None or self.target_digest is not None
        if self.unaligned == "target" and self.target_cache is None and digest_only:
            raise ValueError(
                "unaligned = 'target' and target_cache go together: name the target's cache"
            )
        return self


def load_recipe(location: Location) -> Recipe:
    """Read a recipe from a .toml or .json file.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: it is neither, or holds no valid recipe.
    """
    return Recipe.parse(read_settings_file(location), f"the recipe {location}")
