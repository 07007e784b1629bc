"""`fusestore mv`: give an artifact another name."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, StorageOption, StoreOption, open_store


def mv(
    store: StoreOption,
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="KIND/NAME", help="Artifact, as `fusestore ls` lists it.", show_default=False
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.", show_default=False)],
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an artifact another name.

    What was made from it stays valid. On object storage the artifact is copied, then the old one
    is removed; the same command continues an interrupted copy.
    """
    from fusestore.workflows.managing.renaming import rename_artifact

    renamed = rename_artifact(open_store(store, storage_option), artifact, name, ConsoleReporter())
    if as_json:
        print_json(renamed)
        return
    output.print(f"Renamed {renamed.artifact} to {renamed.renamed} in {renamed.store}")
