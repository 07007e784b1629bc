"""`fusestore fuse`: say what a dataset is fused of, fill it, and turn it into its other form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import ConsoleReporter, output, print_json, print_table
from .options import JsonOption, StorageOption, StoreOption, storage_options

if TYPE_CHECKING:
    from fusestore.forecast.forecast import Forecast
    from fusestore.fuse.folder import FusedFolder
    from fusestore.store.layout import Store


def fuse(
    store: StoreOption,
    recipe: Annotated[
        Path | None,
        typer.Argument(help="A recipe, .toml or .json, instead of --source and what goes with it."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="A cache (repeatable); order breaks ties."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Target model: folder, hub id, .gguf, package:NAME."),
    ] = None,
    target_name: Annotated[str, typer.Option(help="What the target is called.")] = "target",
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            help="Name of the fused dataset. Default: fused; recipe-DIGEST with a recipe.",
        ),
    ] = None,
    corpus: Annotated[str, typer.Option(help="Name of the corpus.")] = "corpus",
    split: Annotated[
        str | None,
        typer.Option(help="Split to fuse (train), or to analyse (held_out).", show_default=False),
    ] = None,
    analyze: Annotated[
        bool,
        typer.Option(
            "--analyze",
            help="Fuse nothing: forecast from the caches what it would bring.",
        ),
    ] = False,
    strategy: Annotated[
        str, typer.Option(help="mince, avgce, packllm, weighted, uniform or single.")
    ] = "mince",
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each source, for `weighted`.")
    ] = None,
    score: Annotated[
        str, typer.Option(help="bits_per_byte, aligned_ce or token_ce.")
    ] = "bits_per_byte",
    granularity: Annotated[str, typer.Option(help="document, window or token.")] = "document",
    kind: Annotated[
        list[str] | None, typer.Option(help="Alignment kinds to accept: span, mined (repeatable).")
    ] = None,
    unaligned: Annotated[str, typer.Option(help="skip, label, target or fusellm.")] = "skip",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Entries kept.")] = 32,
    window_length: Annotated[int, typer.Option(min=2, help="Target tokens a window.")] = 1024,
    packing: Annotated[
        str, typer.Option(help="stream, or document: no window holds two documents.")
    ] = "stream",
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Positions a file.")] = 65_536,
    method: Annotated[str, typer.Option(help="Of the token alignments.")] = "hybrid",
    vocabulary: Annotated[str, typer.Option(help="Of the vocabulary maps.")] = "mined",
    materialize: Annotated[
        bool, typer.Option("--materialize", help="Fill it now, instead of when it is read.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Processes that fill it, with --materialize.")
    ] = 1,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Fill it, and write its shared form into the store at this URL."),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Take the shared form of --name from the store at this URL."),
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fuse the sources' distributions over the target's tokens.

    Without --materialize only the definition is written: the shards are made when they are read.
    With --name alone, a dataset that was begun goes on.
    """
    from fusestore.store.layout import Store

    if recipe and source:
        raise typer.BadParameter("give a recipe or --source, not both", param_hint="RECIPE")
    if source and target is None:
        raise typer.BadParameter("--source needs the --target", param_hint="--target")
    if jobs > 1 and not (materialize or to):
        raise typer.BadParameter("goes with --materialize or --to", param_hint="--jobs")
    if from_ and (recipe or source or materialize or to):
        raise typer.BadParameter("takes a finished dataset: give --name alone", param_hint="--from")
    if analyze and (materialize or to or from_ or not (recipe or source)):
        raise typer.BadParameter("takes a recipe or --source alone", param_hint="--analyze")
    options = storage_options(storage_option)
    where = Store.open(store, options)
    if from_:
        _unpack(Store.open(from_, options), where, name or "fused", as_json)
        return

    from fusestore.fuse.recipe import load_recipe
    from fusestore.fuse.run import fill, find_inputs, forecast, place, recipe_of, reopen
    from fusestore.models.target import open_tokenizer
    from fusestore.storage.location import Location
    from fusestore.store.settings_file import parse_settings
    from fusestore.workflows.fusion_config import AlignConfig, FuseConfig

    tokenizer = None if target is None else open_tokenizer(target)
    chosen = None
    if recipe:
        chosen = load_recipe(Location.parse(recipe))
        if analyze:
            chosen = chosen.model_copy(update={"split": split or "held_out"})
    elif source and tokenizer:
        config = parse_settings(
            FuseConfig,
            {
                "name": name or "fused",
                "target": target_name,
                "sources": tuple(source),
                "weights": tuple(weight or ()),
                "split": split or ("held_out" if analyze else "train"),
                "strategy": strategy,
                "score": score,
                "granularity": granularity,
                "kinds": tuple(kind or ("span",)),
                "unaligned": unaligned,
                "top_k": top_k,
                "window_length": window_length,
                "packing": packing,
                "rows_per_shard": rows_per_shard,
            },
            "The command line",
        )
        name = config.name
        aligned = parse_settings(
            AlignConfig, {"method": method, "vocabulary": vocabulary}, "The command line"
        )
        chosen = recipe_of(
            where,
            config,
            tokenizer,
            corpus,
            aligned.method,
            vocabulary_method=aligned.vocabulary,
        )
    if analyze and chosen:
        told = forecast(where, chosen, tokenizer, reporter=ConsoleReporter())
        _print_forecast(told, as_json)
        return
    if chosen is None:
        folder = reopen(where, where.fused(name or "fused"))
    else:
        folder = place(where, find_inputs(where, chosen, tokenizer), name)
    built = not (folder.location / "recipe.json").exists()
    folder.begin()
    if to or materialize:
        built = folder.manifest() is None
        fill(folder, jobs=jobs, reporter=ConsoleReporter())
    if to:
        built |= _pack(folder, Store.open(to, options), name or folder.location.name)
    _tell(folder, built, as_json)


def _pack(folder: FusedFolder, destination: Store, name: str) -> bool:
    """Write the shared form; returns whether it was not there yet."""
    from fusestore.fuse.shared import pack_fused

    shared = destination.fused(name)
    built = not (shared / "manifest.json").exists()
    with ConsoleReporter().stage(f"Sharing {name}", "tokens") as progress:
        pack_fused(folder.location, shared, progress)
    return built


def _unpack(origin: Store, destination: Store, name: str, as_json: bool) -> None:
    from fusestore.fuse.shared import unpack_fused

    local = destination.fused(name)
    built = not (local / "manifest.json").exists()
    with ConsoleReporter().stage(f"Taking {name}", "tokens") as progress:
        manifest = unpack_fused(origin.fused(name), local, progress)
    if as_json:
        print_json({"fused": name, "built": built, **manifest.model_dump(mode="json")})
    else:
        output.print(f"{'Took' if built else 'Already there:'} {name}: {local}")


def _tell(folder: FusedFolder, built: bool, as_json: bool) -> None:
    name, manifest, plan = folder.location.name, folder.manifest(), folder.plan
    if as_json:
        told: dict[str, Any] = {"fused": name, "built": built, "complete": manifest is not None}
        content = manifest.model_dump(mode="json") if manifest else {"plan": plan.model_dump()}
        print_json({**told, **content})
        return
    windows = len(folder.fusion.window_starts) - 1
    size = f"{plan.num_tokens:,} target tokens in {windows:,} windows"
    if manifest is not None:
        output.print(f"{'Fused' if built else 'Already there:'} {name}: {size}")
        return
    state = f"{len(folder.finished()):,} of {folder.num_shards:,} shards are made"
    output.print(
        f"{'Defined' if built else 'Already there:'} {name}: {size}; {state}. The others are made "
        "when they are read, or now with --materialize."
    )


def _print_forecast(forecast: Forecast, as_json: bool) -> None:
    if as_json:
        print_json(forecast.model_dump(mode="json"))
        return
    for title, columns, rows in forecast.tables():
        print_table(title, columns, rows)
    output.print(
        "Compare the column common: the rest is over the positions that each one covers. "
        "docs/fusion.md defines every number and says what a forecast cannot tell."
    )
