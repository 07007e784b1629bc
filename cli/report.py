"""`fusestore report`: the page of a store."""

from __future__ import annotations

from typing import Annotated

import typer

from fusestore.report.page.settings import ReportSettings

from .console import ConsoleReporter, output, print_json
from .early_checks import check_artifacts
from .options import JsonOption, StorageOption, StoreOption, open_store
from .settings_options import settings_options


@settings_options(ReportSettings)
def report(
    store: StoreOption,
    file: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="HTML file to write, outside the store."
        ),
    ] = "report.html",
    *,
    settings: ReportSettings,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one page about a store, with a viewer of its tokens.

    It also shows lineage, sources, alignments, a forecast, learning curves and storage. The page is
    a file that loads nothing. No model runs.
    """
    opened = open_store(store, storage_option)
    from fusestore.store.inventory import check_store

    check_store(opened)
    check_artifacts(opened, "fused", [settings.fused])
    from fusestore.workflows.store_report import write_report

    written = write_report(opened, file, settings, reporter=ConsoleReporter())
    if as_json:
        print_json(written.model_dump(mode="json"))
        return
    for part in written.absent:
        output.print(f"{part.part}: not on the page: {part.reason}", markup=False)
    output.print(f"Report: {file}", markup=False)
