"""The analysis behind a forecast: which mixtures are measured, in one pass or a few.

A pass reads the split chunk by chunk, so memory does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.forecast.forecast import Forecast, MixtureForecast, Verdict
from fusestore.forecast.settings import ForecastSettings
from fusestore.forecast.tallies import (
    Mixture,
    MixtureTally,
    PairTally,
    SourceTally,
    SplitTally,
    Tally,
    mean,
)
from fusestore.fuse.choices import LEARNED, Granularity
from fusestore.fuse.fits.manifest import Fitted
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.observation import read_chunks
from fusestore.fuse.strategies import check_strategy
from fusestore.progress import Progress, ignore_progress

MAX_SOURCES_FOR_SUBSETS = 4

_DEFAULTS = ForecastSettings()


def analyze_fusion(
    fusion: Fusion,
    *,
    strategies: Sequence[str] = _DEFAULTS.strategies,
    granularities: Sequence[Granularity] = _DEFAULTS.granularities,
    fits: Sequence[Fitted] = (),
    left_out: str | None = None,
    progress: Progress = ignore_progress,
) -> Forecast:
    """Forecast a fusion.

    Args:
        fusion: what to forecast; its recipe's strategy is measured too.
        strategies: names of registered strategies, other than `single`, for all sources together.
        granularities: units to weigh them by.
        fits: of learned strategies, each of which is measured; those among `strategies` without a
            fit are not.
        left_out: why learned strategies have no fit.
        progress: receives the target tokens done. More than four sources take further passes, which
            the total includes.

    Raises:
        InvalidInputError: no such strategy.
        IncompatibleError: a source's rows are samples. They are unbiased, but give no probability
            for a label that was not drawn.
        NonFiniteError, CorruptionError: a cache is damaged.
    """
    count = len(fusion.sources)
    recipe = fusion.recipe
    for name in strategies:
        check_strategy(name)
    sampled = [source.name for source in fusion.sources if source.draws]
    if sampled:
        raise IncompatibleError(
            f"The rows of {', '.join(sampled)} are samples, which do not give the probability of a "
            "label that was not drawn. Forecast with "
            "caches of selection top-k or top-p; a cache of the held-out split is enough."
        )
    if count > 1 and "single" in strategies:
        raise InvalidInputError(
            "Strategy 'single' is for one source. Remove it; the forecast has the figures of every "
            "source alone."
        )
    everyone = tuple(range(count))
    names = dict.fromkeys([*strategies, recipe.strategy]) if count > 1 else ()
    units = dict.fromkeys([*granularities, recipe.granularity])
    fitted = {
        Mixture.of(basis.method, "document", everyone, basis.by): each
        for each in [*fits, *((fusion.fitted,) if fusion.fitted else ())]
        for basis in [each.manifest.fingerprint]
        if count > 1
    }
    full = _unique(
        Mixture.of(name, unit, everyone) for name in names if name not in LEARNED for unit in units
    )
    full += list(fitted)

    def grown(members: Sequence[int]) -> Mixture:
        return Mixture.of(recipe.strategy, recipe.granularity, tuple(members), recipe.fit_by)

    few = count <= MAX_SOURCES_FOR_SUBSETS
    sizes = range(1, count + 1) if few else (1, count)
    subsets = [grown(members) for size in sizes for members in combinations(everyone, size)]
    later_passes = 0 if few else count - 2
    passes = _Passes(fusion, fitted, (1 + later_passes) * fusion.num_tokens, progress)

    whole = SplitTally()
    sources = [SourceTally(index) for index in everyone]
    pairs = [PairTally(*pair) for pair in combinations(everyone, 2)]
    mixtures = passes.measure(_unique([*full, *subsets]), [whole, *sources, *pairs])

    growth: list[Mixture] = []
    while len(growth) < count:
        members = growth[-1].members if growth else ()
        candidates = [
            grown(sorted([*members, index])) for index in everyone if index not in members
        ]
        missing = [mixture for mixture in candidates if mixture not in mixtures]
        if missing:
            mixtures |= passes.measure(missing)
        growth.append(min(candidates, key=lambda mixture: mixtures[mixture].rank))

    def forecast_of(mixture: Mixture) -> MixtureForecast:
        return mixtures[mixture].forecast(fusion, whole)

    alone = tuple(
        tally.forecast(fusion, whole, forecast_of(grown([tally.index]))) for tally in sources
    )
    compared = tuple(map(forecast_of, full))

    return Forecast(
        recipe=recipe,
        num_positions=fusion.num_tokens,
        num_predicted=whole.predicted,
        num_bytes=whole.num_bytes,
        common=mean(whole.common, whole.predicted) or 0.0,
        sources=alone,
        agreements=tuple(tally.forecast(fusion) for tally in pairs),
        strategies=compared,
        growth=tuple(map(forecast_of, growth)),
        subsets=tuple(map(forecast_of, subsets)) if few else (),
        left_out=left_out,
        verdict=Verdict.of(alone, compared),
    )


class _Passes:
    """Reads the split once for every set of mixtures to measure."""

    def __init__(
        self,
        fusion: Fusion,
        fitted: Mapping[Mixture, Fitted],
        total: int,
        progress: Progress,
    ) -> None:
        self._fusion, self._total, self._progress = fusion, total, progress
        self._everyone = tuple(range(len(fusion.sources)))
        self._fitted = fitted
        self._done = 0

    def measure(
        self, mixtures: Sequence[Mixture], others: Sequence[Tally] = ()
    ) -> dict[Mixture, MixtureTally]:
        """Count all chunks for `others` and for new tallies of the mixtures, which it returns."""
        # Some of the sources are weighed by the fit of all.
        tallies = {
            mixture: MixtureTally(
                mixture, self._fitted.get(replace(mixture, members=self._everyone))
            )
            for mixture in mixtures
        }
        for chunk in read_chunks(self._fusion, [mixture.granularity for mixture in mixtures]):
            for tally in [*others, *tallies.values()]:
                tally.add(chunk)
            self._done += chunk.num_positions
            self._progress(self._done, self._total)
        return tallies


def _unique(mixtures: Iterable[Mixture]) -> list[Mixture]:
    return list(dict.fromkeys(mixtures))
