"""`fusestore verify`: read what a store holds, find every damaged byte, and repair it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, StorageOption, StoreOption, storage_options

if TYPE_CHECKING:
    from fusestore.store.findings import Finding
    from fusestore.store.layout import Store


def verify(
    store: StoreOption,
    artifact: Annotated[
        str | None,
        typer.Argument(help="KIND/NAME, for instance cache/smollm2. Default: everything."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and receipts only.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make again exactly what is damaged.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="For --repair: a model whose cache or tokens are damaged (repeatable).",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="For --repair, as in `capture`.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="For --repair, as in `capture`.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="For --repair, as in `capture`.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="For --repair, as in `capture`.")
    ] = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check checksums, sizes and meanings. Exits with 1 if a problem remains."""
    from fusestore.store.layout import Store

    if repair and quick:
        raise typer.BadParameter("--repair reads everything; leave out --quick.")
    where = Store.open(store, storage_options(storage_option))
    if repair:
        how = {
            "device": device,
            "batch_size": batch_size,
            "attention": attention,
            "trust_remote_code": trust_remote_code,
        }
        sys.exit(_repair(where, artifact, model or [], how, as_json))
    sys.exit(_verify(where, artifact, quick, as_json))


def _verify(store: Store, path: str | None, quick: bool, as_json: bool) -> int:
    from fusestore.store.registry import split_path
    from fusestore.workflows.verification import verify_store

    checked = verify_store(store, path, quick=quick)

    def remedy(path: str, finding: Finding) -> str:
        kind, name = split_path(path)
        return kind.remedy(store, name, finding)

    if as_json:
        print_json(
            {
                name: [{**vars(one), "remedy": remedy(name, one)} for one in found]
                for name, found in checked.items()
            }
        )
    else:
        for name, found in checked.items():
            output.print(f"{name}: {'sound' if not found else f'{len(found)} problem(s)'}")
            for finding in found:
                output.print(f"  {finding.file}: {finding.problem}", markup=False)
                output.print(f"    to repair: {remedy(name, finding)}", markup=False)
    return int(any(checked.values()))


def _repair(
    store: Store, path: str | None, models: list[str], how: dict[str, Any], as_json: bool
) -> int:
    from fusestore.capture.settings import CaptureSettings
    from fusestore.store.settings_file import parse_settings
    from fusestore.workflows.repair import repair_store

    settings = parse_settings(CaptureSettings, how, "The command line")
    repairs = repair_store(
        store, path, models=models, settings=settings, reporter=ConsoleReporter()
    )
    if as_json:
        print_json(
            {
                name: {"findings": [vars(one) for one in done.findings], "problem": done.problem}
                for name, done in repairs.items()
            }
        )
    else:
        for name, done in repairs.items():
            for finding in done.findings:
                output.print(f"{name}: {finding.file}: {finding.problem}", markup=False)
            said = "repaired" if done.problem is None else f"not repaired: {done.problem}"
            output.print(f"{name}: {said}", markup=False)
        if not repairs:
            output.print("Everything is sound.")
    return int(any(done.problem is not None for done in repairs.values()))
