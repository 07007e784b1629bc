"""`compare`: bits per byte of models and of ensembles of caches on the same held-out text."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fusestore.errors import InvalidInputError
from fusestore.forecast.forecast import Forecast
from fusestore.merge.artifact import ModelKind, how_made
from fusestore.models.model import Model
from fusestore.models.precision import Precision, PrecisionSetting, settle_precision
from fusestore.progress import Reporter, SilentReporter
from fusestore.report.learning_curves import LearningCurve, TokenSaving, token_savings
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen, Manifest
from fusestore.store.shown_html import tables_html
from fusestore.store.shown_table import ShownTable
from fusestore.train.held_out import held_out_tokens, score
from fusestore.train.manifest import TrainingManifest

_SAME_TEXT = 0.01
"""Most bits per byte between two scores of one model on one text, in whatever precision."""


class ComparedRow(Frozen):
    """The score of one model, cache or ensemble.

    Attributes:
        name: `model/NAME` of the store, the spec of another model, `cache/NAME`, or `ensemble`.
        made: how it was made.
        bits_per_byte: of the held-out text; lower is better.
        covered: share of the tokens that it was measured on. It is below 1 for caches of another
            tokenizer; their scores are not comparable with the others.
    """

    name: str
    made: str
    bits_per_byte: float
    covered: float


class Comparison(Frozen):
    """Scores on one split.

    Attributes:
        corpus, split: the text.
        precision: format of the models' matrix products.
        rows: the best first.
        curves: of the store's models that were evaluated on this text during training.
        savings: what distributions bring, by the curves.
    """

    corpus: str
    split: str
    precision: Precision
    rows: tuple[ComparedRow, ...]
    curves: tuple[LearningCurve, ...]
    savings: tuple[TokenSaving, ...]

    def __repr__(self) -> str:
        """The best of the rows; see `table` for all."""
        shown = ", ".join(f"{row.name} {row.bits_per_byte:.4f}" for row in self.rows[:4])
        more = f" and {len(self.rows) - 4} more" if len(self.rows) > 4 else ""
        return f"Comparison({self.corpus}/{self.split}, bits per byte: {shown}{more})"

    __str__ = __repr__  # Pydantic's shows every field.

    def table(self) -> ShownTable:
        """The rows for people, the best first."""
        return ShownTable(
            f"{self.corpus}/{self.split}, models in {self.precision}",
            ["model or ensemble", "bits/byte", "of the text", "made from"],
            [
                [row.name, f"{row.bits_per_byte:.4f}", f"{row.covered:.1%}", row.made]
                for row in self.rows
            ],
        )

    def _repr_html_(self) -> str:
        return tables_html([self.table()], [saving.sentence for saving in self.savings])


def compare(
    store: Store,
    corpus: str,
    split: str,
    models: Sequence[Model | str | os.PathLike[str]] = (),
    *,
    forecast: Forecast | None = None,
    precision: PrecisionSetting = "auto",
    reporter: Reporter | None = None,
) -> Comparison:
    """Score models on a split, each by its own tokenizer, and the sources of a forecast.

    Args:
        store: holds the corpus, and the complete models that are compared.
        corpus: name of the corpus.
        split: a split of the corpus.
        models: further models, or what `Model.open` takes with this store.
        forecast: of caches on this split; its sources and their uniform ensemble are compared.
        precision: format of the models' matrix products, on the CPU; `auto`: bfloat16 where the
            processor has it in hardware.
        reporter: receives progress updates.

    Raises:
        NotFoundError: there is no such corpus or model.
        InvalidInputError: there is no such split, the forecast is of another split, a model is no
            causal language model, or there is nothing to compare.
    """
    reporter = reporter or SilentReporter()
    settled = settle_precision(precision, "cpu", reporter)
    others = [Model.open(model, store=store) for model in models]
    for model in others:
        # Raises the error of a missing folder before anything is scored.
        _ = model.folder
    rows, curves = [], []
    for artifact in list_artifacts(store):
        if artifact.kind.name == ModelKind.name and artifact.manifest is not None:
            model, name = Model.open(artifact.name, store=store), artifact.path
            bits_per_byte = _bits_per_byte(store, model, corpus, split, name, settled, reporter)
            rows.append(_row(name, how_made(artifact.manifest), bits_per_byte))
            manifest = artifact.kind.load(artifact.location)
            curve = _curve(artifact.name, manifest, bits_per_byte)
            curves += [curve] if curve is not None else []
    for model in others:
        bits_per_byte = _bits_per_byte(store, model, corpus, split, model.spec, settled, reporter)
        rows.append(_row(model.spec, "not made here", bits_per_byte))
    if not rows and forecast is None:
        raise InvalidInputError(
            f"There are no models in {store.location} to compare. Train or merge models, or name "
            "other models."
        )
    if forecast is not None:
        if (forecast.recipe.corpus, forecast.recipe.split) != (corpus, split):
            raise InvalidInputError(
                f"The forecast is of {forecast.recipe.corpus}/{forecast.recipe.split}, not of "
                f"{corpus}/{split}. Forecast that split."
            )
        rows += _of_caches(forecast)
    rows.sort(key=lambda row: (row.bits_per_byte, row.name))
    return Comparison(
        corpus=corpus,
        split=split,
        precision=settled,
        rows=tuple(rows),
        curves=tuple(curves),
        savings=tuple(token_savings(curves)),
    )


def _curve(name: str, manifest: Manifest, bits_per_byte: float) -> LearningCurve | None:
    """The curve of a trained model, if it was evaluated on the text that has this score.

    The manifest does not name that text. Its score of the published weights tells.
    """
    if not isinstance(manifest, TrainingManifest):
        return None
    recorded = manifest.result_metrics.get("bits_per_byte")
    if recorded is None or abs(recorded - bits_per_byte) > _SAME_TEXT:
        return None
    return LearningCurve.of(name, manifest)


def _row(name: str, made: str, bits_per_byte: float) -> ComparedRow:
    return ComparedRow(name=name, made=made, bits_per_byte=bits_per_byte, covered=1.0)


def _bits_per_byte(
    store: Store,
    model: Model,
    corpus: str,
    split: str,
    name: str,
    precision: Precision,
    reporter: Reporter,
) -> float:
    tokens = held_out_tokens(store, model.tokenizer, corpus, split)
    return score(tokens, precision, name, reporter, model.load(device="cpu"))["bits_per_byte"]


def _of_caches(forecast: Forecast) -> list[ComparedRow]:
    """The sources alone, and their uniform mixture, which does not depend on the labels."""
    candidates = [(f"cache/{s.cache}", "its cached rows", s.alone) for s in forecast.sources]
    candidates += [
        ("ensemble", f"uniform mixture of {', '.join(mixture.sources)}", mixture)
        for mixture in forecast.strategies
        if mixture.strategy == "uniform"
    ]
    return [
        ComparedRow(
            name=name,
            made=made,
            bits_per_byte=mixture.bits_per_byte,
            covered=mixture.covered,
        )
        for name, made, mixture in candidates
        if mixture.bits_per_byte is not None
    ]
