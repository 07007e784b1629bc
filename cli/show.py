"""`fusestore show`: one artifact of a store."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import print_json, print_view
from .options import JsonOption, StorageOption, StoreOption, storage_options


def show(
    store: StoreOption,
    artifact: Annotated[
        str, typer.Argument(help="KIND/NAME as `fusestore ls` lists it, for instance cache/demo.")
    ],
    document: Annotated[
        int | None,
        typer.Option("--document", "-d", min=0, help="Show a cache's rows of this document."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 20,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one artifact: an alignment's figures, a cache's rows of a document, or its manifest."""
    from fusestore.errors import CorruptionError
    from fusestore.store.inventory import find_artifact
    from fusestore.store.layout import Store

    opened = Store.open(store, storage_options(storage_option))
    found = find_artifact(opened, artifact)
    if found.damage is not None:
        raise CorruptionError(f"{found.damage} See `fusestore verify {found.path}`.")
    if document is not None:
        view = found.kind.view_document(opened, found, document, rows)
        if view is None:
            raise typer.BadParameter(
                f"a {found.kind.title} has no rows of a document; a cache has",
                param_hint="--document",
            )
    elif found.complete:
        view = found.kind.view(opened, found, rows)
    else:
        print_json({"state": found.state})
        return
    if view is None:
        print_json(found.manifest)
    elif as_json:
        print_json(view.content)
    else:
        print_view(view)
