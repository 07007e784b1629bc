"""`fusestore show`: one artifact of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import output, print_json, print_table, print_view
from .options import JsonOption, StorageOption, StoreOption, open_store

if TYPE_CHECKING:
    from fusestore.store.details import Details


def show(
    store: StoreOption,
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="KIND/NAME",
            help="Artifact, as `fusestore ls` lists it, such as cache/demo; its name alone if only "
            "one artifact has it.",
        ),
    ],
    document: Annotated[
        int | None,
        typer.Option(
            "--document",
            "-d",
            min=0,
            help="Index of a document: of a corpus it is shown itself, of a cache its text with "
            "the entries of each token.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Maximum number of rows in a table.")] = 20,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one artifact: size, dates, model, settings and inputs.

    An alignment is also shown as figures. With --document the text of a corpus or the rows of a
    cache are shown instead. --json adds the manifest.
    """
    from fusestore.store.details import artifact_details, check_undamaged
    from fusestore.store.inventory import find_artifact

    opened = open_store(store, storage_option)
    listed = find_artifact(opened, artifact)
    check_undamaged(listed)
    if document is not None:
        view = listed.kind.view_document(opened, listed, document, rows)
        if view is None:
            raise typer.BadParameter(
                f"{listed.path} is a {listed.kind.title}; only a corpus or a cache has documents",
                param_hint="--document",
            )
        if as_json:
            print_json(view.content)
        else:
            print_view(view)
        return
    view = listed.kind.view(opened, listed, rows) if listed.complete else None
    details = artifact_details(opened, listed.path, None if view is None else view.content)
    if as_json:
        print_json(details)
        return
    _print(details)
    if view is not None:
        output.print("")
        print_view(view)


def _print(details: Details) -> None:
    facts = details.facts()
    output.print(facts.title, style="bold")
    for title, text in facts.rows:
        output.print(f"  {title + ':':11}{text}")
    if details.settings:
        output.print("")
        _, columns, rows = details.settings_table()
        print_table("", columns, rows)
