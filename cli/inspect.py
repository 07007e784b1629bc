"""`fusestore inspect`: what a store holds, or one thing in it."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import output, print_json, print_table
from .options import JsonOption, StorageOption, StoreOption, storage_options


def inspect(
    store: StoreOption,
    thing: Annotated[
        str | None, typer.Argument(help="KIND/NAME, for instance cache/smollm2; none lists all.")
    ] = None,
    document: Annotated[
        int | None,
        typer.Option("--document", "-d", min=0, help="Show a cache's rows of one document."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the document to show.")] = 20,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a store, print the manifest of one thing, or look at a cache's rows."""
    from fusestore.store.inventory import describe, find_thing, list_things
    from fusestore.store.layout import Store

    where = Store.open(store, storage_options(storage_option))
    if thing is None:
        things = list_things(where)
        if as_json:
            print_json([{"thing": f"{t.kind}/{t.name}", "complete": t.complete} for t in things])
            return
        print_table(
            str(where.location),
            ["thing", "state", "what"],
            [
                [f"{t.kind}/{t.name}", "complete" if t.complete else "unfinished", describe(t)]
                for t in things
            ],
        )
        return
    found = find_thing(where, thing)
    if found.kind == "alignment" and found.manifest is not None and document is None:
        from fusestore.align.stored import open_alignment

        from .alignments import alignment_summary, print_alignment

        alignment = open_alignment(found.location)
        if as_json:
            print_json({**alignment_summary(alignment, rows), **found.manifest})
        else:
            print_alignment(alignment)
        return
    if document is None:
        print_json(found.manifest if found.complete else {"state": "unfinished"})
        return
    if found.kind != "cache":
        raise typer.BadParameter("only a cache has rows of a document", param_hint="--document")
    from fusestore.cache.document_rows import document_rows

    columns, lines = document_rows(where, found.name, document, rows)
    if as_json:
        print_json([dict(zip(columns, line, strict=True)) for line in lines])
        return
    print_table(f"{thing}, document {document}", columns, lines)
    output.print("probability of each continuation; p(next) is that of the token that follows")
