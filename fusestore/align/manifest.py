"""An alignment's JSON documents."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from fusestore.align.alignment_arrays import alignment_arrays
from fusestore.align.kinds import AlignmentMethod
from fusestore.store.arrays import ArraySpec
from fusestore.store.file_listing import FileListing
from fusestore.store.manifest import Count, Frozen, Manifest
from fusestore.store.receipts import ShardPlan
from fusestore.store.stored_size import listing_problem

LAYOUT_PART = "layout"
"""Name of the receipt for metadata and document offsets, which are written first."""


class AlignmentFingerprint(Manifest):
    """Everything that determines an alignment's content; all digests are SHA-256, hexadecimal.

    Attributes:
        method: hybrid, span, mined, anchored or exact.
        source_cache_digest: digest of the source's distribution cache.
        corpus_digest: digest of the corpus that both sides tokenize.
        source_tokenizer_digest: the source's tokenizer.
        target_tokenizer_digest: the target's tokenizer.
        source_tokens_digest: the source's ids and offsets.
        target_tokens_digest: the target's ids and offsets.
        vocabulary_map_digest: digest of the map that pairs had to agree with; None without one.
        num_documents: documents on either side.
        num_source_tokens: tokens of the source.
        num_target_tokens: rows of the alignment.
        rows_per_shard: rows in one file of an array.
    """

    method: AlignmentMethod
    source_cache_digest: str
    corpus_digest: str
    source_tokenizer_digest: str
    target_tokenizer_digest: str
    source_tokens_digest: str
    target_tokens_digest: str
    vocabulary_map_digest: str | None
    num_documents: Count
    num_source_tokens: Count
    num_target_tokens: Count
    rows_per_shard: int = Field(ge=1)

    @property
    def arrays(self) -> tuple[ArraySpec, ArraySpec, ArraySpec]:
        """`source_pos`, `kind` and `document_offsets`."""
        return alignment_arrays(self.num_target_tokens, self.num_documents, self.rows_per_shard)

    @property
    def plan(self) -> ShardPlan:
        """Shards of the rows."""
        return ShardPlan(self.num_target_tokens, self.rows_per_shard)


class MethodSample(Frozen):
    """The methods compared on the same documents, drawn evenly from the corpus.

    Attributes:
        num_documents: documents in the sample.
        num_tokens: their target tokens.
        aligned: target tokens that a method aligns, by method.
        same: target tokens that two methods align alike or both leave unaligned, by both methods.
    """

    num_documents: Count
    num_tokens: Count
    aligned: dict[AlignmentMethod, Count]
    same: dict[AlignmentMethod, dict[AlignmentMethod, Count]]


class AlignmentManifest(Manifest):
    """A complete alignment.

    Attributes:
        fingerprint: inputs and settings.
        counts: target tokens by alignment kind.
        unused_source_tokens: source tokens with a row that supervises no target position.
        sample: the methods compared.
        files: record of every other file, by its path in the alignment.
    """

    fingerprint: AlignmentFingerprint
    counts: dict[str, Count]
    unused_source_tokens: Count
    sample: MethodSample
    files: FileListing

    @model_validator(mode="after")
    def _files_hold_the_arrays(self) -> Self:
        problem = listing_problem(self.fingerprint.arrays, self.files)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def coverage(self) -> dict[str, float]:
        """Share of target tokens by alignment kind; all zero without tokens."""
        total = max(self.fingerprint.num_target_tokens, 1)
        return {kind: count / total for kind, count in self.counts.items()}
