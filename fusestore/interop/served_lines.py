"""JSON lines of answers of vLLM and SGLang with the log-probabilities of a prompt.

vLLM, completions with `prompt_logprobs`, in the answer or in its first choice:

    prompt_token_ids    list [n]
    prompt_logprobs     list [n] of {"ID": {"logprob": …, "rank": …}}, null first

SGLang, `/generate` with `return_logprob`, in `meta_info`:

    input_token_logprobs    list [n] of [logprob, ID, text], null for the first logprob
    input_top_logprobs      list [n] of lists of [logprob, ID, text], null first

Entry j is the distribution of token j: the row after token j − 1. The last token has no row. vLLM
adds the next token to the k most likely ones, so its probability is known in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fusestore.errors import InvalidInputError
from fusestore.interop.foreign import (
    ForeignDocument,
    ForeignFile,
    ForeignFormat,
    ReadJob,
    labels_of,
    rows_of_logprobs,
)
from fusestore.interop.records import Record, integers, matrix, read_records

LOWEST = -9999.0
"""What vLLM writes for −inf, which JSON does not have."""

_Entries = tuple[list[list[int]], list[list[float]], list[float]]


class ServedLines(ForeignFormat):
    """See the module."""

    suffixes = (".jsonl", ".ndjson", ".json")

    def documents(self, files: Sequence[ForeignFile], job: ReadJob) -> Iterator[ForeignDocument]:
        """One an answer."""
        for file in files:
            for place, record in read_records(file, ()):
                yield _document(place, record, job)


def _document(place: str, record: Record, job: ReadJob) -> ForeignDocument:
    try:
        if "meta_info" in record:
            token_ids, entries = _sglang(record["meta_info"])
        else:
            token_ids, entries = _vllm(record)
    except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise InvalidInputError(
            f"{place} is no answer of vLLM with 'prompt_token_ids' and 'prompt_logprobs', or of "
            f"SGLang with 'input_token_logprobs' and 'input_top_logprobs': {error!r}. Ask the "
            "server for them."
        ) from error
    ids, logprobs, own = entries
    known = integers(place, "token ids", token_ids)
    if len(ids) != len(known) - 1:
        raise InvalidInputError(
            f"{place} has {len(known)} tokens and {len(ids)} rows; expected one for each but the "
            "first."
        )
    positions = np.arange(len(ids))
    values, _ = matrix(place, "logprobs", logprobs, -np.inf)
    whole_ids, _ = matrix(place, "token ids", ids, 0)
    rows = rows_of_logprobs(
        place,
        whole_ids.astype(np.int64),
        np.where(values <= LOWEST, -np.inf, values),
        labels_of(known, positions),
        job,
        label_logprob=np.where(np.array(own) <= LOWEST, -np.inf, np.array(own, np.float64)),
        top_k=job.settings.top_k,
    )
    return ForeignDocument(place, known, positions, rows)


def _vllm(record: Record) -> tuple[Any, _Entries]:
    choice = record["choices"][0] if record.get("choices") else record
    both = {**choice, **{key: value for key, value in record.items() if value is not None}}
    token_ids, rows = both["prompt_token_ids"], both["prompt_logprobs"]
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    own: list[float] = []
    for label, row in zip(token_ids[1:], rows[1:], strict=True):
        entries = {int(token): each for token, each in row.items()}
        own.append(float(entries[label]["logprob"]))
        rank = entries[label].get("rank")
        if rank is not None and rank > len(entries):
            # It is not among the k most likely, and was added to them.
            entries.pop(label)
        ids.append(list(entries))
        logprobs.append([float(each["logprob"]) for each in entries.values()])
    return token_ids, (ids, logprobs, own)


def _sglang(info: Any) -> tuple[Any, _Entries]:  # noqa: ANN401 - parsed JSON
    read = info["input_token_logprobs"]
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    for row in info["input_top_logprobs"][1:]:
        ids.append([int(each[1]) for each in row])
        logprobs.append([float(each[0]) for each in row])
    return [each[1] for each in read], (ids, logprobs, [float(each[0]) for each in read[1:]])
