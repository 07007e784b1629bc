"""`estimate_fusion`: size, time and memory of the captures of a fusion.toml."""

from __future__ import annotations

from collections.abc import Mapping

from fusestore.capture.estimate import CaptureEstimate, Prices, estimate_capture
from fusestore.corpus.run import build_corpus
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen
from fusestore.workflows.fusion_config import FusionConfig
from fusestore.workflows.models import open_models


class FusionEstimate(Frozen):
    """What the missing captures of a fusion take; `fusestore run --estimate --json` prints it.

    Attributes:
        captures: by the cache's name, in the order of the file, without complete caches.
    """

    captures: Mapping[str, CaptureEstimate]


def estimate_fusion(
    config: FusionConfig,
    *,
    prices: Prices | None = None,
    reporter: Reporter | None = None,
) -> dict[str, CaptureEstimate]:
    """Estimate every missing capture of a fusion.toml.

    A missing corpus is made, because estimates need its tokens; nothing else is written. Aligning,
    fusing and training are not estimated.

    Args:
        config: the file's content.
        prices: of the machine and of storage.
        reporter: receives progress updates.

    Returns:
        Estimates by the cache's name, in the order of the file, without complete caches.

    Raises:
        FusestoreError: see `build_corpus` and `estimate_capture`.
    """
    reporter = reporter or SilentReporter()
    store = Store.open(config.store, config.storage_options)
    models = open_models(config)
    corpus = build_corpus(
        store,
        config.corpus.name,
        config.corpus.inputs,
        config.corpus,
        tokenizers=list(models.values()),
        reporter=reporter,
    ).artifact
    estimates = {}
    for name in config.captured:
        if (store.cache(name) / "manifest.json").exists():
            reporter.line(f"cache {name}: already there")
            continue
        estimates[name] = estimate_capture(
            store,
            name,
            models[name],
            corpus,
            config.models[name].capture,
            prices=prices,
            reporter=reporter,
        )
    return estimates
