"""`forecast`: what fusing a recipe would bring, from the caches of a store alone."""

from __future__ import annotations

from fusestore.forecast.analysis import analyze_fusion
from fusestore.forecast.forecast import Forecast
from fusestore.forecast.settings import ForecastSettings
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_inputs
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
        store: holds what the recipe names.
        recipe: what would be fused, and how.
        settings: the split, which replaces the recipe's, and what to compare; by default the
            defaults of `ForecastSettings`.
        target: the open target; by default found by the recipe's `target`.
        reporter: receives progress updates.

    Raises:
        NotFoundError: no such cache, corpus, split or alignment.
        IncompatibleError: caches of different corpora or for other tokenizers, or rows that are
            samples.
        InvalidInputError: no such strategy, or as `find_inputs`.
        NonFiniteError, CorruptionError: a cache is damaged.
    """
    settings = settings or ForecastSettings()
    reporter = reporter or SilentReporter()
    fusion = find_inputs(store, recipe.model_copy(update={"split": settings.split}), target)
    with reporter.stage(f"Analyzing {settings.split}", "tokens") as progress:
        return analyze_fusion(
            fusion,
            strategies=settings.strategies,
            granularities=settings.granularities,
            progress=progress,
        )
