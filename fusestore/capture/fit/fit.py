"""`fit_model`: what of a model fits where, from its configuration or GGUF header alone."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import computed_field

from fusestore.capture.fit.devices import Device, machine_devices, main_memory
from fusestore.capture.fit.needed_memory import (
    Batch,
    Way,
    WayName,
    Work,
    batch_of,
    gguf_work,
    ways,
    work,
)
from fusestore.capture.fit.placements import Placement, devices_needed, placements
from fusestore.models.model import Model
from fusestore.models.model_shape import ModelShape, model_shape
from fusestore.store.manifest import Frozen

DEFAULT_LENGTH = 4_096
"""Tokens of the longest document, unless it is given or the model reads fewer."""


class WayFit(Frozen):
    """Whether a model fits when it is loaded in one way.

    Attributes:
        way: `bfloat16`, `float32`, `8 bit`, `4 bit` (both by bitsandbytes), or `as it is`.
        weight_bytes: of all weights.
        exact: whether they were counted; if not, they follow from the rules of the format.
        activation_bytes, logits_bytes: beside the weights, at the largest moment of a batch.
        placements: how it may be placed on the devices, the quickest way first.
        devices_needed: devices like the largest one that hold it, spread over them; None where
            that is more than 64, or where a device is a processor.
    """

    way: WayName
    weight_bytes: int
    exact: bool
    activation_bytes: int
    logits_bytes: int
    placements: tuple[Placement, ...]
    devices_needed: int | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def num_bytes(self) -> int:
        """Weights and work on one device."""
        return self.weight_bytes + self.activation_bytes + self.logits_bytes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def best(self) -> Placement | None:
        """The quickest placement that fits; null if none does."""
        return next((placement for placement in self.placements if placement.fits), None)


class ModelFit(Frozen):
    """What of a model fits where; what `fusestore estimate --fit --json` prints.

    Attributes:
        model: as it was named.
        num_parameters: tied ones once.
        devices: the devices it was fitted on.
        main_memory: bytes that may hold weights beside the devices.
        documents, length: of the batch that was assumed.
        ways: the ways to load it.
        assumptions: sentences on what was assumed.
        summary: one sentence.
    """

    model: str
    num_parameters: int
    devices: tuple[Device, ...]
    main_memory: int
    documents: int
    length: int
    ways: tuple[WayFit, ...]
    assumptions: tuple[str, ...]
    summary: str


def fit_model(
    model: Model,
    *,
    devices: Sequence[Device] = (),
    memory: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
) -> ModelFit:
    """Compute what a capture of a model takes, and where that fits.

    Args:
        model: its configuration is read, or its GGUF header; of a hub model no weights are fetched.
        devices: to fit it on; by default those of this machine.
        memory: bytes of main memory beside them; by default what is available here.
        max_length: tokens of the longest document; by default 4,096, or fewer if the model's
            context is shorter.
        batch_size: documents of a batch; by default as many as a capture runs.

    Raises:
        NotFoundError, InvalidInputError, MissingDependencyError: as `model_shape`.
    """
    return fit_shape(
        model.spec,
        model_shape(model),
        devices=tuple(devices) or tuple(machine_devices()),
        memory=main_memory() if memory is None else memory,
        max_length=max_length,
        batch_size=batch_size,
    )


def fit_shape(
    name: str,
    shape: ModelShape,
    *,
    devices: Sequence[Device],
    memory: int,
    max_length: int | None = None,
    batch_size: int | None = None,
) -> ModelFit:
    """`fit_model` for a shape; other arguments as there, and `name` of the model."""
    from fusestore.capture.batches import limits_on

    on_processor = all(device.kind == "processor" for device in devices)
    length = max_length or min(DEFAULT_LENGTH, shape.context or DEFAULT_LENGTH)
    limits = limits_on("cpu" if on_processor else "cuda")
    batch = batch_of(limits.tokens, length, batch_size)
    fits = tuple(_way_fit(shape, way, batch, devices, memory, on_processor) for way in ways(shape))
    return ModelFit(
        model=name,
        num_parameters=shape.num_parameters,
        devices=tuple(devices),
        main_memory=memory,
        documents=batch.documents,
        length=length,
        ways=fits,
        assumptions=_assumptions(shape, fits, batch),
        summary=_summary(fits, devices, on_processor),
    )


def _way_fit(
    shape: ModelShape,
    way: Way,
    batch: Batch,
    devices: Sequence[Device],
    memory: int,
    on_processor: bool,
) -> WayFit:
    needed = _work(shape, way, batch, on_processor)
    largest = max(devices, key=lambda device: device.num_bytes)
    return WayFit(
        way=way.name,
        weight_bytes=way.num_bytes,
        exact=way.exact,
        activation_bytes=needed.activations,
        logits_bytes=needed.logits,
        placements=tuple(placements(shape, way, needed, batch.length, devices, memory)),
        devices_needed=None if on_processor else devices_needed(way, needed, largest),
    )


def _work(shape: ModelShape, way: Way, batch: Batch, on_processor: bool) -> Work:
    from fusestore.capture.device import SELECTED_LOGITS
    from fusestore.capture.engines.libllama import batch_rows
    from fusestore.models.logits import CHUNK_LOGITS, CHUNK_LOGITS_ELSEWHERE

    if shape.is_gguf and way.name == "as it is":
        return gguf_work(shape, batch.length, batch_rows(shape.vocab_size))
    if on_processor:
        return work(shape, way, batch, CHUNK_LOGITS["cpu"], 0)
    return work(shape, way, batch, CHUNK_LOGITS_ELSEWHERE, SELECTED_LOGITS)


def _assumptions(shape: ModelShape, fits: Sequence[WayFit], batch: Batch) -> tuple[str, ...]:
    said = [
        f"A batch has {batch.documents:,} document{'s' if batch.documents > 1 else ''} of "
        f"{batch.length:,} tokens (--max-length, --batch-size).",
        "Nothing that a layer computes is freed before its end, and attention keeps no scores of "
        "all pairs of tokens (sdpa or flash_attention_2, not eager).",
        "Of an accelerator 95 % less 1 GiB is usable, of main memory what is available less "
        "0.75 GiB for Python.",
    ]
    linear = sum(unit.linear for unit in shape.units)
    if any(fit.way == "4 bit" for fit in fits):
        said.append(
            "8 bit and 4 bit are bitsandbytes' int8 and nf4, which quantize "
            f"{linear / shape.num_parameters:.0%} of the weights: those of linear layers, neither "
            "embeddings and output head nor stacks of experts."
        )
    if not all(fit.exact for fit in fits):
        said.append(
            "The bytes of the weights as they are follow from quantization_config, because "
            "neither the files nor their index are here."
        )
    if shape.is_gguf:
        said.append(
            "As it is, llama.cpp runs the file with keys and values in 16 bits, one document at a "
            "time; the other ways run the folder that it is converted to."
        )
    if any(placement.kind == "server" for fit in fits for placement in fit.placements):
        said.append(
            "A server (vLLM, SGLang) divides the weights over a number of devices that is a power "
            "of two, uses 90 % of each, and keeps keys and values of at least 8,192 tokens."
        )
    return tuple(said)


_ORDER: tuple[WayName, ...] = ("as it is", "bfloat16", "float32", "8 bit", "4 bit")


def _summary(fits: Sequence[WayFit], devices: Sequence[Device], on_processor: bool) -> str:
    """One sentence; ways with the same verdict share a clause."""
    verdicts: dict[str, list[str]] = {}
    for fit in sorted(fits, key=lambda fit: _ORDER.index(fit.way)):
        verdict = _verdict(fit, devices, on_processor)
        verdicts.setdefault(verdict, []).append(fit.way)
    clauses = [f"{_way_phrase(names)} it {verdict}" for verdict, names in verdicts.items()]
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _way_phrase(names: Sequence[str]) -> str:
    plain = [name for name in names if name != "as it is"]
    parts = ["as it is"] if "as it is" in names else []
    if plain:
        listed = plain[0] if len(plain) == 1 else f"{', '.join(plain[:-1])} and {plain[-1]}"
        parts.append(f"in {listed}")
    return ", ".join(parts)


def _verdict(fit: WayFit, devices: Sequence[Device], on_processor: bool) -> str:
    best, device = fit.best, max(devices, key=lambda each: each.num_bytes).name
    if best is None and fit.devices_needed is not None and len(devices) < fit.devices_needed:
        return f"needs {_number(fit.devices_needed)} of these"
    if best is None:
        return f"does not fit into {device}" if on_processor else "does not fit on these devices"
    if best.kind == "one device":
        return f"fits into {device}" if on_processor else f"fits on one {device}"
    if best.kind == "offload to main memory":
        needed = fit.devices_needed
        alone = f"needs {_number(needed)} of these, or " if needed is not None else "needs "
        return f"{alone}main memory for the rest (slow)"
    return f"fits on {_number(best.devices)} of the {len(devices)} devices together"


def _number(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else f"{count:,}"
