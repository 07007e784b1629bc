"""A fused dataset's JSON files: the plan, one receipt per shard, and the manifest.

The plan is written before the first shard and names everything that changes content, so a run
with other inputs cannot resume it. Receipts have the sums that statistics are made of, so the
manifest does not depend on interruptions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fusestore.fuse.choices import KIND_NAMES
from fusestore.fuse.layout import fused_arrays, shared_arrays
from fusestore.fuse.recipe import KEPT, Recipe
from fusestore.store.file_listing import FileListing
from fusestore.store.licenses import LicensedInput
from fusestore.store.manifest import Count, Frozen, Manifest
from fusestore.store.receipts import Receipt
from fusestore.store.stored_size import listing_problem

KIND_CODES = {name: code for code, name in enumerate(KIND_NAMES)}


def _is_empty(value: object) -> bool:
    return value == ()


class SourceDigests(Frozen):
    """The inputs of a source's rows. A map or alignment of None is the identity."""

    cache: str
    cache_digest: str
    vocabulary_map_digest: str | None
    alignment_digest: str | None


class FusionPlan(Manifest):
    """Everything that determines a fused dataset's bytes; kept as `fingerprint.json`.

    Attributes:
        recipe: the whole recipe: corpus, the target's whole digest and every alignment are named.
        corpus_digest: of the corpus that all caches and the target's tokens belong to.
        inputs: of each source, in the recipe's order.
        target_cache_digest: for `unaligned = "target"`.
        vocab_size: tokens of the target.
        sampled: whether rows of any source are samples. If so, the loss is unbiased only at
            temperature 1.
        num_tokens: target tokens of the split, T.
        num_documents: documents of the split.
        tokens_digest: of the target's tokens of the whole corpus.
        documents_digest: SHA-256 of the indices of the split's documents, little-endian int64.
    """

    recipe: Recipe
    corpus_digest: str
    inputs: tuple[SourceDigests, ...]
    target_cache_digest: str | None
    vocab_size: Count
    sampled: bool
    num_tokens: Count
    num_documents: Count
    tokens_digest: str
    documents_digest: str

    @property
    def target_digest(self) -> str:
        """Digest of the target's tokenizer, 64 hexadecimal digits."""
        return str(self.recipe.target)

    @field_validator("recipe", mode="before")
    @classmethod
    def _recipe_is_kept(cls, value: Any) -> Any:  # noqa: ANN401 - the content of a file
        return Recipe.model_validate(value, context=KEPT) if isinstance(value, dict) else value

    @field_validator("recipe")
    @classmethod
    def _recipe_is_whole(cls, recipe: Recipe) -> Recipe:
        if recipe.corpus is None or recipe.target is None:
            raise ValueError("the recipe names no corpus or no target")
        return recipe


class SourceTotals(Frozen):
    """Sums over documents and positions for one source.

    Attributes:
        documents: documents it takes part in.
        documents_won: documents where its score is the lowest (a tie goes to the first source).
        documents_scored: documents that have a score.
        score_sum: sum of those documents' scores, by the recipe's score.
        nats: −Σ log-probability of its own predicted tokens.
        num_bytes: bytes of text that these tokens stand for.
        num_tokens: number of these tokens.
        positions_span: target positions aligned by equal end offsets.
        positions_inside: target positions that end inside one of its tokens.
        positions_mined: target positions aligned by minimum edit distance alone.
        positions_used: target positions with a distribution that it contributes to.
        known_share: `known` of its rows, summed over the positions used; see `FusedRows`.
        unmapped_mass: mass on tokens that the vocabulary map sends nowhere, summed over these.
    """

    documents: Count = 0
    documents_won: Count = 0
    documents_scored: Count = 0
    score_sum: float = 0.0
    nats: float = 0.0
    num_bytes: Count = 0
    num_tokens: Count = 0
    positions_span: Count = 0
    positions_inside: Count = 0
    positions_mined: Count = 0
    positions_used: Count = 0
    known_share: float = 0.0
    unmapped_mass: float = 0.0

    @classmethod
    def add(cls, totals: Iterable[SourceTotals]) -> Self:
        """The sums of all totals, added in their order."""
        listed = list(totals)
        return cls(
            **{name: sum(getattr(each, name) for each in listed) for name in cls.model_fields}
        )


class ShardTotals(Frozen):
    """The content of a fused shard's receipt: the sums that statistics are made of.

    Attributes:
        kinds: positions of each kind, in the order of `KIND_NAMES`.
        sources: in the recipe's order.
    """

    kinds: tuple[Count, ...]
    sources: tuple[SourceTotals, ...]


FusedReceipt = Receipt[ShardTotals]
"""The receipt of a shard in the local form; its `fingerprint_digest` is that of the plan."""


class SourceStatistics(Frozen):
    """Statistics of a source. Shares lie in [0, 1]; a value is None where nothing was measured.

    Attributes:
        cache: its cache's name.
        bits_per_byte: over all its predicted tokens of the split.
        score_mean: mean over documents of the recipe's score.
        documents: documents it takes part in.
        documents_won: share of the split's documents where its score is the lowest.
        positions_span: share of target positions aligned to it by equal end offsets.
        positions_inside: share that end inside one of its tokens.
        positions_mined: share aligned by minimum edit distance alone.
        positions_used: share of target positions with a distribution that it contributes to.
        known_share: mean share of its rows' mass that is known, over the positions used.
        unmapped_mass: mean mass lost in projection, over the positions used.
    """

    cache: str
    bits_per_byte: float | None
    score_mean: float | None
    documents: Count
    documents_won: float
    positions_span: float
    positions_inside: float
    positions_mined: float
    positions_used: float
    known_share: float | None
    unmapped_mass: float | None


class FusedManifest(Manifest):
    """A complete fused dataset; written last, once.

    Attributes:
        form: `local` (mapped into memory) or `shared` (compressed).
        plan: the recipe and all inputs; its digest is the dataset's identity.
        plan_digest, recipe_digest: SHA-256, hexadecimal.
        num_tokens: target positions, T.
        num_documents: documents.
        num_windows: windows of `recipe.window_length` positions; the last may be shorter.
        kinds: positions of each kind, by name.
        sources: in the recipe's order.
        num_bytes: bytes of the arrays' files.
        files: record of each file except for the manifest, by path inside the folder.
        made_from: the models whose distributions were fused, with their licenses; left out if
            nothing is known of them. No part of the content, which the plan determines.
    """

    form: Literal["local", "shared"] = "local"
    plan: FusionPlan
    plan_digest: str
    recipe_digest: str
    num_tokens: Count
    num_documents: Count
    num_windows: Count
    kinds: dict[str, Count]
    sources: tuple[SourceStatistics, ...]
    num_bytes: Count
    files: FileListing
    made_from: tuple[LicensedInput, ...] = Field(default=(), exclude_if=_is_empty)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        recipe = self.plan.recipe
        if self.num_tokens == 0:
            # Readers say that there is nothing to read.
            return self
        arrays = shared_arrays if self.form == "shared" else fused_arrays
        problem = listing_problem(
            arrays(self.num_tokens, recipe.top_k, recipe.rows_per_shard), self.files
        )
        if problem is not None:
            raise ValueError(problem)
        return self


class FusedState(Frozen):
    """A fused dataset as it is now; what `fusestore fuse --json` prints.

    Attributes:
        fused: its name.
        built: whether the command defined it or computed shards.
        complete: whether every shard is computed.
        num_tokens: target tokens.
        num_windows: windows of `recipe.window_length` positions; the last may be shorter.
        num_shards: its shards.
        num_computed_shards: those that are computed; the others are when they are first read.
        plan_digest: its identity.
        plan: the recipe and all inputs.
        manifest: its manifest; null until it is complete.
    """

    fused: str
    built: bool
    complete: bool
    num_tokens: int
    num_windows: int
    num_shards: int
    num_computed_shards: int
    plan_digest: str
    plan: FusionPlan
    manifest: FusedManifest | None
