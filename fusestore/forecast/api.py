"""The public face of the forecast: names in a store in, a `Forecast` out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fusestore.align.kinds import AlignmentMethod, MapMethod
from fusestore.forecast.analysis import GRANULARITIES, STRATEGIES
from fusestore.forecast.forecast import Forecast
from fusestore.fuse.recipe import Granularity
from fusestore.fuse.run import forecast, recipe_of
from fusestore.models.loading import local_model_folder
from fusestore.storage.location import Location
from fusestore.storage.packages import SCHEME
from fusestore.store.layout import Store
from fusestore.store.settings_file import parse_settings
from fusestore.tokenizers.tokenizer import as_tokenizer
from fusestore.workflows.fusion_config import FuseConfig


def analyze(
    store: str | os.PathLike[str] | Location | Store,
    sources: Sequence[str],
    target_tokenizer: Any,  # noqa: ANN401 - Hugging Face tokenizers share no public base
    *,
    target_name: str = "target",
    corpus: str = "corpus",
    split: str = "held_out",
    strategies: Sequence[str] = STRATEGIES,
    granularities: Sequence[Granularity] = GRANULARITIES,
    storage_options: Mapping[str, str] | None = None,
    alignment_method: AlignmentMethod = "hybrid",
    vocabulary_method: MapMethod = "mined",
    **recipe: Any,  # noqa: ANN401
) -> Forecast:
    """Forecast from caches alone what fusing them brings; needs no model and no GPU.

    Args:
        store: folder or URL, or an open store.
        sources: names of caches, those of another tokenizer aligned to the target.
        target_tokenizer: a fast Hugging Face tokenizer, a folder, hub id or
            `package:NAME`, or our `Tokenizer`.
        target_name: what alignments call the target.
        corpus: name of the corpus.
        split: its split to look at.
        strategies: for all sources together; your own registered ones too.
        granularities: to weigh them by.
        storage_options: for the fsspec filesystem of a URL.
        alignment_method: how the token alignments were made.
        vocabulary_method: how the vocabulary maps were made.
        **recipe: `strategy`, `weights`, `score`, `granularity`, `kinds`, `top_k`,
            `window_length`, `packing`, as in the `[fuse]` table of a fusion.toml.

    Raises:
        NotFoundError: no such store, cache, corpus, split or alignment.
        IncompatibleError: caches of different corpora, or of another tokenizer.
        InvalidInputError: no such strategy, or a recipe that makes no sense.
    """
    if isinstance(target_tokenizer, str) and target_tokenizer.startswith(SCHEME):
        target_tokenizer = local_model_folder(target_tokenizer)
    values = {"target": target_name, "sources": tuple(sources), "split": split, **recipe}
    config = parse_settings(FuseConfig, values, "analyze()")
    opened, target = Store.open(store, storage_options), as_tokenizer(target_tokenizer)
    wanted = recipe_of(
        opened, config, target, corpus, alignment_method, vocabulary_method=vocabulary_method
    )
    return forecast(opened, wanted, target, strategies=strategies, granularities=granularities)
