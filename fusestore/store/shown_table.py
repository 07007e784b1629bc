"""Tables for people: their titles, columns and rows, and how numbers stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class ShownTable(NamedTuple):
    """A table for people: its title, its columns and its rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def decimal(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage, or a dash."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"
