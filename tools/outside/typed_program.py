"""What a user's type checker says of fusestore: `mypy --strict` accepts this program.

`reveal_type` shows that signatures arrive typed: `tools.check_release` compares what mypy prints.
"""

from __future__ import annotations

from typing import reveal_type

import fusestore as fs


def run(url: str, texts: list[str], model: str) -> None:
    """One capture and one fusion."""
    store = fs.open_store(url)
    corpus = store.build_corpus("texts", texts, fs.CorpusSettings(max_length=128))
    cache = store.capture("large", model, corpus, fs.CaptureSettings(top_k=8))
    sources = (fs.RecipeSource(cache="large"),)
    recipe = fs.Recipe(sources=sources, target="large", window_length=64)
    fused = store.fuse("fused", recipe)
    names = ["large", "small"]
    fs.Recipe(sources=names, kinds=["span"], target="large", window_length=64)
    fs.CorpusSettings(held_out_pattern=["20*"], max_length=512)
    fs.CopySettings(expect=["0d5a"])
    reveal_type(recipe.sources)
    reveal_type(store)
    reveal_type(cache)
    reveal_type(fused)
    reveal_type(fs.CaptureSettings(top_k=8).top_k)
    fs.CaptureSettings(top_k="eight")
    store.fuse("fused", recipe, no_such_argument=1)
