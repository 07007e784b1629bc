"""`fusestore verify`: read what a store holds and find every damaged byte."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .console import output, print_json
from .options import JsonOption, StorageOption, StoreOption, storage_options


def verify(
    store: StoreOption,
    thing: Annotated[
        str | None, typer.Argument(help="KIND/NAME, for instance cache/smollm2; none: everything.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and receipts only.")] = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check checksums, sizes and meanings; exit code 1 when anything is wrong."""
    from fusestore.storage.store import Store
    from fusestore.verification import verify_store

    where = Store.open(store, storage_options(storage_option))
    checked = verify_store(where, thing, quick=quick)
    if as_json:
        print_json({name: [vars(finding) for finding in found] for name, found in checked.items()})
    else:
        for name, found in checked.items():
            output.print(f"{name}: {'sound' if not found else f'{len(found)} problem(s)'}")
            for finding in found:
                output.print(f"  {finding.file}: {finding.problem}")
    if any(checked.values()):
        sys.exit(1)
