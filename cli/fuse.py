"""`fusestore fuse`: define a fused dataset and compute its shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fusestore.fuse.recipe import Recipe
from fusestore.store.shown_table import counted
from fusestore.workflows.executors.settings import ExecutorSettings

from .console import ConsoleReporter, output, print_json
from .early_checks import check_recipe
from .executors import hand_out
from .options import JsonOption, StorageOption, StoreOption, storage_options
from .recipes import RecipeArgument, recipe_of
from .settings_options import TypedSettings, settings_options

if TYPE_CHECKING:
    from fusestore.fuse.folder import FusedFolder
    from fusestore.store.layout import Store

_DEFAULT_NAME = "fused"


@settings_options(Recipe, parameter="options")
@settings_options(ExecutorSettings, parameter="executor_settings")
def fuse(
    store: StoreOption,
    options: TypedSettings[Recipe],
    executor_settings: ExecutorSettings,
    recipe: RecipeArgument = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            metavar="NAME",
            help="Name of the dataset. By default fused; with a recipe file, recipe-DIGEST.",
            show_default=False,
        ),
    ] = None,
    materialize: Annotated[
        bool,
        typer.Option(
            "--materialize", help="Compute every shard now instead of when it is first read."
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Number of processes that compute shards; needs --materialize.",
        ),
    ] = 1,
    shared_to: Annotated[
        str | None,
        typer.Option(
            "--shared-to",
            metavar="STORE",
            help="Store to write the compressed, shared form of the dataset to; computes every "
            "shard. `fusestore pull` restores the local form.",
        ),
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fuse the sources' distributions over the target's tokens.

    Without --materialize only the definition is written, and a shard is computed when it is first
    read. With --name alone, an unfinished dataset is continued.
    """
    materialize = materialize or shared_to is not None
    if jobs > 1 and not materialize:
        raise typer.BadParameter("needs --materialize", param_hint="--jobs")
    if executor_settings.name is not None:
        if not materialize:
            raise typer.BadParameter("needs --materialize", param_hint="--executor")
        if jobs > 1:
            raise typer.BadParameter(
                "is for one process; --executor starts several", param_hint="--jobs"
            )
    whole_recipe = recipe_of(recipe, options)
    from fusestore.store.layout import Store

    options_of_storage = storage_options(storage_option)
    opened = Store.open(store, options_of_storage)
    check_recipe(opened, whole_recipe)
    from fusestore.fuse.run import fuse as fuse_recipe

    name = name or (None if recipe else _DEFAULT_NAME)
    by_workers = False
    if executor_settings.name is not None:
        # The definition first: a recipe that is refused starts no workers.
        defined = fuse_recipe(opened, name, whole_recipe, materialize=False).artifact.location
        if defined.is_local != opened.location.is_local:
            raise typer.BadParameter(
                "a dataset without a name is kept on this machine, which other machines do not "
                "see; give it a name",
                param_hint="--name",
            )
        by_workers = hand_out(executor_settings, "fused", defined)
    result = fuse_recipe(
        opened,
        name,
        whole_recipe,
        materialize=materialize,
        jobs=jobs,
        reporter=ConsoleReporter(),
    )
    folder, created = result.artifact, by_workers or result.created
    if shared_to is not None:
        created |= _pack(folder, Store.open(shared_to, options_of_storage))
    _print_dataset(folder, created, as_json)


def _pack(folder: FusedFolder, destination: Store) -> bool:
    """Write the shared form; return whether it is new."""
    from fusestore.fuse.shared import pack_fused

    shared = destination.fused(folder.location.name)
    created = not (shared / "manifest.json").exists()
    with ConsoleReporter().stage(f"Packing {folder.location.name}", "tokens") as progress:
        pack_fused(folder.location, shared, progress)
    return created


def _print_dataset(folder: FusedFolder, created: bool, as_json: bool) -> None:
    name, manifest, plan = folder.location.name, folder.manifest(), folder.plan
    windows = len(folder.fusion.window_starts) - 1
    if as_json:
        from fusestore.fuse.manifest import FusedState

        print_json(
            FusedState(
                fused=name,
                built=created,
                complete=manifest is not None,
                num_tokens=plan.num_tokens,
                num_windows=windows,
                num_shards=folder.num_shards,
                num_computed_shards=folder.num_shards if manifest else len(folder.finished()),
                plan_digest=plan.digest,
                plan=plan,
                manifest=manifest,
            )
        )
        return
    size = f"{counted(plan.num_tokens, 'target token')} in {counted(windows, 'window')}"
    if manifest is not None:
        output.print(f"{'Fused' if created else 'Already there:'} {name}: {size}")
        return
    output.print(
        f"{'Defined' if created else 'Already there:'} {name}: {size}; "
        f"{len(folder.finished()):,} of {folder.num_shards:,} shards are computed. The others are "
        "computed when they are read, or now with --materialize."
    )
