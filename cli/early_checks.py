"""Names and paths that are checked before anything slow is imported or begun."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusestore.fuse.recipe import Recipe
    from fusestore.store.layout import Store


def check_artifacts(store: Store, kind: str, names: Iterable[str | None]) -> None:
    """Check that a store has all artifacts of these names; None stands for a name not given.

    Raises:
        NotFoundError: it lacks one; the message names the nearest.
    """
    from fusestore.store.inventory import check_begun

    for name in names:
        if name is not None:
            check_begun(store, kind, name)


def check_models(specs: Iterable[str | None]) -> None:
    """Check that the files and folders of models exist; names and hub ids are looked up later.

    Raises:
        NotFoundError: one does not.
    """
    from fusestore.models.spec import check_path

    for spec in specs:
        if spec is not None:
            check_path(spec)


def check_inputs(store: Store, corpus: str, inputs: Iterable[str]) -> None:
    """Check that local inputs of a corpus exist, unless the store has the corpus.

    Raises:
        NotFoundError: nothing is there, or matches a pattern.
        InvalidInputError: no file of an input can be read.
        MissingDependencyError: a package that holds an input is not installed.
    """
    from fusestore.corpus.input_files import find_input_files
    from fusestore.storage.location import Location
    from fusestore.storage.packages import resolve_path

    if (store.corpus(corpus) / "manifest.json").exists():
        return
    for path in inputs:
        if "://" not in path:
            find_input_files(Location.parse(resolve_path(path)))


def check_recipe(store: Store, recipe: Recipe | None) -> None:
    """Check that a store has what a recipe names.

    Raises:
        NotFoundError: it lacks a corpus, a cache or an alignment.
    """
    if recipe is not None:
        check_artifacts(store, "cache", (source.cache for source in recipe.sources))
        check_artifacts(store, "cache", [recipe.target_cache])
        check_artifacts(store, "alignment", (source.alignment for source in recipe.sources))
        check_artifacts(store, "corpus", [recipe.corpus])
