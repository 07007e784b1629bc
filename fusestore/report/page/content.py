"""`StoreReport`: everything that the page of a store shows, but for the tokens of documents."""

from __future__ import annotations

from pydantic import Field

from fusestore.forecast.forecast import Forecast
from fusestore.report.learning_curves import LearningCurve, token_savings
from fusestore.store.manifest import Frozen


class ReportArtifact(Frozen):
    """One artifact of the store.

    Attributes:
        artifact: `kind/name`.
        kind: of the artifact.
        state: complete, unfinished or damaged.
        description: one line on what it is.
        num_bytes: bytes of all its files.
        bytes_per_token: bytes for each token that it has a row for; null if it has no rows.
        inputs: `kind/name` of the artifacts of the store that it was made from directly.
    """

    artifact: str
    kind: str
    state: str
    description: str
    num_bytes: int = Field(ge=0)
    bytes_per_token: float | None
    inputs: tuple[str, ...]


class SplitScore(Frozen):
    """What a source's own tokens of one split cost it.

    Attributes:
        split: name of the split.
        bits_per_byte: of the text that its predicted tokens stand for.
        num_bytes: of that text.
    """

    split: str
    bits_per_byte: float
    num_bytes: int


class Histogram(Frozen):
    """Shares of rows by a number.

    Attributes:
        edges: of the bins, rising, one more than shares.
        shares: of rows in each bin [edges[i], edges[i + 1]), the last with its upper edge.
        mean: of the number.
        median: of the number.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    mean: float
    median: float


class SourceReport(Frozen):
    """One distribution cache.

    Attributes:
        cache: its name.
        model: what it was captured from.
        top_k: most entries of a row.
        num_rows: rows of the whole cache.
        scores: bits per byte by split, over all rows.
        sampled_rows: rows that the two distributions are of, spread evenly over the documents.
        tail: mass outside the entries; null where it is unknown.
        effective_k: exp(entropy) of a row, the tail counted as one entry: how many equally likely
            tokens it is worth, at least; null where the tail is unknown.
    """

    cache: str
    model: str
    top_k: int
    num_rows: int
    scores: tuple[SplitScore, ...]
    sampled_rows: int
    tail: Histogram | None
    effective_k: Histogram | None


class UnmatchedToken(Frozen):
    """A token that an alignment often leaves alone.

    Attributes:
        side: target: no source row may supervise it; source: its row supervises nothing.
        token: its text; spaces and controls made visible.
        times: occurrences that were left alone.
        total: all occurrences in the corpus.
    """

    side: str
    token: str
    times: int
    total: int


class AlignmentReport(Frozen):
    """One alignment.

    Attributes:
        alignment: its name.
        method: by which it was made.
        num_tokens: target tokens of the corpus.
        coverage: share of the target tokens by alignment kind.
        unmatched: the tokens that fail most, by side and falling number.
    """

    alignment: str
    method: str
    num_tokens: int
    coverage: dict[str, float]
    unmatched: tuple[UnmatchedToken, ...]


class ShownDocument(Frozen):
    """A document in the token viewer.

    Attributes:
        document: its index in the corpus.
        num_tokens: target tokens.
    """

    document: int
    num_tokens: int


class ViewerReport(Frozen):
    """What the token viewer shows.

    Attributes:
        fused: the fused dataset.
        strategy: by which it weights its sources.
        split: that the documents belong to.
        sources: caches in the recipe's order.
        documents: in the viewer.
        documents_of_split: number of all documents of the split.
        tokens_of_split: number of all their target tokens.
    """

    fused: str
    strategy: str
    split: str
    sources: tuple[str, ...]
    documents: tuple[ShownDocument, ...]
    documents_of_split: int
    tokens_of_split: int


class AbsentPart(Frozen):
    """A part of the page that is not there.

    Attributes:
        part: its title.
        reason: why, in one sentence or more.
    """

    part: str
    reason: str


class StoreReport(Frozen):
    """What the page of a store shows; `fusestore report --json` prints it.

    Attributes:
        store: its address.
        artifacts: each kind after the kinds it is made from.
        other_bytes: bytes of files in the store that belong to no artifact.
        sources: one for each complete cache.
        alignments: one for each complete alignment.
        forecast: of the fused dataset's recipe, over a sample of the split; null: see `absent`.
        forecast_tokens: target tokens of the split; the forecast has how many it measured.
        curves: of the models that were evaluated during training.
        viewer: the documents of the token viewer; null: see `absent`.
        absent: parts of the page that are not there, with the reason.
    """

    store: str
    artifacts: tuple[ReportArtifact, ...]
    other_bytes: int = Field(ge=0)
    sources: tuple[SourceReport, ...]
    alignments: tuple[AlignmentReport, ...]
    forecast: Forecast | None
    forecast_tokens: int | None
    curves: tuple[LearningCurve, ...]
    viewer: ViewerReport | None
    absent: tuple[AbsentPart, ...]

    @property
    def savings(self) -> list[str]:
        """What the curves say, in sentences."""
        return [saving.sentence for saving in token_savings(self.curves)]

    def reason(self, part: str) -> str | None:
        """Why a part is not there; None if nothing was said."""
        return next((each.reason for each in self.absent if each.part == part), None)
