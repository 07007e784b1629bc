"""The fingerprint and the manifest of a distribution cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from fusestore.cache.rule import Rule, RuleName
from fusestore.models.quantization import Quantization
from fusestore.store.codec import MAX_DRAWS, MAX_STEP, MIN_STEP
from fusestore.store.licenses import License
from fusestore.store.manifest import Count, Frozen, Manifest, digest_bytes
from fusestore.store.receipts import Receipt, ShardPlan
from fusestore.tokenizers.chat_encoder import TemplateIdentity

DEFAULT_ENGINE = "transformers"
DEFAULT_LOGPROB_STEP = 1 / 16
DEFAULT_ROWS_PER_CHUNK = 2048
DEFAULT_ROWS_PER_SHARD = 262_144

AuditVerdict = Literal["equal", "noise", "different"]
Only = Literal["all", "supervised"]
OnlyKept = Literal["all", "supervised", "imported"]
Profile = Literal["compact", "lossless", "fast"]

TOKENS_PART = "tokens"
"""The part that is written before the first shard: metadata, tokens, order of ids."""


class ModelIdentity(Frozen):
    """The model of the distributions; `vocab_size` is the width of its output, padding included."""

    spec_digest: str
    architecture: str
    vocab_size: int = Field(ge=1)


class CorpusIdentity(Frozen):
    """The corpus that the model read."""

    name: str
    digest: str


class KeptSize(Frozen):
    """How many rows a cache has that does not have one for every token, and in how many runs."""

    num_rows: int = Field(ge=1)
    num_runs: int = Field(ge=1)


class ImportedFile(Frozen):
    """One file that rows were read from.

    Attributes:
        name: its path below the folder that was named, or the file's own name.
        num_bytes: its size.
        sha256: of its bytes, hexadecimal.
    """

    name: str = Field(min_length=1)
    num_bytes: Count
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Origin(Frozen):
    """Where the rows of an imported cache come from.

    Attributes:
        format: the layout of the files.
        files: that the rows were read from, in order.
        options: by which they were read, as text.
    """

    format: str = Field(min_length=1)
    files: tuple[ImportedFile, ...] = Field(min_length=1)
    options: dict[str, str]


def _is_none(value: object) -> bool:
    return value is None


def _is_true(value: object) -> bool:
    return value is True


class Fingerprint(Manifest):
    """Everything that changes a cache's content; written before its first shard.

    Attributes:
        source: the name of the source.
        tokenizer_digest: SHA-256 of the tokenizer's canonical form.
        tokenizer_length: number of the tokenizer's ids; may differ from the model's width.
        add_bos: whether each document begins with BOS; false for conversations.
        template: the chat template by which it read conversations; null for texts.
        only: which tokens have a row: all; or in a cache of conversations the supervised ones,
            the row of which predicts text that is trained on; or those that were imported.
        kept: how many rows these are; null where all tokens have one.
        selection: the rule by which entries were kept: top-k; top-p (of the top k as few as reach
            mass top_p); or sampled (top_k draws from the distribution, with their counts).
        top_k: most entries of a row; with sampled, the number of draws.
        top_p: mass that kept entries reach; null unless the selection is top-p.
        seed: of the draws; null unless the selection is sampled.
        profile: storage of rows: `compact` is smallest, `lossless` keeps the captured float32,
            `fast` is not compressed.
        logprob_step: grid of the log-probabilities in nats; null (or 0 on input) keeps float32. It
            is null with sampled, which has exact counts. Otherwise `compact` needs a grid,
            `lossless` has none and `fast` may have one.
        engine: what computed the rows.
        served_model: the model's name at the servers, if it was given.
        known_tail: whether the mass outside the entries is known; if not, every tail is NaN.
        known_labels: whether each row has the log-probability of the next token. If not, it is NaN
            in the rows where it is not known. Left out where it is true.
        origin: where the rows come from, if they were imported; left out of captured caches.
        dtype: the dtype the model ran in; for `auto` the choice of the first writer; null if the
            engine decided it.
        quantization: the form in which the weights were loaded: as the folder holds them, by
            bitsandbytes (bnb-4bit, bnb-8bit), or dequantized (none).
        max_length: most tokens of a document.
        rows_per_shard, rows_per_chunk: rows per file, and per compressed chunk of it.
        num_documents, num_tokens: D and T of the tokenized corpus.
        on_nan: whether a document with NaN logits stops the run or is skipped.
    """

    source: str
    model: ModelIdentity
    tokenizer_digest: str
    tokenizer_length: int = Field(ge=1)
    corpus: CorpusIdentity
    add_bos: bool
    template: TemplateIdentity | None = None
    only: OnlyKept = "all"
    kept: KeptSize | None = None
    selection: RuleName = "top-k"
    top_k: int = Field(ge=1)
    top_p: float | None = Field(default=None, gt=0, lt=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    profile: Profile = "compact"
    logprob_step: float | None = DEFAULT_LOGPROB_STEP
    engine: str = Field(default=DEFAULT_ENGINE, min_length=1)
    served_model: str | None = None
    known_tail: bool = True
    known_labels: bool = Field(default=True, exclude_if=_is_true)
    origin: Origin | None = Field(default=None, exclude_if=_is_none)
    dtype: Literal["float32", "bfloat16", "float16"] | None
    quantization: Quantization = "stored"
    max_length: int = Field(ge=1)
    rows_per_shard: int = Field(default=DEFAULT_ROWS_PER_SHARD, ge=1)
    rows_per_chunk: int = Field(default=DEFAULT_ROWS_PER_CHUNK, ge=1)
    num_documents: int = Field(ge=1)
    num_tokens: int = Field(ge=1)
    on_nan: Literal["stop", "skip"] = "stop"

    @field_validator("logprob_step")
    @classmethod
    def _check_step(cls, step: float | None) -> float | None:
        if not step:
            return None
        if not MIN_STEP <= step <= MAX_STEP:
            raise ValueError(f"must be 0 (exact) or from {MIN_STEP:g} to {MAX_STEP:g} nats")
        return step

    @model_validator(mode="after")
    def _check_profile(self) -> Self:
        if self.selection != "sampled":
            check_profile(self.profile, self.logprob_step)
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.top_k > self.model.vocab_size:
            raise ValueError(
                f"top_k {self.top_k} is above the model's vocabulary of {self.model.vocab_size}"
            )
        if (self.only == "all") != (self.kept is None):
            raise ValueError(f"only is {self.only}, and kept is {self.kept}")
        if self.kept and not self.kept.num_runs <= self.num_rows <= self.num_tokens:
            raise ValueError(f"kept is {self.kept}, of {self.num_tokens} tokens")
        if self.rows_per_shard % self.rows_per_chunk:
            raise ValueError(
                f"rows_per_shard {self.rows_per_shard} is no multiple of "
                f"rows_per_chunk {self.rows_per_chunk}"
            )
        if self.rule.name == "sampled" and self.logprob_step is not None:
            raise ValueError("logprob_step must be null with selection sampled")
        if not self.known_tail and self.rule.name != "top-k":
            raise ValueError("known_tail is false, so the selection must be top-k")
        if self.origin is None and (self.only == "imported" or not self.known_labels):
            raise ValueError("only imported caches lack rows or labels, and origin is missing")
        if self.rule.name == "sampled" and self.top_k > MAX_DRAWS:
            raise ValueError(f"top_k is {self.top_k}; at most {MAX_DRAWS} draws are counted")
        return self

    @property
    def rule(self) -> Rule:
        """The rule that selects the kept entries."""
        return Rule(self.selection, self.top_k, self.top_p, self.seed)

    @property
    def codes_gaps(self) -> bool:
        """Whether rows are stored as differences and gaps: only a grid has runs of equal values."""
        return self.profile == "compact" and self.selection != "sampled"

    @property
    def num_rows(self) -> int:
        """R, the number of rows."""
        return self.num_tokens if self.kept is None else self.kept.num_rows

    @property
    def is_partial(self) -> bool:
        """Whether tokens that are scored may lack a row, or rows their label's probability."""
        return self.only == "imported" or not self.known_labels

    @property
    def plan(self) -> ShardPlan:
        """The division of the rows into shards."""
        return ShardPlan(self.num_rows, self.rows_per_shard)


def check_profile(profile: Profile, logprob_step: float | None) -> None:
    """Refuse a grid that does not fit the profile; for pydantic's validators.

    Raises:
        ValueError: it does not fit.
    """
    if profile == "compact" and not logprob_step:
        raise ValueError(
            "profile compact needs a logprob_step above 0; lossless keeps exact log-probabilities"
        )
    if profile == "lossless" and logprob_step:
        raise ValueError(
            f"profile lossless keeps exact log-probabilities, so logprob_step {logprob_step:g} "
            "has no effect; leave it out, or use profile compact"
        )


class Audit(Frozen):
    """How far the stored rows of some documents are from a second computation of them.

    Attributes:
        reference: the engine of the second computation.
        num_documents, num_rows: that were compared.
        label_nats: mean absolute difference of the next tokens' log-probabilities.
        largest_label_nats: the largest one.
        worst_document: corpus index of the document with the largest mean.
        worst_document_nats: that mean.
        shared_entries: share of the kept ids that are among those of the second computation.
        limit_nats: what `worst_document_nats` was allowed to be.
        verdict: equal, up to float32 rounding; noise, as of another dtype or of quantization,
            within the limit; different is refused, and in no manifest.
    """

    reference: str
    num_documents: int = Field(ge=1)
    num_rows: int = Field(ge=1)
    label_nats: float = Field(ge=0)
    largest_label_nats: float = Field(ge=0)
    worst_document: Count
    worst_document_nats: float = Field(ge=0)
    shared_entries: float = Field(ge=0, le=1)
    limit_nats: float = Field(gt=0)
    verdict: AuditVerdict


class CacheManifest(Manifest):
    """Marks a cache as complete; written last and once.

    Attributes:
        fingerprint_digest: digest of `fingerprint`.
        fingerprint: what the content depends on.
        scores: sums over the whole corpus, by name.
        skipped_documents: corpus indices of documents without distributions, rising.
        num_bytes: bytes of all files that receipts list.
        content_digest: identifies the content; see `content_digest`.
        model_spec: opens the model on any machine, `package:NAME` or `HUB_ID@COMMIT`; null if it
            was a folder. No part of the content: the fingerprint has the model's digest.
        audit: of the rows of an engine that is not the reference. No part of the content either.
        license: of the model; left out if it is unknown. No part of the content either.
    """

    fingerprint_digest: str
    fingerprint: Fingerprint
    scores: dict[str, float]
    skipped_documents: tuple[Count, ...]
    num_bytes: Count
    content_digest: str
    model_spec: str | None = None
    audit: Audit | None = None
    license: License | None = Field(default=None, exclude_if=_is_none)


def content_digest(receipts: Iterable[Receipt]) -> str:
    """SHA-256 over the receipts' digests, one per line: the tokens part, then shards in order."""
    return digest_bytes("".join(f"{receipt.digest}\n" for receipt in receipts).encode())
