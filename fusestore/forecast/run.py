"""`forecast`: what fusing a recipe would bring, from the caches of a store alone."""

from __future__ import annotations

from typing import get_args

from fusestore.cache.reader import open_cache
from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.forecast.analysis import analyze_fusion
from fusestore.forecast.forecast import Forecast
from fusestore.forecast.settings import ForecastSettings
from fusestore.fuse.choices import LEARNED, FitBy, FitMethod
from fusestore.fuse.fits.manifest import Fitted
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_fitted, find_inputs
from fusestore.models.model import Model
from fusestore.models.target import Target
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import Tokenizer


def forecast(
    store: Store,
    recipe: Recipe,
    settings: ForecastSettings | None = None,
    *,
    target: Model | Tokenizer | Target | None = None,
    reporter: Reporter | None = None,
) -> Forecast:
    """Forecast what fusing a recipe would bring; needs no model and no GPU, and begins no dataset.

    Args:
        store: holds what the recipe names. It does not receive the fits of learned strategies.
        recipe: what would be fused, and how.
        settings: the split, which replaces the recipe's, and what to compare; by default the
            defaults of `ForecastSettings`.
        target: the open target; by default found by the recipe's `target`.
        reporter: receives progress updates.

    Raises:
        NotFoundError: no such cache, corpus, split or alignment.
        IncompatibleError: caches of different corpora or for other tokenizers, rows that are
            samples, or imported ones without the probability of every next token.
        InvalidInputError: no such strategy, a learned strategy that is fitted on the measured
            split, or as `find_inputs`.
        NonFiniteError, CorruptionError: a cache is damaged.
    """
    settings = settings or ForecastSettings()
    reporter = reporter or SilentReporter()
    if recipe.strategy in LEARNED and recipe.fit is None:
        _refuse_same_split(recipe.strategy, recipe.fit_split, settings.split)
    for source in recipe.sources:
        if not open_cache(store, source.cache).fingerprint.known_labels:
            raise IncompatibleError(
                f"A forecast measures how well the sources predict the text, but cache "
                f"{source.cache!r} was imported from rows that do not tell the probability of "
                "every next token. Leave it out, or capture the source."
            )
    measured = recipe.model_copy(update={"split": settings.split})
    fusion = find_inputs(store, measured, target, save_fit=False, reporter=reporter)
    if fusion.fitted is not None:
        basis = fusion.fitted.manifest.fingerprint
        if basis.corpus_digest == fusion.corpus_digest:
            _refuse_same_split(recipe.strategy, basis.split, settings.split)
    fits, left_out = _fits(store, fusion, recipe, settings, target, reporter)
    with reporter.stage(f"Analyzing {settings.split}", "tokens") as progress:
        return analyze_fusion(
            fusion,
            strategies=settings.strategies,
            granularities=settings.granularities,
            fits=fits,
            left_out=left_out,
            progress=progress,
        )


def _fits(
    store: Store,
    fusion: Fusion,
    recipe: Recipe,
    settings: ForecastSettings,
    target: Model | Tokenizer | Target | None,
    reporter: Reporter,
) -> tuple[list[Fitted], str | None]:
    """The fits to measure, and why those of the default strategies are left out."""
    names: list[FitMethod] = [name for name in LEARNED if name in settings.strategies]
    if not names or len(fusion.sources) < 2 or any(source.draws for source in fusion.sources):
        return [], None
    by_default = settings.strategies == ForecastSettings().strategies
    listed = ", ".join(names)
    if recipe.fit_split == settings.split:
        if not by_default:
            _refuse_same_split(names[0], recipe.fit_split, settings.split)
        return [], f"{listed}: they would be fitted on split {settings.split!r}, which is measured"
    wanted = [(name, by) for name in names for by in _bases(name)]
    try:
        fits = find_fitted(store, recipe, wanted, target, save=False, reporter=reporter)
    except InvalidInputError as error:
        if not by_default:
            raise
        return [], f"{listed}: {error}"
    # One domain alone says what no domain says.
    return [
        fit
        for fit in fits
        if fit.manifest.fingerprint.by != "domain" or len(fit.manifest.domains) > 1
    ], None


def _bases(name: FitMethod) -> tuple[FitBy, ...]:
    return get_args(FitBy) if name == "em" else ("global",)


def _refuse_same_split(strategy: str, fitted: str, measured: str) -> None:
    if fitted == measured:
        raise InvalidInputError(
            f"Strategy {strategy!r} is fitted on split {fitted!r}, which the forecast measures, so "
            "its figures would be too good. Choose another split to fit on with fit_split "
            "(--fit-split), or to measure with --split."
        )
