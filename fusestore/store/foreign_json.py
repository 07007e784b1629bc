"""JSON that somebody else wrote: its size, nesting and numbers are bounded.

What a parsed document takes in memory grows with its values, not with its bytes: sixty megabytes of
`[],[],…` are gigabytes of lists. So values are counted in the bytes before they are parsed.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from fusestore.errors import InvalidInputError

MAX_VALUES = 1_000_000
"""Three for each file that a manifest lists by itself; a run of numbered files is three in all."""

MAX_DEPTH = 32

MAX_BYTES_NOT_ASCII = 8 * 2**20
"""Python holds a text with one rare character in four bytes a character."""

_LARGEST = 2**63


def parse_foreign_json(data: bytes, name: str, max_bytes: int) -> Any:  # noqa: ANN401 - JSON
    """The value of a JSON document.

    Args:
        data: the document; of a larger file, its first bytes, one more than `max_bytes` at least.
        name: of the file, for messages.
        max_bytes: the largest that such a document can be.

    Raises:
        InvalidInputError: it is larger, has more than `MAX_VALUES` values or `MAX_DEPTH` levels, a
            number that is no int64 and no finite float, or is not JSON.
    """
    limit = max_bytes if data.isascii() else min(max_bytes, MAX_BYTES_NOT_ASCII)
    if len(data) > limit:
        raise InvalidInputError(
            f"{name} is larger than such a document may be ({limit:,} bytes); it was not read."
        )
    # Each value but the first follows one of these; more are counted where they stand in text.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_VALUES:
        raise InvalidInputError(
            f"{name} holds more than {MAX_VALUES:,} values, more than such a document may; it was "
            "not read."
        )
    try:
        value = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{name} is not valid JSON: {error}") from error
    _check(value, name)
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check(value: object, name: str) -> None:
    """Check depth and numbers, level by level: a hostile depth must not be a deep recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += each.values()
            elif isinstance(each, list):
                below += each
            elif isinstance(each, int | float) and not _is_usual(each):
                raise InvalidInputError(
                    f"{name} holds a number outside the range of int64 and float64."
                )
        if not below:
            return
        level = below
    raise InvalidInputError(f"{name} is nested deeper than {MAX_DEPTH} levels; it was not read.")


def _is_usual(number: int | float) -> bool:
    if isinstance(number, float):
        return math.isfinite(number)
    return -_LARGEST <= number < _LARGEST
