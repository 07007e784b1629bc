"""axolotl's layouts of teacher rows: tokenized records, as Parquet, Arrow or JSON lines.

    input_ids           list of integers [n]
    attention_mask      list of integers [n]; optional
    logprobs            list [m] of lists, for the last m tokens. In the first version of
                        {"token": "token_id:123", "logprob": −0.5}, in the second of numbers
    target_token_ids    list [m] of lists, in the second version
    target_logprobs     in place of logprobs, as collated: renormalized over the entries
    target_mask         list of lists, as collated: 0 where there is no row

Entry j belongs to token n − m + j as its own distribution (vLLM's `prompt_logprobs`), so it is the
row after the token before. The first may be null: no token precedes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fusestore.errors import InvalidInputError
from fusestore.interop.foreign import (
    Floats,
    ForeignDocument,
    ForeignFile,
    ForeignFormat,
    Ids,
    ReadJob,
    labels_of,
    rows_of_logits,
    rows_of_logprobs,
)
from fusestore.interop.fusellm import unmasked
from fusestore.interop.records import (
    TABLE_SUFFIXES,
    Record,
    integers,
    matrix,
    needed,
    read_records,
)

V1_COLUMN = "llm_text_generation_vllm_logprobs"
"""The field of the first version in axolotl's own example data set."""

_COLUMNS = (
    *("input_ids", "attention_mask", "logprobs", V1_COLUMN),
    *("target_token_ids", "target_logprobs", "target_mask"),
)
_PREFIX = "token_id:"


class Axolotl(ForeignFormat):
    """See the module."""

    suffixes = TABLE_SUFFIXES[:4]

    def documents(self, files: Sequence[ForeignFile], job: ReadJob) -> Iterator[ForeignDocument]:
        """One a record."""
        for file in files:
            for place, record in read_records(file, _COLUMNS):
                yield _document(place, record, job)


def _document(place: str, record: Record, job: ReadJob) -> ForeignDocument:
    all_ids = integers(place, "input_ids", needed(place, record, "input_ids", "axolotl"))
    collated = record.get("target_logprobs") is not None
    values, ids = _collated(place, record) if collated else _entries(place, record)
    shift = len(all_ids) - len(values)
    if shift < 0:
        raise InvalidInputError(
            f"{place} has {len(values)} rows for {len(all_ids)} tokens. Rows of generated tokens "
            "need these tokens in 'input_ids' too."
        )
    places = unmasked(place, record, all_ids)
    token_ids = all_ids[places]
    has_row = np.isfinite(values).any(axis=1)
    # The row after the token before: none stands before the first.
    position = np.flatnonzero(has_row) + shift - 1 - (int(places[0]) if len(places) else 0)
    used = (position >= 0) & (position < len(token_ids))
    taken, positions = np.flatnonzero(has_row)[used], position[used]
    # Collated entries are renormalized, and say no more than logits.
    is_raw = collated if job.settings.values == "auto" else job.settings.values == "logits"
    make = rows_of_logits if is_raw else rows_of_logprobs
    rows = make(
        place,
        ids[taken],
        values[taken],
        labels_of(token_ids, positions),
        job,
        top_k=job.settings.top_k,
    )
    return ForeignDocument(place, token_ids, positions, rows)


def _entries(place: str, record: Record) -> tuple[Floats, Ids]:
    """Values, −inf without an entry, and ids of either version."""
    column = "logprobs" if record.get("logprobs") is not None else V1_COLUMN
    rows = needed(place, record, column, "axolotl")
    if record.get("target_token_ids") is not None:
        values, counts = matrix(place, column, rows, -np.inf)
        ids, id_counts = matrix(place, "target_token_ids", record["target_token_ids"], 0)
        return _paired(place, column, values, counts, ids, id_counts)
    listed = [None if row is None else list(row) for row in rows]
    try:
        pairs = [[_pair(each) for each in row or ()] for row in listed]
    except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise InvalidInputError(
            f"{place} has in {column!r} an entry that is not "
            f'{{"token": "token_id:123", "logprob": -0.5}}, and no \'target_token_ids\': {error}.'
        ) from error
    values, _ = matrix(place, column, [[value for _, value in row] for row in pairs], -np.inf)
    ids, _ = matrix(place, column, [[token for token, _ in row] for row in pairs], 0)
    return values, ids.astype(np.int64)


def _pair(entry: Any) -> tuple[int, float]:  # noqa: ANN401 - parsed JSON
    token = entry["token"]
    if not token.startswith(_PREFIX):
        raise ValueError(f"token {token!r} does not begin with {_PREFIX!r}")
    return int(token[len(_PREFIX) :]), float(entry["logprob"])


def _collated(place: str, record: Record) -> tuple[Floats, Ids]:
    values, counts = matrix(place, "target_logprobs", record["target_logprobs"], -np.inf)
    listed = needed(place, record, "target_token_ids", "axolotl")
    ids, id_counts = matrix(place, "target_token_ids", listed, 0)
    values, whole = _paired(place, "target_logprobs", values, counts, ids, id_counts)
    if record.get("target_mask") is not None:
        mask, _ = matrix(place, "target_mask", record["target_mask"], 0)
        if len(mask) != len(values):
            raise InvalidInputError(
                f"{place} has {len(values)} rows and a target_mask of {len(mask)}."
            )
        values = np.where((mask != 0).any(axis=1)[:, None], values, -np.inf)
    return values, whole


def _paired(
    place: str, column: str, values: Floats, counts: Ids, ids: Floats, id_counts: Ids
) -> tuple[Floats, Ids]:
    if not np.array_equal(np.maximum(counts, 0), np.maximum(id_counts, 0)):
        raise InvalidInputError(
            f"{place} has {len(counts)} lists in {column!r} and {len(id_counts)} in "
            "'target_token_ids', which must be as many and of equal lengths."
        )
    return values, ids.astype(np.int64)
