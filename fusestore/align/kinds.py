"""Codes and names of alignment kinds, and of the kinds of a vocabulary map's rows."""

from __future__ import annotations

from typing import Literal, get_args

AlignmentMethod = Literal["hybrid", "span", "mined", "anchored", "exact"]
MapMethod = Literal["exact", "mined", "prefix", "statistical"]
TieBreak = Literal["prefix", "first"]

ALIGNMENT_METHODS: tuple[AlignmentMethod, ...] = get_args(AlignmentMethod)
MAP_METHODS: tuple[MapMethod, ...] = get_args(MapMethod)
TIE_BREAKS: tuple[TieBreak, ...] = get_args(TieBreak)

NONE = 0
"""No source row may supervise the position."""
SPAN = 1
"""Source and target token end at the same byte offset: both have read the same text."""
INSIDE = 2
"""The target token ends inside a source token: the row before that token, conditioned on the bytes
since, has read the same text."""
MINED = 3
"""Paired only by minimum edit distance; the end offsets differ."""

ALIGNMENT_KINDS = ("none", "span", "inside", "mined")
"""Names of the alignment kinds, indexed by code."""

INSIDE_METHODS: tuple[AlignmentMethod, ...] = ("span", "hybrid")
"""Methods that list rows of kind `inside`."""

MAP_NONE, MAP_EXACT, MAP_MINED, MAP_PREFIX, MAP_ROLE, MAP_BYTE, MAP_STATISTICAL = range(7)

MAP_KINDS = ("none", "exact", "mined", "prefix", "role", "byte", "statistical")
"""Names of the kinds of a vocabulary map's rows, indexed by code."""
