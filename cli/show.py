"""`fusestore show`: one artifact of a store."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import print_json, print_view
from .options import JsonOption, StorageOption, StoreOption, open_store


def show(
    store: StoreOption,
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="KIND/NAME", help="Artifact, as `fusestore ls` lists it, such as cache/demo."
        ),
    ],
    document: Annotated[
        int | None,
        typer.Option(
            "--document",
            "-d",
            min=0,
            help="Index of a document: of a corpus it is shown itself, of a cache its rows.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Maximum number of rows in a table.")] = 20,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one artifact: its figures, its rows, or its manifest.

    An alignment is shown as figures; with --document a cache as rows, a corpus as the document.
    Otherwise the manifest is printed.
    """
    from fusestore.errors import CorruptionError
    from fusestore.store.inventory import find_artifact

    opened = open_store(store, storage_option)
    listed = find_artifact(opened, artifact)
    if listed.damage is not None:
        raise CorruptionError(f"{listed.damage} See `fusestore verify {listed.path}`.")
    if document is not None:
        view = listed.kind.view_document(opened, listed, document, rows)
        if view is None:
            raise typer.BadParameter(
                f"{listed.path} is a {listed.kind.title}; only a corpus or a cache has documents",
                param_hint="--document",
            )
    elif listed.complete:
        view = listed.kind.view(opened, listed, rows)
    else:
        print_json({"state": listed.state})
        return
    if view is None:
        print_json(listed.manifest)
    elif as_json:
        print_json(view.content)
    else:
        print_view(view)
