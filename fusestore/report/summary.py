"""The summary of a pipeline run: scores of the models, and statistics of the sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from fusestore.cache.reader import Cache
from fusestore.fuse.manifest import SourceStatistics
from fusestore.report.learning_curves import LearningCurve, TokenSaving, token_savings
from fusestore.store.shown_table import ShownTable, decimal, percent
from fusestore.train.manifest import TrainingManifest


@dataclass(frozen=True)
class SourceResult:
    """One source of the fusion; shares lie in [0, 1].

    Attributes:
        name: its cache.
        bits_per_byte: its own score on the fused split.
        aligned_span: share of target positions aligned by equal end offsets.
        aligned_inside: share that end inside one of its tokens.
        aligned_mined: share aligned by minimum edit distance alone.
        documents_won: share of documents where it scored best.
        bytes_per_token: of its cache on disk, per source token.
    """

    name: str
    bits_per_byte: float | None
    aligned_span: float
    aligned_inside: float
    aligned_mined: float
    documents_won: float
    bytes_per_token: float

    @property
    def unaligned(self) -> float:
        """Share of target positions without a row of this source."""
        return max(0.0, 1 - self.aligned_span - self.aligned_inside - self.aligned_mined)

    @classmethod
    def of(cls, statistics: SourceStatistics, cache: Cache) -> Self:
        """The result from the manifests of the fused dataset and the cache."""
        return cls(
            name=statistics.cache,
            bits_per_byte=statistics.bits_per_byte,
            aligned_span=statistics.positions_span,
            aligned_inside=statistics.positions_inside,
            aligned_mined=statistics.positions_mined,
            documents_won=statistics.documents_won,
            bytes_per_token=cache.manifest.num_bytes / max(1, len(cache)),
        )


@dataclass(frozen=True)
class ModelResult:
    """One trained model; bits per byte of held-out text are None without an evaluation."""

    name: str
    objective: str
    num_tokens: int
    bits_per_byte_before: float | None
    bits_per_byte_after: float | None

    @classmethod
    def of(cls, name: str, manifest: TrainingManifest) -> Self:
        """The result from the training manifest."""
        before = [point.metrics for point in manifest.evaluations if point.step == 0]
        return cls(
            name=name,
            objective=manifest.plan.settings.objective,
            num_tokens=manifest.num_tokens,
            bits_per_byte_before=before[0].get("bits_per_byte") if before else None,
            bits_per_byte_after=manifest.result_metrics.get("bits_per_byte"),
        )


@dataclass(frozen=True)
class Summary:
    """The results of a pipeline run.

    Attributes:
        sources: in the recipe's order.
        models: in the file's order.
        num_tokens: target tokens of the fused dataset.
        kinds: number of target tokens by kind of their distribution.
        curves: of the models that were evaluated during training.
    """

    sources: tuple[SourceResult, ...]
    models: tuple[ModelResult, ...]
    num_tokens: int
    kinds: Mapping[str, int]
    curves: tuple[LearningCurve, ...] = ()

    @property
    def savings(self) -> list[TokenSaving]:
        """What the distributions bring, by the curves."""
        return token_savings(self.curves)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {**asdict(self), "savings": [asdict(saving) for saving in self.savings]}

    def tables(self) -> list[ShownTable]:
        """The results as tables for people."""
        tables: list[ShownTable] = [
            ShownTable(
                f"Sources on {self.num_tokens:,} target tokens",
                [
                    "source",
                    "bits/byte",
                    "span",
                    "inside",
                    "mined",
                    "unaligned",
                    "documents won",
                    "bytes/token",
                ],
                [
                    [
                        source.name,
                        decimal(source.bits_per_byte),
                        percent(source.aligned_span),
                        percent(source.aligned_inside),
                        percent(source.aligned_mined),
                        percent(source.unaligned),
                        percent(source.documents_won),
                        f"{source.bytes_per_token:.1f}",
                    ]
                    for source in self.sources
                ],
            )
        ]
        if self.models:
            tables.append(
                ShownTable(
                    "Held-out bits per byte",
                    ["model", "objective", "tokens trained", "before", "after", "change"],
                    [self._model_row(model) for model in self.models],
                )
            )
        return tables

    @staticmethod
    def _model_row(model: ModelResult) -> list[str]:
        before, after = model.bits_per_byte_before, model.bits_per_byte_after
        change = "" if before is None or after is None else f"{100 * (after / before - 1):+.2f} %"
        return [
            model.name,
            model.objective,
            f"{model.num_tokens:,}",
            decimal(before),
            decimal(after),
            change,
        ]
