"""`open_recipe`: from a recipe to a dataset without delay; shards are made when they are read."""

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
    storage_options: Mapping[str, object] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    target: Model | Tokenizer | Target | None = None,
) -> FusedDataset:
    """Open the fused dataset of a recipe without computing it.

    Reading a window makes and keeps its shards; `fusestore fuse --materialize` makes the others.
    Without a name, the folder follows from recipe and inputs: calls with the same recipe and inputs
    share their shards, and a changed recipe or input gets a new folder.

    Args:
        store: folder or URL of the store that holds the recipe's inputs.
        recipe: the recipe, its content, or a .toml or .json file.
        name: of the fused dataset in the store. By default `recipe-` and the first digits of its
            digest; such a dataset of a remote store is kept below `cache_dir`, and nothing is
            written to the store.
        storage_options: of the URL's storage, such as `endpoint_url`; see `storage.options`.
        cache_dir: local folder for datasets of remote stores; by default the user's cache.
        target: the open target; by default found by the recipe's `target`.

    Raises:
        NotFoundError: an input is missing; the message names the command that makes it.
        IncompatibleError: the inputs do not belong together.
        InvalidInputError: the recipe is invalid.
        FingerprintMismatchError: `name` is a dataset with another plan.
    """
    from fusestore.fuse.run import fuse

    opened = Store.open(store, storage_options)
    if isinstance(recipe, Mapping):
        recipe = Recipe.parse(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(Location.parse(recipe))
    begun = fuse(opened, name, recipe, target=target, materialize=False, cache_dir=cache_dir)
    return Fused(opened, begun.artifact.location).dataset(cache_dir)
