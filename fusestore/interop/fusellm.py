"""FuseLLM's Arrow: a dataset saved by `save_to_disk` with raw logits of the k most likely tokens.

    input_ids           list of integers [n]
    attention_mask      list of integers [n]; optional; padding is 0
    per_step_logits     list [n] of lists [k]: raw logits, float16; row i as in `logits[i]`
    per_step_indices    list [n] of lists [k]
    per_step_metric_ce  list [n − 1]: −log p(token i + 1); optional

Without the log-sum-exp only ratios are known: the tail is unknown, and a label's log-probability is
`-per_step_metric_ce`. An empty list is a token without a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fusestore.errors import InvalidInputError
from fusestore.interop.foreign import (
    ForeignDocument,
    ForeignFile,
    ForeignFormat,
    Ids,
    ReadJob,
    labels_of,
    rows_of_logits,
    rows_of_logprobs,
)
from fusestore.interop.records import (
    TABLE_SUFFIXES,
    Record,
    integers,
    matrix,
    needed,
    numbers,
    read_records,
)

_COLUMNS = (
    *("input_ids", "attention_mask", "per_step_logits", "per_step_indices"),
    "per_step_metric_ce",
)


class FuseLlm(ForeignFormat):
    """See the module."""

    suffixes = TABLE_SUFFIXES[:4]

    def documents(self, files: Sequence[ForeignFile], job: ReadJob) -> Iterator[ForeignDocument]:
        """One a record."""
        for file in files:
            for place, record in read_records(file, _COLUMNS):
                yield _document(place, record, job)


def _document(place: str, record: Record, job: ReadJob) -> ForeignDocument:
    token_ids = integers(place, "input_ids", needed(place, record, "input_ids", "fusellm"))
    logits, counts = matrix(
        place,
        "per_step_logits",
        needed(place, record, "per_step_logits", "fusellm"),
        -np.inf,
    )
    ids, id_counts = matrix(
        place,
        "per_step_indices",
        needed(place, record, "per_step_indices", "fusellm"),
        0,
    )
    if len(logits) != len(token_ids) or not np.array_equal(counts, id_counts):
        raise InvalidInputError(
            f"{place} has {len(token_ids)} tokens, but {len(counts)} lists of logits and "
            f"{len(id_counts)} of indices, which must be as many and of equal lengths."
        )
    places = unmasked(place, record, token_ids)
    positions = np.arange(len(places))[counts[places] > 0]
    token_ids = token_ids[places]
    used = places[positions]
    label = None
    if record.get("per_step_metric_ce") is not None:
        losses = numbers(place, "per_step_metric_ce", record["per_step_metric_ce"])
        if len(losses) not in (len(counts) - 1, len(counts)):
            raise InvalidInputError(
                f"{place} has {len(losses)} numbers in 'per_step_metric_ce'; expected "
                f"{len(counts) - 1}, one for each token but the first."
            )
        label = -np.append(losses, np.nan)[used]
    make = rows_of_logprobs if job.settings.values == "logprobs" else rows_of_logits
    rows = make(
        place,
        ids[used].astype(np.int64),
        logits[used],
        labels_of(token_ids, positions),
        job,
        label_logprob=label,
        top_k=job.settings.top_k,
    )
    return ForeignDocument(place, token_ids, positions, rows)


def unmasked(place: str, record: Record, token_ids: Ids) -> Ids:
    """The places of tokens that are no padding, by `attention_mask` if there is one.

    Raises:
        InvalidInputError: the mask has another length, or leaves out tokens in the middle.
    """
    if record.get("attention_mask") is None:
        return np.arange(len(token_ids))
    mask = integers(place, "attention_mask", record["attention_mask"])
    if len(mask) != len(token_ids):
        raise InvalidInputError(
            f"{place} has {len(token_ids)} tokens and an attention_mask of {len(mask)}."
        )
    places = np.flatnonzero(mask)
    if len(places) and np.any(np.diff(places) != 1):
        raise InvalidInputError(
            f"{place} has an attention_mask with a gap after token "
            f"{places[:-1][np.diff(places) != 1][0]}: padding stands before or after a document."
        )
    return places
