"""The choices of a recipe: names of scores, units, policies and packings."""

from __future__ import annotations

from typing import Literal, get_args

from fusestore.align.kinds import ALIGNMENT_KINDS

Score = Literal["bits_per_byte", "aligned_ce", "token_ce"]
"""The score that strategies compare; smaller is better. See `fusestore.fuse.scores`."""

Granularity = Literal["document", "window", "token"]
"""The unit over which sources are scored and weighted."""

AcceptedKind = Literal["span", "inside", "mined"]
"""Alignment kinds that may supervise a position."""

UnalignedPolicy = Literal["skip", "label", "target", "fusellm"]
"""skip: no distillation at the position. label: one-hot on the next target token (a document's last
token has none: skip). target: the target's own cached row. fusellm: one-hot on the token itself."""

Packing = Literal["stream", "document", "whole"]
"""`stream`: documents lie end to end, cut every `window_length` tokens. `document`: no window holds
tokens of two documents; each document's last window is as short as its remainder. `whole`: a window
holds as many documents, each from its first token to its last, as fit."""

KIND_NAMES = (*ALIGNMENT_KINDS, "label", "target", "fusellm")
"""Names of the codes in the array `kind`; `none` is a position without distillation."""

FitMethod = Literal["temperature", "em", "loglinear", "gate"]
"""Learned strategies. temperature: even weights over rows at fitted temperatures. em: fitted
weights. loglinear: a fitted generalized mean. gate: weights that follow from the rows."""

LEARNED: tuple[FitMethod, ...] = get_args(FitMethod)
"""Strategies without scores that are fitted beforehand: see `fusestore.fuse.fits`."""

FitBy = Literal["global", "domain", "entropy"]
"""What the mixture weights of `em` depend on: nothing, where a document comes from, or how unsure
the sources are at the position."""
