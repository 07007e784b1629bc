"""`fusestore du`: the storage that a store takes."""

from __future__ import annotations

from typing import Annotated

import typer

from fusestore.store.shown_table import counted

from .console import output, print_json, print_table
from .options import JsonOption, StorageOption, StoreOption, open_store


def du(
    store: StoreOption,
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND/NAME", help="Show the parts of this artifact. By default all artifacts."
        ),
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the storage of each artifact, or of the arrays of one artifact.

    Sizes and dates come from one listing; no data is read.
    """
    from fusestore.store.shown_table import size_text
    from fusestore.workflows.managing.usage import store_usage

    usage = store_usage(open_store(store, storage_option), artifact)
    if as_json:
        print_json(usage)
        return
    per_token = any(entry.bytes_per_token is not None for entry in usage.entries)
    columns = ["part" if usage.artifact else "artifact", "size", "files", "modified (UTC)"]
    rows = [
        [
            entry.name,
            size_text(entry.num_bytes),
            f"{entry.num_files:,}",
            (entry.modified or "unknown")[:16].replace("T", " "),
            *([_number(entry.bytes_per_token)] if per_token else []),
        ]
        for entry in usage.entries
    ]
    title = f"{usage.artifact} in {usage.store}" if usage.artifact else usage.store
    print_table(title, [*columns, *(["bytes a token"] if per_token else [])], rows)
    if usage.kinds:
        output.print("")
        print_table(
            "",
            ["kind", "artifacts", "size", "files"],
            [
                [
                    kind.kind,
                    f"{kind.num_artifacts:,}",
                    size_text(kind.num_bytes),
                    f"{kind.num_files:,}",
                ]
                for kind in usage.kinds
            ],
        )
    other = f", {size_text(usage.other_bytes)} of them in no artifact" if usage.other_bytes else ""
    output.print(
        f"\nTotal: {size_text(usage.num_bytes)} ({usage.num_bytes:,} bytes) in "
        f"{counted(usage.num_files, 'file')}{other}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
