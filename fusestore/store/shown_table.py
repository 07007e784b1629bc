"""Tables for people: their titles, columns and rows, and how numbers stand in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_NUMBER = re.compile(r"[-−+<>~]?[\d.,:]+( ?(%|[kMGT]?B|bytes|[KMGT]iB))?|-|–|unknown|nan|")


class ShownTable(NamedTuple):
    """A table for people: its title, its columns and its rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def is_number(cell: str) -> bool:
    """Whether a cell is a number with or without a unit, or stands for one that is not known."""
    return _NUMBER.fullmatch(cell) is not None


def decimal(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage, or a dash."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def counted(number: int, noun: str) -> str:
    """A number and its noun: `1 file`, `1,200 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_text(num_bytes: float) -> str:
    """Bytes for people: `80 GiB`, `141.1 GB`; in the unit in which they are a round number."""
    for base, unit in ((2**30, "GiB"), (1e9, "GB")):
        number = num_bytes / base
        if number >= 1 and abs(number - round(number)) < 1e-6:
            return f"{round(number):,} {unit}"
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= power:
            return f"{num_bytes / power:,.1f} {unit}"
    return f"{num_bytes:,.0f} bytes"
