"""`fusestore push`, `pull` and `sync`: artifacts from one store to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fusestore.store.shown_table import counted
from fusestore.workflows.sharing.settings import CopySettings

from .console import ConsoleReporter, output, print_json
from .options import DryRunOption, JsonOption, open_store
from .settings_options import settings_options

if TYPE_CHECKING:
    from fusestore.store.layout import Store
    from fusestore.workflows.sharing import Shared

_ARTIFACTS_HELP = "Artifacts, as `fusestore ls` lists them, such as cache/demo."
_FROM_HELP = "Store to copy from: a folder or URL."
_TO_HELP = "Store to copy to: a folder or URL."
_Artifacts = Annotated[list[str] | None, typer.Argument(metavar="KIND/NAME", help=_ARTIFACTS_HELP)]
_FromOption = Annotated[
    list[str] | None,
    typer.Option(
        "--from-storage-option",
        metavar="KEY=VALUE ...",
        help="Option of the storage of --from, such as endpoint_url=URL or anon=true.",
    ),
]
_ToOption = Annotated[
    list[str] | None,
    typer.Option(
        "--to-storage-option",
        metavar="KEY=VALUE ...",
        help="Option of the storage of --to, such as endpoint_url=URL or anon=true.",
    ),
]
_All = Annotated[bool, typer.Option("--all", help="Copy every complete artifact.")]


@settings_options(CopySettings)
def push(
    from_store: Annotated[
        str, typer.Option("--from", "--store", "-s", metavar="STORE", help=_FROM_HELP)
    ],
    to_store: Annotated[str, typer.Option("--to", metavar="STORE", help=_TO_HELP)],
    settings: CopySettings,
    artifacts: _Artifacts = None,
    everything: _All = False,
    from_storage_option: _FromOption = None,
    to_storage_option: _ToOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy artifacts from your store to another one.

    Only missing files are copied, and every byte is checked. The same command continues an
    interrupted copy.
    """
    source, target = _stores(from_store, from_storage_option, to_store, to_storage_option)
    _copy(source, target, artifacts, everything, settings, dry_run, as_json)


@settings_options(CopySettings)
def pull(
    from_store: Annotated[str, typer.Option("--from", metavar="STORE", help=_FROM_HELP)],
    to_store: Annotated[str, typer.Option("--to", "--store", "-s", metavar="STORE", help=_TO_HELP)],
    settings: CopySettings,
    artifacts: _Artifacts = None,
    everything: _All = False,
    from_storage_option: _FromOption = None,
    to_storage_option: _ToOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy artifacts from another store to yours.

    Only missing files are copied, and every byte is checked. The same command continues an
    interrupted copy.
    """
    source, target = _stores(from_store, from_storage_option, to_store, to_storage_option)
    _copy(source, target, artifacts, everything, settings, dry_run, as_json)


@settings_options(CopySettings)
def sync(
    from_store: Annotated[
        str,
        typer.Option(
            "--from", "--store", "-s", metavar="STORE", help="One of the stores: a folder or URL."
        ),
    ],
    to_store: Annotated[
        str, typer.Option("--to", metavar="STORE", help="The other store: a folder or URL.")
    ],
    settings: CopySettings,
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KIND/NAME", help=f"{_ARTIFACTS_HELP} By default every complete artifact."
        ),
    ] = None,
    from_storage_option: _FromOption = None,
    to_storage_option: _ToOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy to each of two stores what only the other one has.

    The same command continues an interrupted copy.
    """
    from fusestore.store.inventory import check_store
    from fusestore.workflows.sharing import sync_stores

    first, second = _stores(from_store, from_storage_option, to_store, to_storage_option)
    # A mistyped name must not become a new store; that of --to may be one.
    check_store(first)
    shared = sync_stores(
        first, second, artifacts or None, settings, ConsoleReporter(), dry_run=dry_run
    )
    _report(shared, dry_run, as_json)


def _stores(
    from_store: str, from_options: list[str] | None, to_store: str, to_options: list[str] | None
) -> tuple[Store, Store]:
    return (
        open_store(from_store, from_options, "--from-storage-option"),
        open_store(to_store, to_options, "--to-storage-option"),
    )


def _copy(
    source: Store,
    target: Store,
    artifacts: list[str] | None,
    everything: bool,
    settings: CopySettings,
    dry_run: bool,
    as_json: bool,
) -> None:
    from fusestore.workflows.sharing import copy_artifacts

    if bool(artifacts) == everything:
        raise typer.BadParameter(
            "name the artifacts to copy, or give --all, not both", param_hint="KIND/NAME"
        )
    names = None if everything else artifacts
    shared = copy_artifacts(source, target, names, settings, ConsoleReporter(), dry_run=dry_run)
    _report(shared, dry_run, as_json)


def _report(results: Sequence[Shared], dry_run: bool, as_json: bool) -> None:
    from fusestore.workflows.sharing.run import Copies

    copies = Copies.of(results, dry_run=dry_run)
    if as_json:
        print_json(copies)
        return
    verb = "Would copy" if dry_run else "Copied"
    for result in results:
        if result.already_there:
            output.print(f"Already there: {result.artifact} in {result.target}")
        else:
            output.print(
                f"{verb} {result.artifact} to {result.target}: "
                f"{counted(result.num_files, 'file')}, {result.num_bytes:,} bytes"
            )
    digests = [f"{each.artifact}=sha256:{each.manifest_digest}" for each in results]
    if digests and not dry_run:
        output.print("Others can hold their copies to these digests:")
    for digest in digests if not dry_run else ():
        output.print(f"  --expect {digest}")
    if dry_run:
        output.print(
            f"In all {counted(copies.num_files, 'file')}, {copies.num_bytes:,} bytes; "
            "nothing was copied."
        )
