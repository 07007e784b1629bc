"""The recipe of `fuse` and `forecast`: a file, options, or options laid over a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusestore.fuse.recipe import Recipe

from .settings_options import TypedSettings

NO_SOURCES = "is missing; name a cache, or give a recipe file"

RecipeArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="RECIPE",
        help="Recipe file, .toml or .json. Options replace its values.",
        show_default=False,
    ),
]


def recipe_of(file: Path | None, options: TypedSettings[Recipe]) -> Recipe | None:
    """The recipe of the file, with the options laid over it; None without file and options.

    Raises:
        typer.BadParameter: both name sources, or the options are no recipe; exit code 2.
        NotFoundError, InvalidInputError: the file does not exist or holds no recipe.
    """
    if file is None:
        if options.values and "sources" not in options.values:
            raise typer.BadParameter(NO_SOURCES, param_hint="--source")
        return options.over() if options.values else None
    if "sources" in options.values:
        raise typer.BadParameter("give a recipe file or --source, not both", param_hint="RECIPE")
    from fusestore.fuse.recipe import load_recipe
    from fusestore.storage.location import Location
    from fusestore.store.settings_file import read_settings_file

    location = Location.parse(file)
    # Checked alone first: a mistake in the file is not reported as one of the options.
    load_recipe(location)
    return options.over(read_settings_file(location), f"the recipe {location}")
