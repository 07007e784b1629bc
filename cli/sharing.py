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
    typer.Argument(help="KIND/NAME each, as `fusestore ls` lists them; or --all."),
]
_From = Annotated[str, typer.Option("--from", help="The store to copy from: folder or URL.")]
_To = Annotated[str, typer.Option("--to", help="The store to copy to: folder or URL.")]
_FromOption = Annotated[
    list[str] | None,
    typer.Option("--from-storage-option", help="KEY=VALUE for the storage of --from (repeatable)."),
]
_ToOption = Annotated[
    list[str] | None,
    typer.Option("--to-storage-option", help="KEY=VALUE for the storage of --to (repeatable)."),
]
_All = Annotated[bool, typer.Option("--all", help="Everything that is complete.")]
_WithInputs = Annotated[
    bool, typer.Option("--with-inputs", help="Also copy what the artifacts were made from.")
]
_Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Files under way at a time.")]
_Check = Annotated[
    bool, typer.Option("--check", help="Read back what is there; copy damaged files again.")
]


def push(
    from_store: Annotated[
        str, typer.Option("--from", "--store", "-s", help="The store to copy from: folder or URL.")
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
    """Copy artifacts from your store to another one: only what is missing, every byte checked.

    Run it again after an interruption: it goes on where it stopped.
    """
    source = _store(from_store, from_storage_option, "--from-storage-option")
    target = _store(to_store, to_storage_option, "--to-storage-option")
    _copy(source, target, _wanted(artifacts, everything), inputs, jobs, check, as_json)


def pull(
    from_store: _From,
    to_store: Annotated[
        str, typer.Option("--to", "--store", "-s", help="The store to copy to: folder or URL.")
    ],
    artifacts: _Artifacts = None,
    everything: _All = False,
    inputs: _WithInputs = False,
    jobs: _Jobs = 8,
    check: _Check = False,
    from_storage_option: _FromOption = None,
    to_storage_option: _ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy artifacts from another store to yours: only what is missing, every byte checked.

    Run it again after an interruption: it goes on where it stopped.
    """
    source = _store(from_store, from_storage_option, "--from-storage-option")
    target = _store(to_store, to_storage_option, "--to-storage-option")
    _copy(source, target, _wanted(artifacts, everything), inputs, jobs, check, as_json)


def sync(
    from_store: Annotated[
        str, typer.Option("--from", "--store", "-s", help="One store: folder or URL.")
    ],
    to_store: Annotated[str, typer.Option("--to", help="The other store: folder or URL.")],
    artifacts: Annotated[
        list[str] | None, typer.Argument(help="KIND/NAME each; none: everything complete.")
    ] = None,
    jobs: _Jobs = 8,
    check: _Check = False,
    from_storage_option: _FromOption = None,
    to_storage_option: _ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give each of two stores what only the other one has."""
    from fusestore.workflows.sharing import sync_stores

    one = _store(from_store, from_storage_option, "--from-storage-option")
    other = _store(to_store, to_storage_option, "--to-storage-option")
    results = sync_stores(
        one, other, artifacts or None, jobs=jobs, check=check, reporter=ConsoleReporter()
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


def _wanted(artifacts: list[str] | None, everything: bool) -> list[str] | None:
    """The names; None for all."""
    if bool(artifacts) == everything:
        raise typer.BadParameter(
            "name the artifacts to copy, or give --all", param_hint="ARTIFACTS"
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
