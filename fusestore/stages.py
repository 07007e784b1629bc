"""The stage functions that the verbs of `Store` and the command line call.

Each takes the store first and returns a `StageResult`: the artifact, and whether the stage created
it. A program that must act on what is new, as `fusestore run` does, calls these; any other is
served by the verbs of `Store`, which return the artifact alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fusestore.store.result import StageResult

if TYPE_CHECKING:
    from fusestore.align.run import align
    from fusestore.capture.run import capture
    from fusestore.corpus.run import build_corpus
    from fusestore.data.fused import Fused
    from fusestore.fuse.recipe import Recipe
    from fusestore.interop.run import import_rows
    from fusestore.merge.run import merge_models
    from fusestore.models.model import Model
    from fusestore.models.target import Target
    from fusestore.progress import Reporter
    from fusestore.store.layout import Store
    from fusestore.tokenizers.tokenizer import Tokenizer
    from fusestore.train.run import train_model

__all__ = [
    "align",
    "build_corpus",
    "capture",
    "fuse",
    "import_rows",
    "merge_models",
    "train_model",
]

_HOMES = {
    "align": "fusestore.align.run",
    "build_corpus": "fusestore.corpus.run",
    "capture": "fusestore.capture.run",
    "import_rows": "fusestore.interop.run",
    "merge_models": "fusestore.merge.run",
    "train_model": "fusestore.train.run",
}


def fuse(
    store: Store,
    name: str | None,
    recipe: Recipe | None,
    *,
    target: Model | Tokenizer | Target | None = None,
    materialize: bool = True,
    jobs: int = 1,
    reporter: Reporter | None = None,
) -> StageResult[Fused]:
    """Fuse what a recipe names into a fused dataset, now or when its shards are read.

    See `Store.fuse` for the arguments and the errors. Without a name the dataset is called after
    the recipe's digest, and that of a remote store is kept on this machine.
    """
    from fusestore.data.fused import Fused
    from fusestore.fuse.run import fuse as fuse_recipe

    result = fuse_recipe(
        store,
        name,
        recipe,
        target=target,
        materialize=materialize,
        jobs=jobs,
        reporter=reporter,
    )
    return StageResult(Fused(store, result.artifact.location), result.created)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any stage function
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
