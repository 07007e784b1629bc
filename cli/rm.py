"""`fusestore rm`: remove artifacts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fusestore.store.shown_table import counted

from .console import output, print_json, print_table
from .options import DryRunOption, JsonOption, StorageOption, StoreOption, open_store

if TYPE_CHECKING:
    from fusestore.workflows.managing.removal import Removal


def rm(
    store: StoreOption,
    artifacts: Annotated[
        list[str],
        typer.Argument(
            metavar="KIND/NAME", help="Artifacts, as `fusestore ls` lists them.", show_default=False
        ),
    ],
    cascade: Annotated[
        bool,
        typer.Option(
            "--cascade", help="Also remove everything that was made from them. Asks before."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: DryRunOption = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts of a store.

    Refuses while something that stays was made from them, or while a process writes them. The same
    command finishes an interrupted removal.
    """
    from fusestore.workflows.managing.removal import remove_artifacts

    opened = open_store(store, storage_option)
    found = remove_artifacts(opened, artifacts, cascade=cascade, dry_run=True)
    if any(each.because_of for each in found.artifacts) and not (yes or dry_run):
        _confirm(found)
    if not dry_run:
        found = remove_artifacts(opened, artifacts, cascade=cascade)
    if as_json:
        print_json(found)
        return
    _print(found, "Would remove" if dry_run else "Removed")


def _confirm(removal: Removal) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"{counted(len(removal.artifacts), 'artifact')} would be removed, and there is no "
            "terminal to ask. Look at them with --dry-run, then give --yes",
            param_hint="--cascade",
        )
    _print(removal, "To remove:")
    typer.confirm("Remove them?", abort=True, err=True)


def _print(removal: Removal, verb: str) -> None:
    from fusestore.store.shown_table import size_text

    rows = [
        [each.artifact, size_text(each.num_bytes), f"{each.num_files:,}", each.because_of or ""]
        for each in removal.artifacts
    ]
    print_table("", ["artifact", "size", "files", "made from"], rows)
    output.print(
        f"{verb} {counted(len(removal.artifacts), 'artifact')}: {size_text(removal.num_bytes)} in "
        f"{counted(removal.num_files, 'file')}"
    )
