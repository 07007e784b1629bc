"""`fusestore run`: all stages of a fusion, described by one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import ConsoleReporter, messages, output, print_curves, print_json, print_table
from .early_checks import check_inputs, check_models
from .estimate import PricePerGbMonth, PricePerHour, print_fusion_estimate
from .options import DryRunOption, JsonOption, StorageOption, storage_options

if TYPE_CHECKING:
    from fusestore.workflows.fusion_config import FusionConfig


def run(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The fusion.toml file: a path or URL.")
    ],
    store: Annotated[
        str | None,
        typer.Option(
            "--store", "-s", metavar="STORE", help="Store to use instead of the one in the file."
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Only estimate the size, time and cost of the captures. The corpus is built if it "
            "is missing.",
            rich_help_panel="Estimate",
        ),
    ] = False,
    price_per_hour: PricePerHour = None,
    price_per_gb_month: PricePerGbMonth = None,
    dry_run: DryRunOption = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run all stages of a fusion.toml; skip what is already built.

    The same command continues an interrupted run.
    """
    if not estimate and (price_per_hour, price_per_gb_month) != (None, None):
        raise typer.BadParameter("needs --estimate", param_hint="--price-per-…")
    from fusestore.storage.location import Location
    from fusestore.store.layout import Store
    from fusestore.workflows.fusion_config import code_notices, load_config

    options = storage_options(storage_option)
    # Before torch and the like are imported, which takes seconds.
    config = load_config(Location.parse(file, options), store, options)
    if estimate or dry_run:
        for notice in code_notices(config):
            messages.print(notice)
    if estimate:
        print_fusion_estimate(config, price_per_hour, price_per_gb_month, as_json)
        return
    if dry_run:
        _print_plan(config, as_json)
        return
    opened = Store.open(config.store, config.storage_options)
    check_inputs(opened, config.corpus.name, config.corpus.inputs)
    check_models(each.model for each in config.models.values())
    from fusestore.workflows.pipeline import run_pipeline

    summary = run_pipeline(config, ConsoleReporter())
    if as_json:
        print_json(summary)
        return
    for title, columns, rows in summary.tables():
        print_table(title, columns, rows)
    print_curves(summary.curves, summary.savings)
    if summary.conclusion is not None:
        output.print(f"\n{summary.conclusion}")
    if summary.report is not None:
        output.print(f"\nReport: {summary.report}", markup=False)


def _print_plan(config: FusionConfig, as_json: bool) -> None:
    from fusestore.workflows.planned_run import plan_run

    planned = plan_run(config)
    if as_json:
        print_json(planned)
        return
    rows = [[each.artifact, each.state] for each in planned.stages]
    print_table(planned.store, ["artifact", "state"], rows)
    if any(each.state == "if needed" for each in planned.stages):
        output.print("if needed: made where source and target have different tokenizers")
    if any(each.state == "already there" for each in planned.stages):
        output.print("already there: taken if it was made with the settings of the file")
