"""What a card says, as data: what `fusestore publish --json` prints as `content`."""

from __future__ import annotations

from pydantic import Field

from fusestore.cache.manifest import Audit
from fusestore.fuse.manifest import SourceStatistics
from fusestore.store.licenses import License
from fusestore.store.manifest import Frozen


class PublishedArtifact(Frozen):
    """One artifact that a card is about.

    Attributes:
        artifact: `kind/name`.
        description: one line.
        num_bytes: bytes of its files.
        manifest_digest: `checksum` of its manifest, which covers all its files: the SHA-256 of the
            manifest's content, not of the file.
        made_from: `kind/name` of what it was made from; the kind alone of what is missing.
    """

    artifact: str
    description: str
    num_bytes: int = Field(ge=0)
    manifest_digest: str
    made_from: tuple[str, ...]


class ModelUsed(Frozen):
    """One model that the published artifacts were made from.

    Attributes:
        role: teacher, base, or merged.
        name: of its cache, or of the model.
        model: what opens it on any machine; null for a folder.
        architecture: class of the model; null if no manifest tells.
        revision: commit of a model of the Hub.
        license: null if it is unknown.
        tokenizer_digest, tokenizer_length: of its tokenizer; null if no manifest tells.
        digest: of the cache's content, or of the model's folder.
    """

    role: str
    name: str
    model: str | None
    architecture: str | None
    revision: str | None
    license: License | None
    tokenizer_digest: str | None
    tokenizer_length: int | None
    digest: str


class CorpusUsed(Frozen):
    """The text, published or not.

    Attributes:
        name, digest: of the corpus.
        license: null if nobody stated it.
        published: whether the documents are among the artifacts.
        num_documents, num_bytes: null if the store does not hold it.
        splits: documents by split.
    """

    name: str
    digest: str
    license: License | None
    published: bool
    num_documents: int | None
    num_bytes: int | None
    splits: dict[str, int]


class CacheFigures(Frozen):
    """The rows of one published cache, and how exact they are.

    Attributes:
        name: of the cache.
        rule: which entries are kept: top-k, top-p or sampled.
        top_k: most entries of a row, or draws.
        top_p: mass that they reach.
        profile: how rows are stored.
        logprob_step: grid of log-probabilities in nats; null: exact, or counts.
        engine: what computed the rows.
        dtype: in which the model ran.
        num_tokens, num_rows: tokens of the corpus, and those with a row.
        bytes_per_token: bytes on disk for each row.
        bits_per_byte: of the model's own tokens, by split.
        outside: mean mass outside the entries in sampled rows; null where it is unknown.
        sampled_rows: rows that it was measured on.
        audit: of the rows against another engine; null without one.
    """

    name: str
    rule: str
    top_k: int
    top_p: float | None
    profile: str
    logprob_step: float | None
    engine: str
    dtype: str | None
    num_tokens: int
    num_rows: int
    bytes_per_token: float
    bits_per_byte: dict[str, float]
    outside: float | None
    sampled_rows: int
    audit: Audit | None


class AlignmentFigures(Frozen):
    """Coverage of one alignment: shares of target tokens by alignment kind."""

    name: str
    source: str
    method: str
    num_tokens: int
    coverage: dict[str, float]


class FusedFigures(Frozen):
    """One fused dataset.

    Attributes:
        name: of the dataset.
        strategy, split, top_k, window_length: of its recipe.
        num_tokens, num_windows: its size.
        bytes_per_token: bytes on disk.
        kinds: shares of target tokens by the kind of their distribution.
        sources: statistics of each source.
    """

    name: str
    strategy: str
    split: str
    top_k: int
    window_length: int
    num_tokens: int
    num_windows: int
    bytes_per_token: float
    kinds: dict[str, float]
    sources: tuple[SourceStatistics, ...]


class ModelFigures(Frozen):
    """One trained or merged model; bits per byte are null without an evaluation.

    Attributes:
        name: of the model.
        how: how it was made.
        merged: whether it was merged; otherwise it was trained.
        adapter: whether it is a LoRA adapter alone.
        num_tokens: that it was trained on.
        bits_per_byte_before: of the model that training started from.
        bits_per_byte: of the published weights.
    """

    name: str
    how: str
    merged: bool
    adapter: bool
    num_tokens: int | None
    bits_per_byte_before: float | None
    bits_per_byte: float | None


class ForecastFigures(Frozen):
    """What fusing was measured to bring: bits per byte over the positions common to all sources.

    Attributes:
        fused: the dataset whose recipe was measured.
        split: the text.
        num_tokens: target tokens that were measured.
        sources, mixtures: bits per byte by name.
        verdict: one sentence.
    """

    fused: str
    split: str
    num_tokens: int
    sources: dict[str, float | None]
    mixtures: dict[str, float | None]
    verdict: str


class CardContent(Frozen):
    """Everything that a card says.

    Attributes:
        artifacts: what is published, inputs first.
        models_used: teachers, bases and merged models, each once.
        corpora, caches, alignments, fused, models, forecasts: figures by kind.
        license: of all of it; null if a part of it is unknown.
        unknown_licenses: the models and published corpora whose license is unknown.
        language: of the texts, if it was given.
        left_out: figures that could not be made, with the reason.
        fusestore_version: that wrote the card.
    """

    artifacts: tuple[PublishedArtifact, ...]
    models_used: tuple[ModelUsed, ...]
    corpora: tuple[CorpusUsed, ...]
    caches: tuple[CacheFigures, ...]
    alignments: tuple[AlignmentFigures, ...]
    fused: tuple[FusedFigures, ...]
    models: tuple[ModelFigures, ...]
    forecasts: tuple[ForecastFigures, ...]
    license: License | None
    unknown_licenses: tuple[str, ...]
    language: tuple[str, ...]
    left_out: tuple[str, ...]
    fusestore_version: str
