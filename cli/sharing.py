"""`fusestore push`, `pull` and `sync`: artifacts from one store to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, storage_options

if TYPE_CHECKING:
    from fusestore.store.layout import Store
    from fusestore.workflows.sharing import Shared

_Artifacts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KIND/NAME", help="Artifacts, as `fusestore ls` lists them, such as cache/demo."
    ),
]
_FROM_HELP = "Store to copy from: a folder or URL."
_TO_HELP = "Store to copy to: a folder or URL."
_From = Annotated[str, typer.Option("--from", metavar="STORE", help=_FROM_HELP)]
_To = Annotated[str, typer.Option("--to", metavar="STORE", help=_TO_HELP)]
_FromOption = Annotated[
    list[str] | None,
    typer.Option(
        "--from-storage-option",
        metavar="KEY=VALUE ...",
        help="Option of the storage of --from, such as endpoint_url=URL.",
    ),
]
_ToOption = Annotated[
    list[str] | None,
    typer.Option(
        "--to-storage-option",
        metavar="KEY=VALUE ...",
        help="Option of the storage of --to, such as endpoint_url=URL.",
    ),
]
_All = Annotated[bool, typer.Option("--all", help="Copy every complete artifact.")]
_WithInputs = Annotated[
    bool, typer.Option("--with-inputs", help="Also copy the artifacts that these were made from.")
]
_Jobs = Annotated[
    int, typer.Option("--jobs", "-j", min=1, help="Number of files copied at the same time.")
]
_Check = Annotated[
    bool,
    typer.Option("--check", help="Also read files that were copied before; replace damaged ones."),
]


def push(
    from_store: Annotated[
        str, typer.Option("--from", "--store", "-s", metavar="STORE", help=_FROM_HELP)
    ],
    to_store: _To,
    artifacts: _Artifacts = None,
    everything: _All = False,
    inputs: _WithInputs = False,
    jobs: _Jobs = 8,
    check: _Check = False,
    from_storage_option: _FromOption = None,
    to_storage_option: _ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy artifacts from your store to another one.

    Only missing files are copied, and every byte is checked. The same command continues an
    interrupted copy.
    """
    source = _store(from_store, from_storage_option, "--from-storage-option")
    target = _store(to_store, to_storage_option, "--to-storage-option")
    _copy(source, target, _names(artifacts, everything), inputs, jobs, check, as_json)


def pull(
    from_store: _From,
    to_store: Annotated[str, typer.Option("--to", "--store", "-s", metavar="STORE", help=_TO_HELP)],
    artifacts: _Artifacts = None,
    everything: _All = False,
    inputs: _WithInputs = False,
    jobs: _Jobs = 8,
    check: _Check = False,
    from_storage_option: _FromOption = None,
    to_storage_option: _ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy artifacts from another store to yours.

    Only missing files are copied, and every byte is checked. The same command continues an
    interrupted copy.
    """
    source = _store(from_store, from_storage_option, "--from-storage-option")
    target = _store(to_store, to_storage_option, "--to-storage-option")
    _copy(source, target, _names(artifacts, everything), inputs, jobs, check, as_json)


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
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KIND/NAME",
            help="Artifacts, as `fusestore ls` lists them, such as cache/demo. By default every "
            "complete artifact.",
        ),
    ] = None,
    jobs: _Jobs = 8,
    check: _Check = False,
    from_storage_option: _FromOption = None,
    to_storage_option: _ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy to each of two stores what only the other one has.

    The same command continues an interrupted copy.
    """
    from fusestore.workflows.sharing import sync_stores

    first = _store(from_store, from_storage_option, "--from-storage-option")
    second = _store(to_store, to_storage_option, "--to-storage-option")
    results = sync_stores(
        first, second, artifacts or None, jobs=jobs, check=check, reporter=ConsoleReporter()
    )
    _report(results, as_json)


def _copy(
    source: Store,
    target: Store,
    names: list[str] | None,
    inputs: bool,
    jobs: int,
    check: bool,
    as_json: bool,
) -> None:
    from fusestore.workflows.sharing import copy_artifacts

    reporter = ConsoleReporter()
    results = copy_artifacts(
        source, target, names, inputs=inputs, jobs=jobs, check=check, reporter=reporter
    )
    _report(results, as_json)


def _names(artifacts: list[str] | None, everything: bool) -> list[str] | None:
    """The names, or None for all artifacts."""
    if bool(artifacts) == everything:
        raise typer.BadParameter(
            "name the artifacts to copy, or give --all, not both", param_hint="KIND/NAME"
        )
    return artifacts or None


def _store(url: str, pairs: list[str] | None, hint: str) -> Store:
    from fusestore.store.layout import Store

    return Store.open(url, storage_options(pairs, hint))


def _report(results: Sequence[Shared], as_json: bool) -> None:
    if as_json:
        print_json([vars(result) for result in results])
        return
    for result in results:
        if result.already_there:
            output.print(f"Already there: {result.artifact} in {result.target}")
        else:
            output.print(
                f"Copied {result.artifact} to {result.target}: {result.num_files:,} files, "
                f"{result.num_bytes:,} bytes"
            )
