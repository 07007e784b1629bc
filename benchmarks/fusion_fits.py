"""Fitting learned strategies to a million tokens of three sources at k = 32, on one core.

The sources are those of benchmarks/fusion.py: synthetic caches, decoded, one with the target's
tokenizer and two with larger vocabularies. A fit reads every position for `em` and `gate`, and an
even sample of 32,768 with their rows for temperatures and orders. Times are processor time, with
reading and projecting.

    OMP_NUM_THREADS=1 python benchmarks/fusion_fits.py

Figures of the last run stand in docs/fusion.md.
"""

from __future__ import annotations

import resource
import time

from fusion import make_fusion

from fusestore.fuse.choices import FitBy, FitMethod
from fusestore.fuse.fits.find_fits import fingerprint_of
from fusestore.fuse.fits.fitting import fit_strategies
from fusestore.fuse.recipe import Recipe

NUM_TOKENS = 1_000_000
SMALL = 20_000
FITS: tuple[tuple[FitMethod, FitBy], ...] = (
    ("temperature", "global"),
    ("em", "global"),
    ("em", "entropy"),
    ("loglinear", "global"),
    ("gate", "global"),
)


def main() -> None:
    small, fusion = make_fusion(SMALL), make_fusion(NUM_TOKENS)
    recipe = Recipe.parse({"sources": [source.name for source in fusion.sources]})
    models = ["0" * 64] * len(fusion.sources)
    for method, by in FITS:
        wanted = [fingerprint_of(recipe, fusion, models, method, by)]
        # Compiles.
        fit_strategies(small, wanted)
        began = time.process_time()
        [fit] = fit_strategies(fusion, wanted)
        spent = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{method:>11} {by:<8} {spent:5.1f} s, {fit.num_positions:>9,} positions, "
            f"peak memory {peak:,.0f} MiB"
        )


if __name__ == "__main__":
    main()
