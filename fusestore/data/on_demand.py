"""`open_recipe`: from a recipe to a dataset at once; its shards are made when they are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusestore.data.dataset import FusedDataset, open_fused, open_unfinished
from fusestore.fuse.recipe import Recipe, load_recipe
from fusestore.storage.location import Location

if TYPE_CHECKING:
    from fusestore.tokenizers.tokenizer import Tokenizer


def open_recipe(
    store: str | os.PathLike[str] | Location,
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    name: str | None = None,
    *,
    storage_options: Mapping[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    target: Tokenizer | None = None,
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
        target: the target's tokenizer, where the store does not have the target's tokens.

    Raises:
        NotFoundError: something the recipe names is not there; says which command makes it.
        IncompatibleError: what it names does not belong together.
        InvalidInputError: the recipe is not valid.
        FingerprintMismatchError: `name` is a dataset made from something else.
    """
    from fusestore.fuse.run import find_inputs, place
    from fusestore.store.layout import Store

    opened = Store.open(store, storage_options)
    if isinstance(recipe, Mapping):
        recipe = Recipe.parse(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(Location.parse(recipe))
    folder = place(opened, find_inputs(opened, recipe, target), name, cache_dir)
    folder.begin()
    if name is not None or opened.location.is_local:
        return open_fused(opened.location, folder.location.name, cache_dir=cache_dir)
    if folder.manifest() is not None:
        return FusedDataset(folder.location.path)
    return open_unfinished(opened.location, folder.location, folder.location.path)
