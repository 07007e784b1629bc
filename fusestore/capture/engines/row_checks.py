"""Checks of the rows that an engine gave, and the selection `top-p` of them. Pure functions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import Rows
from fusestore.capture.engines.protocol import DocumentRows
from fusestore.errors import EngineError
from fusestore.store.codec import POSITIVE_TOLERANCE

MASS_TOLERANCE = 1e-3
"""Largest excess of a row's mass over 1, by float32 rounding of log-probabilities."""

LABEL_TOLERANCE = 1e-3
"""Largest difference in nats of a label's two log-probabilities: its own, and its entry's."""

_Mask = npt.NDArray[np.bool_]


def check_engine_rows(part: DocumentRows, top_k: int, known_tail: bool) -> None:
    """Check what no engine may get wrong.

    Shapes and dtypes; entries fall; no id occurs twice; entries and tail have mass 1; a label
    among the entries has its entry's log-probability, and one that is not lies below them all.

    Args:
        part: n rows of a document.
        top_k: entries of a row.
        known_tail: whether the tails are known. If not, all must be NaN.

    Raises:
        EngineError: a row is wrong; the message names document and position.
    """
    rows, n = part.rows, len(part.rows)
    for name, dtype, shape in (
        ("ids", np.int32, (n, top_k)),
        ("logprobs", np.float32, (n, top_k)),
        ("tail", np.float32, (n,)),
        ("label_logprob", np.float32, (n,)),
    ):
        values = getattr(rows, name)
        if values.shape != shape or values.dtype != dtype:
            raise EngineError(
                f"Rows of document {part.document.index} have {name} of {values.dtype} "
                f"{values.shape}; expected {np.dtype(dtype)} {shape}."
            )
    for wrong, message in _problems(part, known_tail):
        if wrong.any():
            position = part.position + int(wrong.argmax())
            raise EngineError(
                f"Row {position} of document {part.document.index} cannot be right: {message}."
            )


def nucleus(rows: Rows, top_p: float) -> Rows:
    """The first entries of each row, as few as reach mass `top_p`, at least one; see `select`.

    The mass of the entries left out joins the tail.
    """
    mass = np.exp(rows.logprobs, dtype=np.float64)
    kept = np.cumsum(mass, axis=1) - mass < top_p
    kept[:, 0] = True
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(rows.tail, dtype=np.float64) + np.where(kept, 0.0, mass).sum(axis=1))
    return Rows(
        ids=np.where(kept, rows.ids, 0),
        logprobs=np.where(kept, rows.logprobs, np.float32(-np.inf)),
        tail=tail.astype(np.float32),
        label_logprob=rows.label_logprob,
    )


def _problems(part: DocumentRows, known_tail: bool) -> list[tuple[_Mask, str]]:
    """For each rule, bool [n] where it is broken, and what is wrong there."""
    rows, n = part.rows, len(part.rows)
    present = rows.logprobs > -np.inf
    ids = np.where(present, rows.ids, -1 - np.arange(rows.ids.shape[1]))
    ordered = np.sort(ids, axis=1)
    mass = np.exp(rows.logprobs, dtype=np.float64).sum(axis=1)
    if known_tail:
        mass += np.exp(rows.tail, dtype=np.float64)
        off, sums = np.abs(mass - 1) > MASS_TOLERANCE, "entries and tail do not add up to 1"
    else:
        off, sums = mass > 1 + MASS_TOLERANCE, "its entries have more mass than 1"
    problems = [
        (np.isnan(rows.logprobs).any(axis=1), "a log-probability is NaN"),
        ((rows.logprobs[:, 1:] > rows.logprobs[:, :-1]).any(axis=1), "log-probabilities rise"),
        (rows.logprobs[:, 0] > POSITIVE_TOLERANCE, "a log-probability is above 0"),
        ((rows.ids < 0).any(axis=1), "a token id is below 0"),
        ((ordered[:, 1:] == ordered[:, :-1]).any(axis=1), "a token id occurs twice"),
        (np.isnan(rows.tail) == known_tail, f"its tail is {'NaN' if known_tail else 'no NaN'}"),
        (off, sums),
    ]
    token_ids = part.document.token_ids[part.position :]
    labels = token_ids[1 : n + 1]
    count = len(labels)
    own = rows.label_logprob[:count]
    is_label = (rows.ids[:count] == labels[:, None]) & present[:count]
    among = is_label.any(axis=1)
    entry = np.where(is_label, rows.logprobs[:count], -np.inf).max(axis=1, initial=-np.inf)
    # Where entries are absent, no other token has mass.
    least = rows.logprobs[:count, -1]
    with np.errstate(invalid="ignore"):
        differs = ~(np.abs(own - entry) <= LABEL_TOLERANCE)
    problems += [
        (~(own <= POSITIVE_TOLERANCE), "the next token's log-probability is NaN or above 0"),
        (among & differs, "the next token's log-probability is not that of its entry"),
        (~among & (own > least + LABEL_TOLERANCE), "the next token is missing among the entries"),
    ]
    return problems
