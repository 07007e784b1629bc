"""The arrays of a distribution cache, and the encoding of `Rows` as their values.

The specs follow from the fingerprint alone, so opening a cache reads one file. Readers without our
code find the encoding in the arrays' attributes and in `docs/format.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.id_order import MAX_HEAD, NUM_CLASSES, IdOrder
from fusestore.cache.kernels import SOUND, code_ties, number_ids
from fusestore.cache.manifest import Fingerprint
from fusestore.cache.rows import Rows
from fusestore.errors import InvalidInputError, NonFiniteError
from fusestore.store.arrays import ArraySpec, Codec
from fusestore.store.codec import (
    ABSENT,
    POSITIVE_TOLERANCE,
    TAIL_STEP,
    check_rows,
    check_tail,
    counts_of,
    quantize_logprobs,
    to_grid,
)

COLUMNS_PER_CHUNK = 16
"""The first and the last entries of a row differ much, and compress better in separate chunks.
Groups of 8 are another 0.5 % smaller and take 8 % longer to decode."""

_Array = npt.NDArray[Any]
_EXACT = {"encoding": "exact", "unit": "nat"}


@dataclass(frozen=True)
class CacheArrays:
    """Every array of one cache. The first four have one file per shard."""

    ids: ArraySpec
    logprobs: ArraySpec
    tail: ArraySpec
    label_logprob: ArraySpec
    token_ids: ArraySpec
    end_offsets: ArraySpec
    document_offsets: ArraySpec
    row_runs: tuple[ArraySpec, ...]
    id_order: tuple[ArraySpec, ...]

    @property
    def per_shard(self) -> tuple[ArraySpec, ...]:
        """The arrays of the distributions."""
        return (self.ids, self.logprobs, self.tail, self.label_logprob)

    @property
    def fixed(self) -> tuple[ArraySpec, ...]:
        """The arrays written before the first shard.

        `row_runs` is empty where every token has a row, `id_order` in the profile `fast`.
        """
        return (
            self.token_ids,
            self.end_offsets,
            self.document_offsets,
            *self.row_runs,
            *self.id_order,
        )


def cache_arrays(fingerprint: Fingerprint) -> CacheArrays:
    """The arrays that a cache of this fingerprint has."""
    tokens, rows, k, vocab_size = (
        fingerprint.num_tokens,
        fingerprint.num_rows,
        fingerprint.top_k,
        fingerprint.model.vocab_size,
    )
    kept = fingerprint.kept
    axis = "token" if kept is None else "row"
    chunk, shard = fingerprint.rows_per_chunk, fingerprint.rows_per_shard
    step = fingerprint.logprob_step
    # A grid has no number for what is not known.
    exact_tail = step is None or not fingerprint.known_tail
    compressed = fingerprint.profile != "fast"
    codec: Codec = "pcodec" if compressed else "raw"
    # A whole number of chunks, each of all columns where chunks are mapped.
    columns = min(COLUMNS_PER_CHUNK, k) if compressed else k
    width = -(-k // columns) * columns
    logprob_dtype, logprob_attributes = _logprob_encoding(fingerprint)

    def flat(name: str, dtype: str, size: int, axis: str, attributes: dict[str, Any]) -> ArraySpec:
        return ArraySpec(name, (size,), dtype, (chunk,), (shard,), codec, attributes, (axis,))

    def whole(name: str, dtype: str, shape: tuple[int, ...], content: str, *axes: str) -> ArraySpec:
        return ArraySpec(name, shape, dtype, shape, None, codec, {"content": content}, axes)

    return CacheArrays(
        ids=ArraySpec(
            "ids",
            (rows, k),
            "uint16" if vocab_size <= 2**16 else "uint32",
            (chunk, columns),
            (shard, width),
            codec,
            _id_attributes(fingerprint),
            (axis, "entry"),
        ),
        logprobs=ArraySpec(
            "logprobs",
            (rows, k),
            logprob_dtype,
            (chunk, columns),
            (shard, width),
            codec,
            logprob_attributes,
            (axis, "entry"),
        ),
        tail=flat(
            "tail",
            "float32" if exact_tail else "uint16",
            rows,
            axis,
            _EXACT if exact_tail else _grid(TAIL_STEP, differences=False),
        ),
        label_logprob=flat("label_logprob", "float32", rows, axis, _EXACT),
        token_ids=flat(
            "token_ids", "int32", tokens, "token", {"content": "token ids of the documents"}
        ),
        end_offsets=flat(
            *("end_offsets", "int32", tokens, "token"),
            {"content": "byte offset in its document where a token ends"},
        ),
        document_offsets=whole(
            "document_offsets",
            "int64",
            (fingerprint.num_documents + 1,),
            "document i is tokens [value[i], value[i + 1])",
            "document",
        ),
        row_runs=()
        if kept is None
        else (
            whole(
                "row_runs",
                "int64",
                (kept.num_runs, 2),
                "the rows are those of tokens [value[i, 0], value[i, 1]), one run after the other",
                "run",
                "bound",
            ),
        ),
        id_order=(
            whole("rank_to_id", "int32", (vocab_size,), "token id of each rank", "rank"),
            whole("token_class", "uint16", (vocab_size,), "class of each token id", "token_id"),
            whole(
                "class_order",
                "uint16",
                (NUM_CLASSES, min(MAX_HEAD, vocab_size)),
                "rank of each of a class's first numbers",
                "class",
                "number",
            ),
        )
        if compressed
        else (),
    )


def _id_attributes(fingerprint: Fingerprint) -> dict[str, Any]:
    if fingerprint.profile == "fast":
        return {"encoding": "exact"}
    number = (
        "number; rank = class_order[token_class[token_ids[i]], number] where number is below its "
        "columns, else number; token id = rank_to_id[rank]"
    )
    if not fingerprint.codes_gaps:
        return {"encoding": "number", "decode": f"value[i, j] = {number}"}
    return {
        "encoding": "number-gaps",
        "decode": "number[j] = number[j - 1] + 1 + value[j] where j > 1 and the value of logprobs "
        f"is 0, else value[j]; of row i, {number}",
    }


def _logprob_encoding(fingerprint: Fingerprint) -> tuple[str, dict[str, Any]]:
    """Dtype and attributes of the array `logprobs`."""
    if fingerprint.selection == "sampled":
        return "uint16", {
            "encoding": "counts",
            "unit": "nat",
            "draws": fingerprint.top_k,
            "decode": "logprob = ln(value / draws); -inf where value == 0",
        }
    if fingerprint.logprob_step is None:
        return "float32", _EXACT
    return "uint16", _grid(fingerprint.logprob_step, differences=fingerprint.codes_gaps)


def _grid(step: float, *, differences: bool) -> dict[str, Any]:
    number = "sum(value[0..j])" if differences else "value"
    return {
        "encoding": "grid-differences" if differences else "grid",
        "unit": "nat",
        "step": step,
        "absent": ABSENT,
        "max_error": step / 2,
        "decode": f"log = -step * {number}; -inf where value == absent",
    }


def encode_rows(
    fingerprint: Fingerprint,
    rows: Rows,
    token_ids: npt.NDArray[np.int32],
    order: IdOrder | None,
) -> tuple[_Array, _Array, _Array, _Array]:
    """Values of `ids`, `logprobs`, `tail`, `label_logprob` for these rows.

    Args:
        fingerprint: of the cache.
        rows: n rows.
        token_ids: int32 [n]: the token before each row.
        order: the numbering of ids; None in the profile `fast`.

    Raises:
        InvalidInputError: wrong shapes or dtypes, ids outside the vocabulary, rising rows.
        NonFiniteError: NaN or +inf among log-probabilities, or tails that are known.
    """
    _check(fingerprint, rows)
    check_rows(rows.logprobs)
    check_tail(rows.tail if fingerprint.known_tail else rows.tail[~np.isnan(rows.tail)])
    arrays = cache_arrays(fingerprint)
    if order is None:
        # Absent entries may have any id, but equal bytes for equal input need one value.
        values: _Array = np.where(rows.logprobs > -np.inf, rows.ids, 0)
    else:
        row_class = order.token_class[token_ids]
        values = number_ids(
            rows.ids, rows.logprobs, row_class, order.class_numbers, order.id_to_rank
        )
    logprobs = _encode_logprobs(fingerprint, rows.logprobs)
    if fingerprint.codes_gaps:
        bad = code_ties(values, logprobs)
        if bad != SOUND:
            raise InvalidInputError(
                f"Row {bad} holds one token id twice. Each entry must be of another token."
            )
    return (
        values.astype(arrays.ids.dtype),
        logprobs,
        rows.tail if arrays.tail.dtype == "float32" else to_grid(rows.tail, TAIL_STEP),
        rows.label_logprob,
    )


def _encode_logprobs(fingerprint: Fingerprint, logprobs: npt.NDArray[np.float32]) -> _Array:
    if fingerprint.selection == "sampled":
        return counts_of(logprobs, fingerprint.top_k)
    step = fingerprint.logprob_step
    if step is None:
        return logprobs
    return quantize_logprobs(logprobs, step) if fingerprint.codes_gaps else to_grid(logprobs, step)


def _check(fingerprint: Fingerprint, rows: Rows) -> None:
    n, k = len(rows), fingerprint.top_k
    for name, values, dtype, shape in (
        ("ids", rows.ids, np.int32, (n, k)),
        ("logprobs", rows.logprobs, np.float32, (n, k)),
        ("tail", rows.tail, np.float32, (n,)),
        ("label_logprob", rows.label_logprob, np.float32, (n,)),
    ):
        if values.shape != shape or values.dtype != dtype:
            raise InvalidInputError(
                f"Rows have {name} of {values.dtype} {values.shape}; "
                f"expected {np.dtype(dtype)} {shape}."
            )
    outside = (rows.ids < 0) | (rows.ids >= fingerprint.model.vocab_size)
    if outside.any():
        row = int(np.argmax(outside.any(axis=1)))
        raise InvalidInputError(
            f"Row {row} holds token id {rows.ids[row][outside[row]][0]}, outside the model's "
            f"vocabulary of {fingerprint.model.vocab_size}."
        )
    label = rows.label_logprob
    # NaN compares as false: it is allowed here, and only here.
    if np.any(label > POSITIVE_TOLERANCE):
        row = int(np.argmax(label > POSITIVE_TOLERANCE))
        raise NonFiniteError(f"Row {row} has the label log-probability {label[row]}, above 0.")
