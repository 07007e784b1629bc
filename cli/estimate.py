"""`fusestore estimate`: size, time and cost of a capture before it begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from fusestore.capture.settings import CaptureSettings

from .console import ConsoleReporter, output, print_json, print_table
from .options import MODEL_FORMS, JsonOption, StorageOption, StoreOption, open_store
from .settings_options import settings_options

if TYPE_CHECKING:
    from fusestore.capture.estimate import CaptureEstimate
    from fusestore.workflows.fusion_config import FusionConfig

_ESTIMATE = "Estimate"

PricePerHour = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Price per hour of the capturing machine. Adds the cost of the capture.",
        rich_help_panel=_ESTIMATE,
    ),
]
PricePerGbMonth = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Price of storage per 10^9 bytes and month. Adds the cost of storage.",
        rich_help_panel=_ESTIMATE,
    ),
]


# --seed selects the documents of an estimate, so the capture's own seed has no option.
@settings_options(CaptureSettings, skip={"seed"})
def estimate(
    model: Annotated[
        str,
        typer.Argument(help=f"Model to capture: {MODEL_FORMS}."),
    ],
    store: StoreOption,
    settings: CaptureSettings,
    corpus: Annotated[str, typer.Option(metavar="NAME", help="Name of the corpus.")] = "corpus",
    price_per_hour: PricePerHour = None,
    price_per_gb_month: PricePerGbMonth = None,
    sample_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of tokens that are captured for the estimate. By default as many as take "
            "a few seconds.",
            rich_help_panel=_ESTIMATE,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed that selects the documents that are captured.", rich_help_panel=_ESTIMATE
        ),
    ] = 0,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the size, time and cost of a capture.

    A few documents are captured with the options of `fusestore capture` that are given here.
    Nothing is written to the store.
    """
    from fusestore.capture.estimate import Prices, estimate_capture
    from fusestore.corpus.build import open_corpus
    from fusestore.models.model import Model

    opened = open_store(store, storage_option)
    documents = open_corpus(opened, corpus)
    handle = Model.open(
        model,
        store=opened,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    result = estimate_capture(
        opened,
        "estimate",
        handle,
        documents,
        settings,
        prices=Prices(price_per_hour, price_per_gb_month),
        sample_tokens=sample_tokens,
        seed=seed,
        reporter=ConsoleReporter(),
    )
    if as_json:
        print_json(vars(result))
        return
    print_estimate(result)


def print_estimate(result: CaptureEstimate) -> None:
    """Print an estimate as a table and a few lines."""
    tokens = result.num_tokens
    sizes = {**result.bytes_by_array, "all": result.num_bytes}
    print_table(
        f"{tokens:,} tokens in {result.num_documents:,} documents",
        ["array", "bytes", "bytes per token"],
        [[name, f"{size:,}", f"{size / tokens:.2f}"] for name, size in sizes.items()],
    )
    steps = ", ".join(f"{name} {value:,.1f} s" for name, value in result.seconds_by_step.items())
    output.print(f"Time: {result.seconds:,.1f} s ({steps})")
    output.print(
        f"Rate: {result.tokens_per_second:,.0f} tokens/s; "
        f"memory: {result.peak_memory_bytes / 2**30:.1f} GiB while sampling"
    )
    if result.cost is not None:
        output.print(f"Cost of the capture: {result.cost:.4g}")
    if result.storage_cost_per_month is not None:
        output.print(f"Cost of storage: {result.storage_cost_per_month:.4g} per month")
    output.print(
        f"Estimated from {result.sampled_tokens:,} tokens in {result.sampled_documents:,} documents"
    )


def print_fusion_estimate(
    config: FusionConfig,
    price_per_hour: float | None,
    price_per_gb_month: float | None,
    as_json: bool,
) -> None:
    """Estimate the captures of a fusion.toml; print one line for each, and their sum."""
    from fusestore.capture.estimate import Prices
    from fusestore.workflows.estimation import estimate_fusion

    prices = Prices(price_per_hour, price_per_gb_month)
    results = estimate_fusion(config, prices=prices, reporter=ConsoleReporter())
    if as_json:
        print_json({name: vars(result) for name, result in results.items()})
        return
    columns: dict[str, tuple[str, Callable[[CaptureEstimate], float]]] = {
        "tokens": (",", lambda result: result.num_tokens),
        "bytes": (",", lambda result: result.num_bytes),
        "seconds": (",.1f", lambda result: result.seconds),
    }
    if price_per_hour is not None:
        columns["cost"] = (".4g", lambda result: result.cost or 0)
    if price_per_gb_month is not None:
        columns["cost per month"] = (".4g", lambda result: result.storage_cost_per_month or 0)
    groups = {name: [result] for name, result in results.items()}
    groups["all"] = list(results.values())
    print_table(
        "Estimate of the captures",
        ["cache", *columns],
        [
            [name, *(format(sum(map(value, group)), form) for form, value in columns.values())]
            for name, group in groups.items()
        ],
    )
