"""The summary of a pipeline run: scores of the models, and statistics of the sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import computed_field

from fusestore.cache.reader import Cache
from fusestore.fuse.manifest import SourceStatistics
from fusestore.merge.manifest import MergeManifest
from fusestore.report.learning_curves import LearningCurve, TokenSaving, token_savings
from fusestore.store.manifest import Frozen
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
        masked: share after which no token that is trained on follows, so that no source has a row
            for them; 0 in a corpus of texts.
        documents_won: share of documents where it scored best.
        bytes_per_token: of its cache on disk, per source token.
    """

    name: str
    bits_per_byte: float | None
    aligned_span: float
    aligned_inside: float
    aligned_mined: float
    masked: float
    documents_won: float
    bytes_per_token: float

    @property
    def unaligned(self) -> float:
        """Share of target positions that are not masked and have no row of this source."""
        aligned = self.aligned_span + self.aligned_inside + self.aligned_mined
        return max(0.0, 1 - aligned - self.masked)

    @classmethod
    def of(cls, statistics: SourceStatistics, cache: Cache, masked: float) -> Self:
        """The result from the manifests of the fused dataset and the cache."""
        return cls(
            name=statistics.cache,
            bits_per_byte=statistics.bits_per_byte,
            aligned_span=statistics.positions_span,
            aligned_inside=statistics.positions_inside,
            aligned_mined=statistics.positions_mined,
            masked=masked,
            documents_won=statistics.documents_won,
            bytes_per_token=cache.manifest.num_bytes / max(1, len(cache)),
        )


@dataclass(frozen=True)
class FusionResult:
    """One fused dataset.

    Attributes:
        name: of the fused dataset.
        sources: in the recipe's order.
        num_tokens: its target tokens.
        kinds: number of target tokens by kind of their distribution.
    """

    name: str
    sources: tuple[SourceResult, ...]
    num_tokens: int
    kinds: Mapping[str, int]


@dataclass(frozen=True)
class ModelResult:
    """One trained or merged model; bits per byte of held-out text are None without an evaluation.

    Attributes:
        name: of the model.
        objective: fuse, kd or clm; for a merged model, `METHOD merge`.
        fused: the fused dataset that it was trained on; None for a merged model.
        num_tokens: that it was trained on; 0 for a merged model.
        bits_per_byte_before: of the model that training started from.
        bits_per_byte_after: of the published model.
    """

    name: str
    objective: str
    fused: str | None
    num_tokens: int
    bits_per_byte_before: float | None
    bits_per_byte_after: float | None

    @property
    def kind(self) -> str:
        """How it came about, for sentences."""
        if self.fused is None:
            return "merged model"
        return f"run on {'the text alone' if self.objective == 'clm' else 'distributions'}"

    @classmethod
    def of(cls, name: str, fused: str, manifest: TrainingManifest) -> Self:
        """The result from the training manifest."""
        before = [point.metrics for point in manifest.evaluations if point.step == 0]
        return cls(
            name=name,
            objective=manifest.plan.settings.objective,
            fused=fused,
            num_tokens=manifest.num_tokens,
            bits_per_byte_before=before[0].get("bits_per_byte") if before else None,
            bits_per_byte_after=manifest.result_metrics.get("bits_per_byte"),
        )

    @classmethod
    def of_merge(cls, name: str, manifest: MergeManifest, before: float | None) -> Self:
        """The result from the manifest of a merge, and the score of what its runs started from."""
        metrics = manifest.evaluation.metrics if manifest.evaluation is not None else {}
        return cls(
            name=name,
            objective=f"{manifest.merge.settings.method} merge",
            fused=None,
            num_tokens=0,
            bits_per_byte_before=before,
            bits_per_byte_after=metrics.get("bits_per_byte"),
        )


class Summary(Frozen):
    """The results of a pipeline run; what `fusestore run --json` prints.

    Attributes:
        fusions: in the file's order.
        models: trained models in the file's order, then merged ones.
        curves: of the models that were evaluated during training.
        scored: what is scored of the held-out documents, in words.
        report: file of the page about the store; None if none was asked for.
    """

    fusions: tuple[FusionResult, ...]
    models: tuple[ModelResult, ...]
    curves: tuple[LearningCurve, ...] = ()
    scored: str = "text"
    report: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def savings(self) -> list[TokenSaving]:
        """What the distributions bring, by the curves."""
        return token_savings(self.curves)

    @computed_field(  # type: ignore[prop-decorator]
        description="the best model of each kind, the best kind first, in one sentence; null if "
        "no merged model was scored."
    )
    @property
    def conclusion(self) -> str | None:
        """The best model of each kind, the best kind first, in one sentence.

        None if no merged model was scored: then the table and the curves tell it.
        """
        best: dict[str, tuple[float, str]] = {}
        for model in self.models:
            if model.bits_per_byte_after is not None:
                entry = (model.bits_per_byte_after, model.name)
                best[model.kind] = min(entry, best.get(model.kind, entry))
        if "merged model" not in best or len(best) == 1:
            return None
        (kind, (lowest, name)), *others = sorted(best.items(), key=lambda item: item[1])
        rest = "; ".join(
            f"{other}, the best {kind}, with {bits - lowest:.4f} more"
            for kind, (bits, other) in others
        )
        return (
            f"{name}, the best {kind}, ends with {lowest:.4f} bits per byte of held-out "
            f"{self.scored}; {rest}."
        )

    def tables(self) -> list[ShownTable]:
        """The results as tables for people."""
        tables = [self._sources_table(fusion) for fusion in self.fusions]
        if self.models:
            tables.append(
                ShownTable(
                    f"Bits per byte of held-out {self.scored}",
                    ["model", "objective", "tokens trained", "before", "after", "change"],
                    [self._model_row(model) for model in self.models],
                )
            )
        return tables

    @staticmethod
    def _sources_table(fusion: FusionResult) -> ShownTable:
        is_masked = any(source.masked for source in fusion.sources)
        return ShownTable(
            f"Sources of {fusion.name} on {fusion.num_tokens:,} target tokens",
            [
                "source",
                "bits/byte",
                "span",
                "inside",
                "mined",
                "unaligned",
                *(["masked"] * is_masked),
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
                    *([percent(source.masked)] * is_masked),
                    percent(source.documents_won),
                    f"{source.bytes_per_token:.1f}",
                ]
                for source in fusion.sources
            ],
        )

    @staticmethod
    def _model_row(model: ModelResult) -> list[str]:
        before, after = model.bits_per_byte_before, model.bits_per_byte_after
        change = "" if before is None or after is None else f"{100 * (after / before - 1):+.2f} %"
        return [
            model.name,
            model.objective,
            f"{model.num_tokens:,}" if model.num_tokens else "",
            decimal(before),
            decimal(after),
            change,
        ]
