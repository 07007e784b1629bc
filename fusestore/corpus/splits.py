"""Splits of source documents, and the selection of a limited number of documents.

Both are pure functions of the documents' names and sizes, so the same input gives the same corpus
on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Self

import polars as pl
from pydantic import Field, model_validator

from fusestore.errors import InvalidInputError
from fusestore.store.manifest import Frozen

TRAIN_SPLIT = "train"
"""The split of documents that no rule matches."""


class HeldOut(Frozen):
    """A rule that puts source documents into a held-out split.

    Attributes:
        split: the split's name.
        patterns: shell patterns on the source name; `*` matches `/` too.
        fraction: share of documents, chosen by a hash of the source name.
        seed: another seed chooses other documents.

    Exactly one of `patterns` and `fraction` is given.
    """

    split: str = "held_out"
    patterns: tuple[str, ...] = ()
    fraction: float | None = Field(default=None, ge=0, le=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one_criterion(self) -> Self:
        if bool(self.patterns) == (self.fraction is not None):
            raise ValueError("give either patterns or a fraction for the held-out split")
        return self

    def matches(self, source: str) -> bool:
        """Whether the rule puts this source document into its split."""
        if self.fraction is None:
            return any(fnmatchcase(source, pattern) for pattern in self.patterns)
        return _unit_hash(f"{self.split}:{self.seed}:{source}") < self.fraction


def assign_split(source: str, rules: Sequence[HeldOut]) -> str:
    """The split of the first rule that matches the source, else `train`."""
    return next((rule.split for rule in rules if rule.matches(source)), TRAIN_SPLIT)


def limit_documents(
    documents: pl.DataFrame,
    *,
    max_documents: int | Mapping[str, int] | None = None,
    max_bytes: int | Mapping[str, int] | None = None,
    sample_seed: int | None = None,
) -> pl.DataFrame:
    """The documents within the limits, in their order.

    Args:
        documents: `source`, `text`, `split`.
        max_documents: most documents, in total or by split; other splits are unlimited.
        max_bytes: most bytes of UTF-8 text, in total or by split. Documents are taken one by one
            until the next document would not fit.
        sample_seed: take documents in an order drawn by this seed; by default from the first on.

    Raises:
        InvalidInputError: a limit for a split that no document has, or that leaves its split
            without documents.
    """
    existing = set(documents["split"].unique())
    for limits in (max_documents, max_bytes):
        if isinstance(limits, Mapping) and not set(limits) <= existing:
            raise InvalidInputError(
                f"A limit names the splits {sorted(set(limits) - existing)}, which no document "
                f"has; the splits are {sorted(existing)}."
            )
    sizes = documents.select("source", "split", pl.col("text").str.len_bytes()).rows()
    order = list(range(len(sizes)))
    if sample_seed is not None:
        order.sort(key=lambda row: (_unit_hash(f"{sample_seed}:{sizes[row][0]}"), row))
    splits = [split for _, split, _ in sizes]
    order = _within(order, splits, [1] * len(sizes), max_documents)
    kept = _within(order, splits, [size for _, _, size in sizes], max_bytes)
    for split, limit in max_bytes.items() if isinstance(max_bytes, Mapping) else ():
        # A limit of documents is at least 1.
        if not any(splits[row] == split for row in kept):
            source, _, size = sizes[next(row for row in order if splits[row] == split)]
            raise InvalidInputError(
                f"The limit of {limit:,} bytes leaves split {split!r} without documents: the "
                f"first, {source}, has {size:,} bytes. Raise max_bytes of this split."
            )
    return documents[sorted(kept)]


def _within(
    order: Sequence[int],
    splits: Sequence[str],
    costs: Sequence[int],
    limits: int | Mapping[str, int] | None,
) -> list[int]:
    """The rows, in this order, until their costs reach the limits."""
    if limits is None:
        return list(order)
    per_split = isinstance(limits, Mapping)
    room: dict[str, int] = dict(limits) if isinstance(limits, Mapping) else {"": limits}
    kept = []
    for row in order:
        group = splits[row] if per_split else ""
        if group in room:
            # A document that does not fit closes its group, so that short documents are not
            # preferred.
            room[group] = room[group] - costs[row] if costs[row] <= room[group] else -1
            if room[group] < 0:
                continue
        kept.append(row)
    return kept


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
