"""`open_recipe`: from a recipe to a dataset at once; its shards are made when they are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusestore.data.fused import Fused
from fusestore.fuse.recipe import Recipe, load_recipe
from fusestore.storage.location import Location
from fusestore.store.layout import Store

if TYPE_CHECKING:
    from fusestore.data.dataset import FusedDataset
    from fusestore.models.model import Model
    from fusestore.models.target import Target
    from fusestore.tokenizers.tokenizer import Tokenizer


def open_recipe(
    store: str | os.PathLike[str] | Location,
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    name: str | None = None,
    *,
    storage_options: Mapping[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    target: Model | Tokenizer | Target | None = None,
) -> FusedDataset:
    """Open the fused dataset that a recipe stands for, computing nothing yet.

    Reading a window makes the shards it lies in and keeps them; `fusestore fuse --materialize`
    makes the rest. The same recipe over the same inputs is always the same folder, so nothing is
    computed twice; a changed recipe or input is another one, so nothing old is read.

    Args:
        store: folder or URL of the store that holds what the recipe names.
        recipe: the recipe, its content, or a .toml or .json file.
        name: of the fused dataset in the store. Without one it is `recipe-` and the first digits
            of its digest; and of a remote store nothing is written: the dataset is kept below
            `cache_dir`.
        storage_options: for the fsspec filesystem of a remote store.
        cache_dir: where datasets of remote stores are kept; by default the user's cache.
        target: the target, where it is open already; found by the recipe's `target` unless given.

    Raises:
        NotFoundError: something the recipe names is not there; says which command makes it.
        IncompatibleError: what it names does not belong together.
        InvalidInputError: the recipe is not valid.
        FingerprintMismatchError: `name` is a dataset made from something else.
    """
    from fusestore.fuse.run import fuse

    opened = Store.open(store, storage_options)
    if isinstance(recipe, Mapping):
        recipe = Recipe.parse(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(Location.parse(recipe))
    begun = fuse(opened, name, recipe, target=target, materialize=False, cache_dir=cache_dir)
    return Fused(opened, begun.artifact.location).dataset(cache_dir)
