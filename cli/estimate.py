"""`fusestore estimate`: what a capture will take, before it begins, and where a model fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from fusestore.capture.settings import CaptureSettings
from fusestore.store.shown_table import counted

from .console import ConsoleReporter, output, print_json, print_table
from .early_checks import check_artifacts, check_models
from .fit import print_fit
from .options import MODEL_FORMS, STORE_HELP, JsonOption, StorageOption, open_store
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


_FIT = "Fit"

FitOption = Annotated[
    bool,
    typer.Option(
        "--fit",
        help="Compute on which devices the model fits, from its configuration or GGUF header "
        "alone. Needs no store, and downloads no weights.",
        rich_help_panel=_FIT,
    ),
]
DeviceMemory = Annotated[
    list[str] | None,
    typer.Option(
        "--device-memory",
        metavar="SIZE",
        help="With --fit: memory of an accelerator, such as 24GiB, or 8x80GiB for eight. Once for "
        "each kind. By default the devices of this machine.",
        rich_help_panel=_FIT,
    ),
]
MainMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="With --fit: main memory that may hold layers beside the devices. By default what is "
        "available on this machine.",
        rich_help_panel=_FIT,
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --fit: tokens of the longest document. By default 4096, or the model's context "
        "if that is shorter.",
        rich_help_panel=_FIT,
    ),
]
OptionalStore = Annotated[
    str | None,
    typer.Option(
        "--store",
        "-s",
        metavar="STORE",
        help=f"{STORE_HELP} Needed unless --fit is given.",
        show_default=False,
    ),
]


# --seed selects the documents of an estimate, so the capture's own seed has no option.
@settings_options(CaptureSettings, skip={"seed"})
def estimate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=f"Model to capture: {MODEL_FORMS}."),
    ],
    settings: CaptureSettings,
    store: OptionalStore = None,
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
    fit: FitOption = False,
    device_memory: DeviceMemory = None,
    main_memory: MainMemory = None,
    max_length: MaxLength = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a capture will take, or where a model fits.

    A few documents are captured with the options of `fusestore capture` that are given here.
    Nothing is written to the store. With `--fit`, nothing is captured or downloaded: memory is
    computed from the model's configuration.
    """
    if fit:
        opened = None if store is None else open_store(store, storage_option)
        print_fit(model, opened, settings, device_memory, main_memory, max_length, as_json)
        return
    for value, flag in ((device_memory, "device"), (main_memory, "main")):
        if value is not None:
            raise typer.BadParameter("needs --fit", param_hint=f"--{flag}-memory")
    if max_length is not None:
        raise typer.BadParameter("needs --fit", param_hint="--max-length")
    if store is None:
        raise typer.BadParameter(
            "is needed to capture a sample. Or ask with --fit what of the model fits where",
            param_hint="--store",
        )
    opened = open_store(store, storage_option)
    check_artifacts(opened, "corpus", [corpus])
    check_models([model])
    from fusestore.capture.estimate import Prices, estimate_capture
    from fusestore.corpus.corpus import open_corpus
    from fusestore.models.model import Model

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
    rows = f", {result.num_rows:,} rows" if result.num_rows < tokens else ""
    print_table(
        f"{counted(tokens, 'token')} in {counted(result.num_documents, 'document')}{rows}",
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
        f"Estimated from {counted(result.sampled_tokens, 'token')} in "
        f"{counted(result.sampled_documents, 'document')}"
    )


def print_fusion_estimate(
    config: FusionConfig,
    price_per_hour: float | None,
    price_per_gb_month: float | None,
    as_json: bool,
) -> None:
    """Estimate the captures of a fusion.toml; print one line for each, and their sum."""
    from fusestore.capture.estimate import Prices
    from fusestore.workflows.estimation import FusionEstimate, estimate_fusion

    prices = Prices(price_per_hour, price_per_gb_month)
    results = estimate_fusion(config, prices=prices, reporter=ConsoleReporter())
    if as_json:
        print_json(FusionEstimate(captures=results))
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
