"""Foreign rows: the protocol of importers, and checks that turn entries into rows.

An importer reads the files of one layout as documents of token ids with rows. Everything else is
the same for all: texts, the corpus, which tokens have a row, storage.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import Rows
from fusestore.errors import InvalidInputError
from fusestore.interop.settings import ImportSettings
from fusestore.tokenizers.tokenizer import Tokenizer

TOLERANCE = 0.05
"""Largest excess of mass over 1, and of a log-probability over 0: values of 16 bits, and those of
caches on the default grid, are rounded by up to 1/32 nat."""

_FLOAT32 = 5e-4
"""Relative excess of mass that is rounding of float32, and stays."""

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ForeignFile:
    """A file to read.

    Attributes:
        path: on this machine.
        name: its path below the folder that was named, for messages and the origin.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class ReadJob:
    """What an importer needs besides its files.

    Attributes:
        settings: how they are read.
        tokenizer: that the token ids are of.
        vocab_size: V, the width of the model's output; ids are below it.
    """

    settings: ImportSettings
    tokenizer: Tokenizer
    vocab_size: int


@dataclass(frozen=True)
class ForeignDocument:
    """One document with its rows.

    Attributes:
        place: file and record, for messages.
        token_ids: int64 [n], padding left out.
        positions: int64 [m], rising: row j is the distribution after token `positions[j]`, for
            token `positions[j] + 1`. Tokens without a row are not among them.
        rows: m rows. Tail and label are NaN where they are not known.
        whole_text: whether the text begins and ends between characters; if not, a document that
            does not is left out.
    """

    place: str
    token_ids: Ids
    positions: Ids
    rows: Rows
    whole_text: bool = True


class ForeignFormat(ABC):
    """A layout of files with rows.

    Attributes:
        suffixes: of the files in a folder that hold rows.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def files(self, path: Path) -> list[Path]:
        """The files of a named file or folder, in order."""
        if path.is_file():
            return [path]
        found = (each for each in path.rglob("*") if each.is_file())
        return sorted(each for each in found if each.name.endswith(self.suffixes))

    @abstractmethod
    def documents(self, files: Sequence[ForeignFile], job: ReadJob) -> Iterator[ForeignDocument]:
        """The documents of all files, in order.

        Raises:
            InvalidInputError: a file is damaged or of another layout; names file and record.
        """


def labels_of(token_ids: Ids, positions: Ids) -> Ids:
    """int64 [m], the token after each of these; −1 after the last."""
    return np.append(token_ids, -1)[positions + 1]


def rows_of_logprobs(
    place: str,
    ids: Ids,
    logprobs: Floats,
    labels: Ids,
    job: ReadJob,
    *,
    label_logprob: Floats | None = None,
    tail: Floats | None = None,
    top_k: int | None = None,
) -> Rows:
    """Rows of log-probabilities over the whole vocabulary; what they leave of 1 is the tail.

    Args:
        place: of the rows, for messages.
        ids: int64 [m, k]; any value where there is no entry.
        logprobs: float64 [m, k] in nats, in any order; −inf where there is no entry.
        labels: int64 [m], the next token; −1 without one.
        job: gives the vocabulary.
        label_logprob: float64 [m] of the next tokens; NaN, or None, where only the entries tell.
        tail: float64 [m]; None: what the entries leave.
        top_k: entries to keep; None for all.

    A mass above 1 by rounding is scaled back, unless the grid of the cache rounds as much.

    Raises:
        InvalidInputError: ids outside the vocabulary or twice in a row, NaN, mass above 1.
    """
    ids, logprobs = _ordered(place, ids, logprobs, job.vocab_size)
    _refuse(
        (logprobs > TOLERANCE).any(axis=1),
        place,
        lambda row: (
            f"a log-probability is {logprobs[row].max():.4g}, above 0. These may be raw "
            "logits: import them with --values logits"
        ),
    )
    mass = np.exp(logprobs).sum(axis=1)
    _refuse(
        mass > 1 + TOLERANCE,
        place,
        lambda row: (
            f"its entries have a mass of {mass[row]:.4f}, above 1. These may be raw "
            "logits (--values logits), or of another temperature"
        ),
    )
    most = math.exp((job.settings.grid or 0.0) / 2) * (1 + _FLOAT32)
    over = np.where(mass > most, np.log(np.maximum(mass, 1.0)), 0.0)
    logprobs = np.minimum(logprobs - over[:, None], 0.0)
    found = _of_label(ids, logprobs, labels)
    given = np.full(len(ids), np.nan) if label_logprob is None else label_logprob
    _refuse(
        given > TOLERANCE,
        place,
        lambda row: f"the next token's log-probability is {given[row]:.4g}, above 0",
    )
    with np.errstate(invalid="ignore"):
        differs = ~np.isnan(found) & (np.abs(found - given) > TOLERANCE)
    _refuse(
        differs,
        place,
        lambda row: (
            f"the next token, {labels[row]}, has log-probability {given[row]:.4g}, but its "
            f"entry has {found[row]:.4g}. The rows may be shifted, or of another text"
        ),
    )
    whole = (logprobs > -np.inf).sum(axis=1) == job.vocab_size
    ids, logprobs, mass = _cut(ids, logprobs, top_k)
    with np.errstate(divide="ignore"):
        rest = np.where(whole & (ids.shape[1] == job.vocab_size), 0.0, np.maximum(1 - mass, 0.0))
        left = np.log(rest)
    if tail is not None:
        total = mass + np.exp(tail)
        _refuse(
            np.abs(total - 1) > TOLERANCE,
            place,
            lambda row: f"entries and tail add up to {total[row]:.4f}, not to 1",
        )
        left = np.where(total > most, left, np.minimum(tail, 0.0))
    label = np.where(np.isnan(given), found, np.minimum(given, 0.0))
    return _rows(ids, logprobs, left, np.where(labels < 0, np.nan, label))


def rows_of_logits(
    place: str,
    ids: Ids,
    logits: Floats,
    labels: Ids,
    job: ReadJob,
    *,
    label_logprob: Floats | None = None,
    top_k: int | None = None,
) -> Rows:
    """Rows of raw logits: only ratios are known, unless all tokens of the vocabulary have one.

    Entries are normalized over themselves. The tail is NaN, or with the setting `unknown_tail`
    renormalize, the mass of entries that are not kept. A label's log-probability needs the
    normalizer as well. Arguments and errors as for `rows_of_logprobs`.
    """
    ids, logits = _ordered(place, ids, logits, job.vocab_size)
    present = logits > -np.inf
    whole = present.sum(axis=1) == job.vocab_size
    largest = np.where(present.any(axis=1), logits[:, 0], 0.0)
    with np.errstate(divide="ignore"):
        logprobs = (
            logits - (largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)))[:, None]
        )
    logprobs = np.where(present, logprobs, -np.inf)
    known = whole | (job.settings.unknown_tail == "renormalize")
    label = np.where(known, _of_label(ids, logprobs, labels), np.nan)
    if label_logprob is not None:
        label = np.where(known & ~np.isnan(label), label, np.minimum(label_logprob, 0.0))
    ids, logprobs, mass = _cut(ids, logprobs, top_k)
    with np.errstate(divide="ignore"):
        rest = np.log(np.where(mass > 1 - 1e-12, 0.0, 1 - mass))
    tail = np.where(known, rest, np.nan)
    return _rows(ids, logprobs, tail, np.where(labels < 0, np.nan, label))


def checked_ids(place: str, what: str, values: Ids, vocab_size: int) -> Ids:
    """Token ids, which lie below the vocabulary's size.

    Raises:
        InvalidInputError: one does not.
    """
    bad = np.flatnonzero((values < 0) | (values >= vocab_size))
    if len(bad):
        raise InvalidInputError(
            f"{place} has {what} {values[bad[0]]} at position {bad[0]}, and the vocabulary has ids "
            f"0 to {vocab_size - 1}. The rows are of another tokenizer: name theirs with "
            "--tokenizer or --model."
        )
    return values


def _ordered(place: str, ids: Ids, values: Floats, vocab_size: int) -> tuple[Ids, Floats]:
    """Entries by falling value, equal ones by rising id; id 0 and −inf where there is none."""
    bad = np.isnan(values) | np.isposinf(values)
    _refuse(bad.any(axis=1), place, lambda row: f"an entry is {values[row][bad[row]][0]}")
    present = values > -np.inf
    outside = present & ((ids < 0) | (ids >= vocab_size))
    _refuse(
        outside.any(axis=1),
        place,
        lambda row: (
            f"it has token id {ids[row][outside[row]][0]}, and the vocabulary has ids 0 "
            f"to {vocab_size - 1}. The rows are of another tokenizer or model"
        ),
    )
    order = np.lexsort((ids, -values), axis=-1)
    values = np.take_along_axis(values, order, axis=1)
    ids = np.where(values > -np.inf, np.take_along_axis(ids, order, axis=1), 0)
    distinct = np.sort(np.where(values > -np.inf, ids, -1 - np.arange(ids.shape[1])), axis=1)
    twice = distinct[:, 1:] == distinct[:, :-1]
    _refuse(
        twice.any(axis=1),
        place,
        lambda row: f"it has token id {distinct[row, 1:][twice[row]][0]} twice",
    )
    return ids, values


def _cut(ids: Ids, logprobs: Floats, top_k: int | None) -> tuple[Ids, Floats, Floats]:
    """The first entries, and their mass."""
    ids, logprobs = ids[:, :top_k], logprobs[:, :top_k]
    return ids, logprobs, np.exp(logprobs).sum(axis=1)


def _of_label(ids: Ids, logprobs: Floats, labels: Ids) -> Floats:
    """float64 [m], the log-probability of the label's entry; NaN without one."""
    hit = (ids == labels[:, None]) & (logprobs > -np.inf)
    value = np.where(hit, logprobs, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(hit.any(axis=1), value, np.nan)


def _rows(ids: Ids, logprobs: Floats, tail: Floats, label: Floats) -> Rows:
    with np.errstate(over="ignore"):
        return Rows(
            np.ascontiguousarray(ids, np.int32),
            np.ascontiguousarray(logprobs, np.float32),
            tail.astype(np.float32),
            label.astype(np.float32),
        )


def _refuse(bad: Any, place: str, problem: Callable[[int], str]) -> None:  # noqa: ANN401 - a mask
    """Raise for the first row of a mask, bool [m], that is set."""
    if bad.any():
        row = int(bad.argmax())
        raise InvalidInputError(f"{place}, row {row}: {problem(row)}.")
