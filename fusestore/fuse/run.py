"""`fuse`: from a recipe and a store to a fused dataset."""

from __future__ import annotations

import os

from fusestore.fuse.begin import place, reopen, same_but_for_names
from fusestore.fuse.folder import PLAN_FILE, FusedFolder
from fusestore.fuse.materialize import materialize as make_shards
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_inputs
from fusestore.models.model import Model
from fusestore.models.target import Target
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.layout import Store
from fusestore.store.result import StageResult
from fusestore.tokenizers.tokenizer import Tokenizer


def fuse(
    store: Store,
    name: str | None,
    recipe: Recipe | None,
    *,
    target: Model | Tokenizer | Target | None = None,
    materialize: bool = True,
    jobs: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
) -> StageResult[FusedFolder]:
    """Make the fused dataset of a recipe, at once or shard by shard when it is read.

    Args:
        store: holds the recipe's inputs; receives the dataset.
        name: of the fused dataset. By default `recipe-` and the first digits of its digest; such a
            dataset of a remote store is kept on this machine.
        recipe: the recipe; None resumes the unfinished dataset of this name.
        target: the open target; by default found by the recipe's `target`.
        materialize: make every shard now. Otherwise only the definition is written, and a shard is
            made when it is read.
        jobs: processes that make shards.
        cache_dir: local folder for datasets without a name of a remote store; by default the
            user's cache.
        reporter: receives progress updates.

    Returns:
        The folder of the dataset. It was created if a shard, or without `materialize` the
        definition, was missing.

    Raises:
        NotFoundError: a cache or an alignment is missing, or the dataset to resume is.
        IncompatibleError, InvalidInputError: see `find_inputs`.
        FingerprintMismatchError: `name` is a dataset with another plan.
        CorruptionError, StorageError: see `materialize`; finished shards stay.
    """
    if recipe is None:
        folder = reopen(store, store.fused(name or ""))
        begun = True
    else:
        folder = place(
            store, find_inputs(store, recipe, target, reporter=reporter), name, cache_dir
        )
        begun = (folder.location / PLAN_FILE).exists()
        renamed = same_but_for_names(store, folder.location, folder.plan) if begun else None
        if renamed is not None:
            folder = FusedFolder(
                folder.location, find_inputs(store, renamed.recipe, target, plan=renamed)
            )
    folder.begin()
    if not materialize:
        return StageResult(folder, created=not begun)
    complete = folder.manifest() is not None
    reporter = reporter or SilentReporter()
    with reporter.stage(f"Fusing {folder.location.name}", "tokens") as progress:
        make_shards(folder, jobs=jobs, progress=progress)
    return StageResult(folder, created=not complete)
