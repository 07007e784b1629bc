"""`Recipe`: the complete, hashable description of a fusion.

corpus = "sotu"
split = "train"
target = "4f1c…"            # tokenizer digest, or its first 16 digits
strategy = "mince"

[[sources]]
cache = "smollm2"

[[sources]]
cache = "gemma3"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fusestore.align.kinds import AlignmentMethod, MapMethod
from fusestore.fuse.packing import Packing
from fusestore.fuse.unaligned import UnalignedPolicy
from fusestore.storage.location import Location
from fusestore.store.manifest import Frozen, canonical_json, digest_bytes
from fusestore.store.settings_file import check_keys, parse_settings, read_settings_file

Score = Literal["bits_per_byte", "aligned_ce", "token_ce"]
Granularity = Literal["document", "window", "token"]
AcceptedKind = Literal["span", "mined"]

_WITHOUT_WEIGHTS = frozenset({"mince", "avgce", "packllm", "uniform", "single"})


class RecipeSource(Frozen):
    """One source of a fusion.

    Attributes:
        cache: name of its distribution cache.
        alignment: name of its alignment to the target. Where there is only one of the recipe's
            `alignment_method`, or the tokenizer is the target's own, it need not be named.
        weight: its share for the strategy `weighted`, relative to the others'.
    """

    cache: str = Field(min_length=1)
    alignment: str | None = None
    weight: float = Field(default=1.0, ge=0.0)


class Recipe(Frozen):
    """What is fused, and how. See docs/fusion.md for the meaning of every choice.

    Attributes:
        corpus: name of the corpus.
        split: its split that is fused.
        target: digest of the target's tokenizer, or its first 16 digits.
        sources: in order; a tie between scores goes to the first.
        strategy: a name registered in `fusestore.fuse.strategies`.
        score: what strategies compare.
        granularity: the unit over which sources are scored and weighted.
        kinds: alignment kinds that may supervise. `span` alone is the default: equal end offsets
            are the only pairs where both models have read the same text. The paper's is both.
        unaligned: what stands where no source may supervise.
        top_k: entries kept per position, k′.
        window_length: target tokens per window.
        packing: whether a window may hold several documents; see `fusestore.fuse.packing`.
        target_cache: the target's own distribution cache, for `unaligned = "target"`.
        vocabulary_method: how the vocabulary maps were made.
        alignment_method: how the token alignments were made.
        rows_per_shard: positions per file.
    """

    corpus: str = Field(min_length=1)
    split: str = Field(min_length=1)
    target: str = Field(min_length=1)
    sources: tuple[RecipeSource, ...] = Field(min_length=1)
    strategy: str = "mince"
    score: Score = "bits_per_byte"
    granularity: Granularity = "document"
    kinds: tuple[AcceptedKind, ...] = Field(default=("span",), min_length=1)
    unaligned: UnalignedPolicy = "skip"
    top_k: int = Field(default=32, ge=1)
    window_length: int = Field(default=1024, ge=1)
    packing: Packing = "stream"
    target_cache: str | None = None
    vocabulary_method: MapMethod = "mined"
    alignment_method: AlignmentMethod = "hybrid"
    rows_per_shard: int = Field(default=65536, ge=1)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, as hexadecimal."""
        return digest_bytes(canonical_json(self.model_dump(mode="json")))

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str = "the recipe") -> Self:
        """Make a recipe of plain values; `where` is what messages call it.

        Raises:
            InvalidInputError: a key is unknown (the nearest right one is suggested) or missing,
                or a value does not fit.
        """
        sources = content.get("sources")
        for number, source in enumerate(sources if isinstance(sources, list) else [], start=1):
            if isinstance(source, Mapping):
                check_keys(source, list(RecipeSource.model_fields), f"source {number} of {where}")
        return parse_settings(cls, content, where)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [source.cache for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("a cache is listed twice among the sources")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("kinds lists a kind twice")
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
        if (self.unaligned == "target") != (self.target_cache is not None):
            raise ValueError(
                "unaligned = 'target' and target_cache go together: name the target's cache"
                if self.target_cache is None
                else "target_cache is only used with unaligned = 'target'"
            )
        return self


def load_recipe(location: Location) -> Recipe:
    """Read a recipe from a .toml or .json file.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: it is neither, or holds no valid recipe.
    """
    return Recipe.parse(read_settings_file(location), f"the recipe {location}")
