"""`fusestore forecast`: what fusing a recipe would bring, from the caches alone."""

from __future__ import annotations

import typer

from fusestore.forecast.settings import ForecastSettings
from fusestore.fuse.recipe import Recipe

from .console import ConsoleReporter, output, print_json, print_table
from .early_checks import check_recipe
from .options import JsonOption, StorageOption, StoreOption, open_store
from .recipes import NO_SOURCES, RecipeArgument, recipe_of
from .settings_options import TypedSettings, settings_options


# Settings on which no forecast depends have no option.
@settings_options(
    Recipe, parameter="options", skip={"split", "unaligned", "target_cache", "rows_per_shard"}
)
@settings_options(ForecastSettings, panel="Forecast")
def forecast(
    store: StoreOption,
    settings: ForecastSettings,
    options: TypedSettings[Recipe],
    recipe: RecipeArgument = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forecast from the caches alone what fusing them would bring.

    No model runs and nothing is written. Each source, strategy and number of sources is measured
    in bits per byte of the text of a held-out split.
    """
    whole_recipe = recipe_of(recipe, options)
    if whole_recipe is None:
        raise typer.BadParameter(NO_SOURCES, param_hint="--source")
    opened = open_store(store, storage_option)
    check_recipe(opened, whole_recipe)
    from fusestore.forecast.run import forecast as forecast_recipe

    result = forecast_recipe(
        opened,
        whole_recipe,
        settings,
        reporter=ConsoleReporter(),
    )
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    for title, columns, rows in result.tables():
        print_table(title, columns, rows)
    for note in result.notes():
        output.print(note)
