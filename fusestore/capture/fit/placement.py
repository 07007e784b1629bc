"""Whether weights and work fit: on one device or several, with main memory, in a server. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusestore.capture.fit.devices import Device
from fusestore.capture.fit.needed_memory import Way, Work
from fusestore.models.model_shape import ModelShape

PlacementKind = Literal[
    "one device", "spread", "tensor parallel", "offload to main memory", "server"
]

_USABLE = 0.95
_CONTEXT_BYTES = 2**30
"""What an accelerator's driver and libraries take, and what its allocator cannot use."""

PROCESS_BYTES = 3 * 2**28
"""What Python takes of the main memory with torch and transformers, without a model."""

_SERVER_SHARE = 0.9
"""Of a device's memory that vLLM and SGLang use by default."""

_SERVER_TOKENS = 8192
"""Tokens that a server computes at once."""

MOST_NEEDED = 64
"""Devices up to which it is tried how many a model needs."""


@dataclass(frozen=True)
class Placement:
    """One way to place a model.

    Attributes:
        kind: how.
        fits: whether it fits.
        devices: how many devices take part.
        largest_bytes: what the fullest of them holds, weights and work.
    """

    kind: PlacementKind
    fits: bool
    devices: int
    largest_bytes: int


def usable(device: Device) -> int:
    """Bytes that weights and work may take of a device."""
    if device.kind == "processor":
        return max(0, device.num_bytes - PROCESS_BYTES)
    return max(0, int(device.num_bytes * _USABLE) - _CONTEXT_BYTES)


def placements(
    shape: ModelShape,
    way: Way,
    work: Work,
    length: int,
    devices: Sequence[Device],
    main_memory: int,
) -> list[Placement]:
    """Every way to place a model on these devices, the quickest first.

    Args:
        shape: of the model.
        way: in which it is loaded.
        work: what a batch needs beside the weights.
        length: tokens of the longest document.
        devices: at least one.
        main_memory: bytes that may hold weights beside the devices.
    """
    largest = max(devices, key=usable)
    total = way.num_bytes + work.activations + work.logits
    found = [Placement("one device", total <= usable(largest), 1, total)]
    if shape.is_gguf and way.name == "as it is":
        # llama.cpp's own choice of what lies where is not ours.
        return found
    accelerators = [device for device in devices if device.kind == "accelerator"]
    if len(accelerators) > 1:
        found.append(_spread(way, work, accelerators))
        found.append(_tensor_parallel(shape, way, work, accelerators))
    if accelerators:
        found.append(_offload(way, work, accelerators, main_memory))
        found.append(_server(shape, way, length, accelerators))
    return found


def devices_needed(way: Way, work: Work, device: Device) -> int | None:
    """How many devices like this one hold the model, spread over them; None above `MOST_NEEDED`."""
    for count in range(1, MOST_NEEDED + 1):
        if _spread(way, work, [device] * count).fits:
            return count
    return None


def _spread(way: Way, work: Work, devices: Sequence[Device]) -> Placement:
    """Units in order, each whole on the first device with room, as `device_map` places them."""
    room = [usable(device) - work.activations for device in devices]
    used = [0] * len(devices)
    current, last = 0, len(way.unit_bytes) - 1
    fits = True
    for number, size in enumerate(way.unit_bytes):
        # The device of the last unit also makes the logits.
        needed = size + (work.logits if number == last else 0)
        while current < len(devices) - 1 and used[current] + needed > room[current]:
            current += 1
        used[current] += needed
        fits &= used[current] <= room[current]
    busy = sum(1 for amount in used if amount)
    return Placement("spread", fits, busy, max(used) + work.activations)


def _tensor_parallel(
    shape: ModelShape, way: Way, work: Work, devices: Sequence[Device]
) -> Placement:
    """Matrices of the plan divided evenly, all other weights and the hidden states on each."""
    devices = _power_of_two(devices)
    count = len(devices)
    split = sum(
        size * unit.split // max(1, unit.parameters)
        for unit, size in zip(shape.units, way.unit_bytes, strict=True)
    )
    each = way.num_bytes - split + -(-split // count) + work.activations + work.logits
    # Where no plan exists, transformers has no tensor parallelism for the model. Quantized weights
    # of bitsandbytes cannot be divided.
    possible = split > 0 and way.name not in ("8 bit", "4 bit")
    smallest = min(map(usable, devices))
    return Placement("tensor parallel", possible and each <= smallest, count, each)


def _offload(way: Way, work: Work, devices: Sequence[Device], main_memory: int) -> Placement:
    """As much as fits on the devices; the rest in main memory, one unit at a time on a device."""
    room = sum(max(0, usable(device) - work.activations) for device in devices) - work.logits
    largest = max(way.unit_bytes)
    # Room for the unit that is computed next is kept free.
    rest = max(0, way.num_bytes - (room - largest))
    alone = largest + work.activations + work.logits
    fits = alone <= usable(devices[0]) and rest <= max(0, main_memory - PROCESS_BYTES)
    return Placement("offload to main memory", fits, len(devices), alone)


def _server(shape: ModelShape, way: Way, length: int, devices: Sequence[Device]) -> Placement:
    """VLLM or SGLang with tensor parallelism: weights divided, and keys and values of a batch."""
    devices = _power_of_two(devices)
    count = len(devices)
    width = max((unit.width for unit in shape.units), default=0) + 4 * shape.hidden_size
    cache = way.dtype_bytes * shape.kv_size * max(_SERVER_TOKENS, length)
    logits = 4 * _SERVER_TOKENS * shape.vocab_size
    each = -(-(way.num_bytes + cache + logits) // count)
    each += way.dtype_bytes * width * _SERVER_TOKENS
    room = min(int(device.num_bytes * _SERVER_SHARE) for device in devices)
    return Placement("server", each <= room, count, each)


def _power_of_two(devices: Sequence[Device]) -> list[Device]:
    """As many of the largest devices as is a power of two: heads are divided evenly."""
    count = 1 << (len(devices).bit_length() - 1)
    return sorted(devices, key=usable, reverse=True)[:count]
