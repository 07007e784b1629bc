"""From the entries that a server returned to the rows of a cache. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import Rows
from fusestore.capture.engines.row_checks import LABEL_TOLERANCE, MASS_TOLERANCE
from fusestore.errors import EngineError
from fusestore.store.codec import POSITIVE_TOLERANCE

LOWEST_LOGPROB = -9999.0
"""What vLLM writes for −inf, which JSON does not have."""

MAX_ID = 2**31 - 1

_Ids = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


class BadAnswerError(EngineError):
    """A server's answer is not what its protocol says; another try may give a better one."""


def number_array(values: Any, what: str) -> _Floats:  # noqa: ANN401 - parsed JSON
    """Float64 [n] of a parsed list of numbers.

    Raises:
        BadAnswerError: it is no list, or holds anything but numbers.
    """
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        raise BadAnswerError(f"{what} are no list of numbers")
    try:
        return np.array(values, np.float64)
    except OverflowError as error:
        raise BadAnswerError(f"{what} hold a number that no float can hold") from error


def id_array(values: Any, what: str) -> _Ids:  # noqa: ANN401 - parsed JSON
    """Int64 [n] of a parsed list of token ids.

    Raises:
        BadAnswerError: it is no list, or holds anything but integers from 0 to `MAX_ID`.
    """
    if not isinstance(values, list) or not set(map(type, values)) <= {int}:
        raise BadAnswerError(f"{what} are no list of token ids")
    if values and not 0 <= min(values) <= max(values) <= MAX_ID:
        raise BadAnswerError(f"{what} hold {min(values)} to {max(values)}, which are no token ids")
    return np.array(values, np.int64)


def check_echo(echo: Any, sent: Sequence[int]) -> None:  # noqa: ANN401 - parsed JSON
    """Check that a server read the ids that were sent.

    Raises:
        BadAnswerError: it read others; the message says what the difference looks like.
    """
    read = id_array(echo, "the token ids that came back").tolist()
    if read == list(sent):
        return
    extra = len(read) - len(sent)
    if extra > 0 and read[extra:] == list(sent):
        problem = (
            f"the server put {extra} tokens before them ({_shown(read[:extra])}). Stop it from "
            "adding BOS or a chat template"
        )
    elif len(read) != len(sent):
        problem = f"{len(read):,} came back and {len(sent):,} were sent"
    else:
        first = next(
            index for index, pair in enumerate(zip(read, sent, strict=True)) if pair[0] != pair[1]
        )
        problem = f"token {first} is {read[first]} and {sent[first]} was sent"
    raise BadAnswerError(f"other token ids came back than were sent: {problem}")


def rows_of_lists(
    entries: Iterable[tuple[Sequence[int], Sequence[float] | _Floats]],
    labels: _Ids,
    top_k: int,
    vocab_size: int,
) -> Rows:
    """Rows of vLLM's form: the k most likely tokens and the label, which may be among them.

    Args:
        entries: ids and natural log-probabilities of each row, k or k + 1 of them.
        labels: int64 [n] the token after each row.
        top_k: entries to keep.
        vocab_size: V.

    Raises:
        BadAnswerError: a row has another number of entries, or as `rows_of_entries`.
    """
    ids = np.full((len(labels), top_k + 1), -1, np.int64)
    logprobs = np.full(ids.shape, -np.inf)
    for row, (row_ids, values) in enumerate(entries):
        count = len(row_ids)
        if not min(top_k, vocab_size) <= count <= top_k + 1:
            raise BadAnswerError(f"row {row} has {count} entries where {top_k} were asked for")
        ids[row, :count], logprobs[row, :count] = row_ids, values
    return rows_of_entries(ids, logprobs, labels, None, top_k, vocab_size)


def rows_of_entries(
    ids: _Ids,
    logprobs: _Floats,
    labels: _Ids,
    label_logprobs: _Floats | None,
    top_k: int,
    vocab_size: int,
) -> Rows:
    """Rows of the k most likely of the returned entries, and the tail that they leave.

    The tail is 1 less the kept mass, and at least the mass of entries that came back and are not
    kept. Its absolute error is that of the kept mass: about 10⁻⁶, by float32 rounding.

    Args:
        ids: int64 [n, m], −1 for no entry; in any order.
        logprobs: float64 [n, m] natural log-probabilities over the whole vocabulary, −inf (or at
            most −9999) for tokens without mass.
        labels: int64 [n] the token after each row.
        label_logprobs: float64 [n] of the labels; None where every label is among its entries.
        top_k: entries to keep.
        vocab_size: V; ids are below it.

    Raises:
        BadAnswerError: an id out of range or twice in a row, a log-probability that is none, more
            mass than 1, a label that is missing or likelier than the entries.
    """
    logprobs = np.where((ids < 0) | (logprobs <= LOWEST_LOGPROB), -np.inf, logprobs)
    if np.isnan(logprobs).any() or logprobs.max(initial=-np.inf) > POSITIVE_TOLERANCE:
        worst = logprobs[~(logprobs <= POSITIVE_TOLERANCE)][0]
        raise BadAnswerError(
            f"it gives the log-probability {worst:g}, which must be at most 0. The server may give "
            "logits: vLLM must run with --logprobs-mode raw_logprobs, its default"
        )
    present = logprobs > -np.inf
    outside = present & (ids >= vocab_size)
    if outside.any():
        raise BadAnswerError(
            f"it gives token id {ids[outside][0]}, and the model has {vocab_size:,} ids. The "
            "server may serve another model"
        )
    is_label = ids == labels[:, None]
    if label_logprobs is None:
        if not is_label.any(axis=1).all():
            row = int(is_label.any(axis=1).argmin())
            raise BadAnswerError(
                f"row {row} lacks the next token, {labels[row]}: it may be of another text"
            )
        label_logprobs = np.where(is_label, logprobs, -np.inf).max(axis=1)
    else:
        label_logprobs = np.where(label_logprobs <= LOWEST_LOGPROB, -np.inf, label_logprobs)
        if not np.all(label_logprobs <= POSITIVE_TOLERANCE):
            raise BadAnswerError("a token's own log-probability is NaN or above 0")
    # Equal log-probabilities by rising id, as every engine has them in a cache.
    order = np.lexsort((ids, -logprobs), axis=-1)
    logprobs = np.take_along_axis(logprobs, order, axis=1)
    ids = np.where(logprobs > -np.inf, np.take_along_axis(ids, order, axis=1), 0)
    _check_labels(ids, logprobs, labels, label_logprobs, top_k)
    mass = np.exp(logprobs)
    kept, rest = mass[:, :top_k].sum(axis=1), mass[:, top_k:].sum(axis=1)
    among = ((ids == labels[:, None]) & (logprobs > -np.inf)).any(axis=1)
    rest = np.where(among, rest, rest + np.exp(label_logprobs))
    if (kept + rest).max() > 1 + MASS_TOLERANCE:
        row = int((kept + rest).argmax())
        raise BadAnswerError(
            f"the entries of row {row} have a mass of {kept[row] + rest[row]:.4f}, above 1: they "
            "are not of the softmax at temperature 1"
        )
    tail = np.maximum(1.0 - kept, rest) if top_k < vocab_size else np.zeros(len(kept))
    with np.errstate(divide="ignore"):
        log_tail = np.log(tail).astype(np.float32)
    missing = top_k - ids.shape[1]
    if missing > 0:
        ids = np.pad(ids, ((0, 0), (0, missing)))
        logprobs = np.pad(logprobs, ((0, 0), (0, missing)), constant_values=-np.inf)
    return Rows(
        ids=ids[:, :top_k].astype(np.int32),
        logprobs=np.minimum(logprobs[:, :top_k], 0.0).astype(np.float32),
        tail=log_tail,
        label_logprob=np.minimum(label_logprobs, 0.0).astype(np.float32),
    )


def _check_labels(
    ids: _Ids, logprobs: _Floats, labels: _Ids, label_logprobs: _Floats, top_k: int
) -> None:
    """Check rows whose entries fall."""
    present = logprobs > -np.inf
    distinct = np.sort(np.where(present, ids, -1 - np.arange(ids.shape[1])), axis=1)
    if (distinct[:, 1:] == distinct[:, :-1]).any():
        raise BadAnswerError("a row holds one token id twice")
    is_label = (ids == labels[:, None]) & present
    among = is_label.any(axis=1)
    entry = np.where(is_label, logprobs, -np.inf).max(axis=1)
    wrong = among & ~(np.abs(entry - np.where(among, label_logprobs, 0.0)) <= LABEL_TOLERANCE)
    # A token that is not among the k most likely is less likely than all of them.
    least = logprobs[:, min(top_k, logprobs.shape[1]) - 1]
    wrong |= ~among & (label_logprobs > least + LABEL_TOLERANCE)
    if wrong.any():
        row = int(wrong.argmax())
        raise BadAnswerError(
            f"row {row} does not belong to its next token, {labels[row]}: it may be of another text"
        )


def _shown(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", …" if len(ids) > 5 else "")
