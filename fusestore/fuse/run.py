"""`fuse`: from a recipe, and a store that holds what it names, to a fused dataset."""

from __future__ import annotations

import os

from fusestore.fuse.begin import place, reopen
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
    """Fuse what a recipe names into a fused dataset, now or when its shards are read.

    Args:
        store: holds what the recipe names; the dataset goes there.
        name: of the fused dataset; without one it is `recipe-` and the first digits of its digest,
            and that of a remote store is kept on this machine.
        recipe: what is fused, and how; None goes on with the dataset of this name that was begun.
        target: the target, where it is open already; found by the recipe's `target` unless given.
        materialize: make every shard now. Without it the definition is written, and a shard is
            made when it is read.
        jobs: processes that make shards.
        cache_dir: where datasets without a name are kept for a remote store; by default the user's
            cache.
        reporter: receives progress updates.

    Returns:
        The folder of the dataset. It was created if a shard, or without `materialize` the
        definition, was missing.

    Raises:
        NotFoundError: a cache or an alignment is missing, or there is nothing to go on with.
        IncompatibleError, InvalidInputError: as `find_inputs`.
        FingerprintMismatchError: `name` is a dataset made from something else.
        CorruptionError, StorageError: as `materialize`; what is finished stays.
    """
    if recipe is None:
        folder = reopen(store, store.fused(name or ""))
        begun = True
    else:
        folder = place(store, find_inputs(store, recipe, target), name, cache_dir)
        begun = (folder.location / PLAN_FILE).exists()
    folder.begin()
    if not materialize:
        return StageResult(folder, created=not begun)
    complete = folder.manifest() is not None
    reporter = reporter or SilentReporter()
    with reporter.stage(f"Fusing {folder.location.name}", "tokens") as progress:
        make_shards(folder, jobs=jobs, progress=progress)
    return StageResult(folder, created=not complete)
