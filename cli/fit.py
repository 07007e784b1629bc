"""`fusestore estimate --fit`: what of a model fits where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .console import output, print_json, print_table

if TYPE_CHECKING:
    from fusestore.capture.fit.fit import ModelFit, WayFit
    from fusestore.capture.settings import CaptureSettings
    from fusestore.store.layout import Store


def print_fit(
    name: str,
    store: Store | None,
    settings: CaptureSettings,
    device_memory: Sequence[str] | None,
    main_memory: str | None,
    max_length: int | None,
    as_json: bool,
) -> None:
    """Compute it, and print a table, what was assumed, and one sentence."""
    from fusestore.capture.fit.devices import named_devices, parse_size
    from fusestore.capture.fit.fit import fit_model
    from fusestore.models.model import Model

    devices = named_devices(device_memory or ())
    memory = None
    if main_memory is not None:
        count, each = parse_size(main_memory)
        memory = count * each
    model = Model.open(
        name,
        store=store,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    fit = fit_model(
        model,
        devices=devices,
        memory=memory,
        max_length=max_length,
        batch_size=settings.batch_size,
    )
    if as_json:
        print_json(fit)
        return
    _print_table(fit)


def _print_table(fit: ModelFit) -> None:
    from fusestore.store.shown_table import size_text

    accelerated = any(device.kind == "accelerator" for device in fit.devices)
    columns = ["loaded", "weights", "activations", "logits", "in sum", "fits"]
    names = [f"{device.name} ({size_text(device.num_bytes)})" for device in fit.devices]
    counts = {name: names.count(name) for name in names}
    print_table(
        f"{fit.model}: {fit.num_parameters:,} parameters on "
        + ", ".join(f"{count} × {name}" for name, count in counts.items()),
        [*columns, "such devices needed"] if accelerated else columns,
        [
            [
                way.way,
                f"{'' if way.exact else '~'}{size_text(way.weight_bytes)}",
                size_text(way.activation_bytes),
                size_text(way.logits_bytes),
                size_text(way.num_bytes),
                _places(way),
                *([_needed(way)] if accelerated else []),
            ]
            for way in fit.ways
        ],
    )
    for sentence in fit.assumptions:
        output.print(f"Assumed: {sentence}")
    output.print(fit.summary)


def _needed(way: WayFit) -> str:
    return "more than 64" if way.devices_needed is None else f"{way.devices_needed:,}"


def _places(way: WayFit) -> str:
    kinds = [placement.kind for placement in way.placements if placement.fits]
    return ", ".join(kinds) or "no"
