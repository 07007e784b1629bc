"""Devices to fit a model on: those of this machine, or those that a user names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusestore.errors import InvalidInputError
from fusestore.models.placement import memory_bytes
from fusestore.store.shown_table import size_text

_SIZE = re.compile(
    r"(?:(?P<count>\d{1,4})\s*[x×]\s*)?(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]i?B?|B)?",
    re.IGNORECASE,
)

MAX_DEVICES = 1024


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        kind: an accelerator, or the processor with the main memory.
        num_bytes: its memory; of the main memory what is available.
        name: for people.
    """

    kind: Literal["accelerator", "processor"]
    num_bytes: int
    name: str


def parse_size(text: str) -> tuple[int, int]:
    """How many devices, and the bytes of each, of `80GiB` or `8x80GiB`.

    `GiB` and `G` are powers of 1024, `GB` is a power of 1000; a number alone is bytes.

    Raises:
        InvalidInputError: it is no such text, or no bytes or devices remain.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is not None:
        unit = (match["unit"] or "B").upper().replace("I", "i")
        num_bytes = memory_bytes(match["number"], unit)
        count = int(match["count"] or 1)
        if num_bytes > 0 and 0 < count <= MAX_DEVICES:
            return count, num_bytes
    raise InvalidInputError(
        f"{text!r} is no amount of memory. Write it as 80GiB, as 24GB, or as 8x80GiB for eight "
        f"devices (at most {MAX_DEVICES:,})."
    )


def named_devices(sizes: Sequence[str]) -> list[Device]:
    """Accelerators with the memory that a user names.

    Raises:
        InvalidInputError: as `parse_size`.
    """
    devices = []
    for count, num_bytes in map(parse_size, sizes):
        devices += [Device("accelerator", num_bytes, f"{size_text(num_bytes)} device")] * count
    return devices


def machine_devices() -> list[Device]:
    """The accelerators of this machine, or its processor if it has none."""
    import torch

    if torch.cuda.is_available():
        return [
            Device("accelerator", int(found.total_memory), str(found.name))
            for found in map(
                torch.cuda.get_device_properties,
                range(torch.cuda.device_count()),
            )
        ]
    if torch.backends.mps.is_available():
        size = int(torch.mps.recommended_max_memory())
        return [Device("accelerator", size, "this machine's GPU")]
    return [Device("processor", main_memory(), "this machine's main memory")]


def main_memory() -> int:
    """Bytes of this machine's main memory that are available now."""
    import psutil

    return int(psutil.virtual_memory().available)
