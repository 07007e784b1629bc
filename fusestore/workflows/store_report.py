"""`store_report` and `write_report`: the page of a store, from what the store holds alone.

No model is opened and nothing is trained. A part that cannot be made is absent, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fusestore.align.report.columns import shown_text
from fusestore.align.report.overview import alignment_summary
from fusestore.align.stored import open_alignment
from fusestore.cache.reader import open_cache
from fusestore.corpus.corpus import open_corpus
from fusestore.errors import FusestoreError
from fusestore.forecast.analysis import analyze_fusion
from fusestore.forecast.forecast import Forecast
from fusestore.forecast.settings import ForecastSettings
from fusestore.fuse.choices import LEARNED
from fusestore.fuse.folder import PLAN_FILE
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.manifest import FusedManifest, FusionPlan
from fusestore.fuse.resolve import find_inputs, with_names_now
from fusestore.progress import Reporter, SilentReporter
from fusestore.report.learning_curves import LearningCurve
from fusestore.report.output_file import check_output_file
from fusestore.report.page.charts import check_charts
from fusestore.report.page.content import (
    AbsentPart,
    AlignmentReport,
    ReportArtifact,
    ShownDocument,
    SourceReport,
    StoreReport,
    UnmatchedToken,
    ViewerReport,
)
from fusestore.report.page.html import render
from fusestore.report.page.row_sample import source_report
from fusestore.report.page.settings import ReportSettings
from fusestore.report.page.token_rows import DocumentRows, document_rows_of
from fusestore.storage.location import Location
from fusestore.storage.publish import publish_beside
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.inventory import check_begun, describe
from fusestore.store.layout import Store
from fusestore.store.lineage import Lineage
from fusestore.store.registry import Artifact
from fusestore.tokenizers.vocabulary_table import load_vocabulary
from fusestore.train.manifest import TrainingManifest
from fusestore.workflows.managing.usage import store_usage

FORECAST_TOKENS = 100_000
"""Target tokens that the page's forecast measures, about."""

_UNMATCHED_SHOWN = 10

_Part = TypeVar("_Part")


def check_report_file(file: str, store: Location) -> None:
    """Check that the page can be written to a file, before anything slow begins.

    Raises:
        InvalidInputError: the file is not called `….html`, or lies in the store.
        MissingDependencyError: the package that draws the charts is not installed.
    """
    check_output_file(file, store, "report", "a page of HTML", ".html")
    check_charts()


def write_report(
    store: Store,
    file: str,
    settings: ReportSettings | None = None,
    *,
    reporter: Reporter | None = None,
) -> StoreReport:
    """Write the page of a store to a file, replacing it.

    Args:
        store: the store.
        file: path or URL outside the store; ends with `.html`.
        settings: what the page shows.
        reporter: receives progress updates.

    Returns:
        What the page shows, but for the tokens.

    Raises:
        NotFoundError: no such store, or it has no fused dataset of the name in the settings.
        InvalidInputError, MissingDependencyError: see `check_report_file`.
        AccessDeniedError, StorageError: the file cannot be written; it is as it was.
    """
    check_report_file(file, store.location)
    collected = _Collected(store, settings or ReportSettings(), reporter or SilentReporter())
    report = collected.report()
    fusion = collected.fusion
    token_bytes: tuple[bytes, ...] = ()
    vocab_size = 0
    if fusion is not None and collected.documents:
        vocabulary = load_vocabulary(store, str(fusion.recipe.target))
        token_bytes, vocab_size = vocabulary.token_bytes, fusion.vocab_size
    page = render(report, collected.documents, token_bytes, vocab_size)
    publish_beside(Location.parse(file), page.encode())
    return report


class _Collected:
    """The parts of a report, and what its token viewer shows."""

    def __init__(self, store: Store, settings: ReportSettings, reporter: Reporter) -> None:
        self.documents: list[DocumentRows] = []
        self.fusion: Fusion | None = None
        self._store, self._settings, self._reporter = store, settings, reporter
        self._absent: list[AbsentPart] = []

    def report(self) -> StoreReport:
        if self._settings.fused is not None:
            check_begun(self._store, "fused", self._settings.fused)
        lineage = Lineage.of(self._store)
        usage = store_usage(self._store)
        sizes = {entry.name: entry for entry in usage.entries}
        complete: dict[str, list[Artifact]] = {}
        for each in lineage.artifacts:
            if each.state == "complete":
                complete.setdefault(each.kind.name, []).append(each)
        sources = self._each("Sources", complete.get("cache", []), self._source)
        alignments = self._each("Alignments", complete.get("alignment", []), self._alignment)
        curves = self._each("Training", complete.get("model", []), _curve)
        for part, found, reason in (
            ("Sources", sources, "the store has no distribution cache."),
            (
                "Alignments",
                alignments,
                "the store has no alignment; sources with the target's own tokens need none.",
            ),
            ("Training", curves, "no model of the store was evaluated during training."),
        ):
            if not found:
                self._leave_out(part, reason)
        viewer, forecast, forecast_tokens = self._fused(lineage.artifacts)
        return StoreReport(
            store=str(self._store.location),
            artifacts=tuple(
                ReportArtifact(
                    artifact=each.path,
                    kind=each.kind.name,
                    state=each.state,
                    description=describe(each),
                    num_bytes=sizes[each.path].num_bytes,
                    bytes_per_token=sizes[each.path].bytes_per_token,
                    inputs=tuple(
                        found.artifact.path
                        for found in lineage.inputs(each)
                        if found.artifact is not None
                    ),
                )
                for each in lineage.artifacts
            ),
            other_bytes=usage.other_bytes,
            sources=tuple(sources),
            alignments=tuple(alignments),
            forecast=forecast,
            forecast_tokens=forecast_tokens,
            curves=tuple(curve for curve in curves if curve is not None),
            viewer=viewer,
            absent=tuple(self._absent),
        )

    def _each(
        self, part: str, artifacts: list[Artifact], make: Callable[[Artifact], _Part | None]
    ) -> list[_Part]:
        """What is made of each artifact; one that fails is left out, and its reason is kept."""
        found = []
        for artifact in artifacts:
            try:
                made = make(artifact)
            except FusestoreError as error:
                self._leave_out(part, f"{artifact.path}: {error}")
                continue
            if made is not None:
                found.append(made)
        return found

    def _leave_out(self, part: str, reason: str) -> None:
        self._absent.append(AbsentPart(part=part, reason=reason))

    def _source(self, artifact: Artifact) -> SourceReport:
        manifest = artifact.manifest or {}
        model = artifact.kind.model(manifest) or str(manifest["fingerprint"]["source"])
        return source_report(artifact.name, model, open_cache(self._store, artifact.name))

    def _alignment(self, artifact: Artifact) -> AlignmentReport:
        alignment = open_alignment(artifact.location)
        summary = alignment_summary(alignment, _UNMATCHED_SHOWN)
        fingerprint = alignment.manifest.fingerprint
        return AlignmentReport(
            alignment=artifact.name,
            method=fingerprint.method,
            num_tokens=fingerprint.num_target_tokens,
            coverage=alignment.coverage,
            unmatched=tuple(
                UnmatchedToken(
                    side=side,
                    token=shown_text(row.text.encode()),
                    times=row.unmatched,
                    total=row.total,
                )
                for side, rows in summary.unmatched
                for row in rows
            ),
        )

    def _fused(
        self, artifacts: Sequence[Artifact]
    ) -> tuple[ViewerReport | None, Forecast | None, int | None]:
        wanted = self._settings.fused
        name = next(
            (
                each.name
                for each in artifacts
                if each.kind.name == "fused" and each.damage is None and wanted in (None, each.name)
            ),
            None,
        )
        if name is None:
            for part in ("Token viewer", "Forecast"):
                self._leave_out(part, "the store has no fused dataset, which says what is fused.")
            return None, None, None
        try:
            fusion = self.fusion = self._find_fusion(name)
        except FusestoreError as error:
            for part in ("Token viewer", "Forecast"):
                self._leave_out(part, f"the inputs of fused/{name} cannot be read: {error}")
            return None, None, None
        viewer = forecast = None
        try:
            viewer = self._viewer(name, fusion)
        except FusestoreError as error:
            self._leave_out("Token viewer", str(error))
        try:
            forecast = self._forecast(fusion)
        except FusestoreError as error:
            self._leave_out("Forecast", str(error))
        return viewer, forecast, fusion.num_tokens

    def _find_fusion(self, name: str) -> Fusion:
        folder = self._store.fused(name)
        if (folder / MANIFEST_FILE).exists():
            plan = FusedManifest.load(folder / MANIFEST_FILE).plan
        else:
            plan = FusionPlan.load(folder / PLAN_FILE)
        recipe = with_names_now(self._store, plan)
        splits = open_corpus(self._store, str(recipe.corpus)).manifest.splits
        if self._settings.split in splits:
            recipe = recipe.model_copy(update={"split": self._settings.split})
        plan = plan.model_copy(update={"recipe": recipe})
        return find_inputs(self._store, recipe, plan=plan, save_fit=False)

    def _viewer(self, name: str, fusion: Fusion) -> ViewerReport:
        settings = self._settings
        chosen = chosen_documents(fusion, settings.documents, settings.max_tokens)
        with self._reporter.stage("Reading documents", "tokens") as progress:
            lengths = np.diff(fusion.offsets)
            total, done = int(lengths[chosen].sum()), 0
            for index in chosen:
                self.documents.append(document_rows_of(fusion, index, settings.entries))
                done += int(lengths[index])
                progress(done, total)
        return ViewerReport(
            fused=name,
            strategy=fusion.recipe.strategy,
            split=fusion.recipe.split,
            sources=tuple(source.cache for source in fusion.recipe.sources),
            documents=tuple(
                ShownDocument(document=rows.document, num_tokens=len(rows.token_ids))
                for rows in self.documents
            ),
            documents_of_split=len(fusion.documents),
            tokens_of_split=fusion.num_tokens,
        )

    def _forecast(self, fusion: Fusion) -> Forecast | None:
        if not self._settings.forecast:
            self._leave_out("Forecast", "it was not asked for.")
            return None
        recipe = fusion.recipe
        if fusion.fitted is not None and fusion.fitted.manifest.fingerprint.split == recipe.split:
            self._leave_out(
                "Forecast",
                f"the strategy {recipe.strategy} was fitted to split {recipe.split}, which would "
                "be measured.",
            )
            return None
        names = tuple(name for name in ForecastSettings().strategies if name not in LEARNED)
        with self._reporter.stage(f"Analyzing {recipe.split}", "tokens") as progress:
            return analyze_fusion(
                sampled_fusion(fusion, FORECAST_TOKENS),
                strategies=names,
                left_out=f"{', '.join(LEARNED)}: `fusestore forecast` fits and measures them",
                progress=progress,
            )


def chosen_documents(fusion: Fusion, most: int, max_tokens: int) -> list[int]:
    """Documents of the split with tokens, spread evenly: indices, at least one."""
    lengths = np.diff(fusion.offsets)
    filled = np.flatnonzero(lengths)
    spread = filled[np.arange(min(most, len(filled))) * len(filled) // min(most, len(filled))]
    chosen: list[int] = []
    left = max_tokens
    for index in spread.tolist():
        if not chosen or lengths[index] <= left:
            chosen.append(index)
            left -= int(lengths[index])
    return chosen


def sampled_fusion(fusion: Fusion, max_tokens: int) -> Fusion:
    """The fusion of as many documents, spread evenly, as have about so many tokens."""
    if fusion.num_tokens <= max_tokens:
        return fusion
    count = max(1, len(fusion.documents) * max_tokens // fusion.num_tokens)
    chosen = np.arange(count) * len(fusion.documents) // count
    lengths = np.diff(fusion.offsets)[chosen]
    if not lengths.any():
        return fusion
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return replace(fusion, documents=fusion.documents[chosen], offsets=offsets)


def _curve(artifact: Artifact) -> LearningCurve | None:
    manifest = artifact.kind.load(artifact.location)
    if not isinstance(manifest, TrainingManifest):
        return None
    return LearningCurve.of(artifact.name, manifest)
