"""`estimate_fusion`: what the captures of one fusion.toml will take."""

from __future__ import annotations

from collections.abc import Mapping

from fusestore.capture.estimate import CaptureEstimate, Prices, estimate_capture
from fusestore.corpus.run import make_corpus
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.layout import Store
from fusestore.workflows.fusion_config import FusionConfig
from fusestore.workflows.models import open_models


def estimate_fusion(
    config: FusionConfig,
    storage_options: Mapping[str, str] | None = None,
    *,
    prices: Prices | None = None,
    reporter: Reporter | None = None,
) -> dict[str, CaptureEstimate]:
    """Estimate every capture that `run_pipeline` would still have to do.

    The corpus is made if it is not there, since everything depends on its tokens; nothing else is
    written. Aligning, fusing and training are not estimated.

    Args:
        config: the file's content.
        storage_options: for a remote store.
        prices: what things cost.
        reporter: hears what is going on.

    Returns:
        Estimates by the cache's name, in the order of the file; complete caches are left out.

    Raises:
        FusestoreError: see `make_corpus` and `estimate_capture`.
    """
    reporter = reporter or SilentReporter()
    store = Store.open(config.store, storage_options)
    models = open_models(config)
    tokenizers = [model.tokenizer for model in models.values()]
    corpus, _ = make_corpus(store, config.corpus, tokenizers, reporter)
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
