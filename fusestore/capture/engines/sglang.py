"""The engine `sglang`: SGLang's own interface, `POST /generate`.

`input_token_logprobs` has each prompt token's own log-probability, `input_top_logprobs` the k most
likely tokens in its place, nested or, from newer servers, as flat arrays. The first token has
none. So a document's row i is element i + 1; for the row after the last token, one more is sent.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import Rows
from fusestore.capture.engines.served_engine import ServedEngine
from fusestore.capture.engines.served_rows import (
    BadAnswerError,
    check_echo,
    id_array,
    number_array,
    rows_of_entries,
)

_Entries = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


class SglangEngine(ServedEngine):
    """See the module."""

    # The token that is sent after the document.
    extra_tokens = 1

    def request(self, token_ids: Sequence[int], model: str, top_k: int) -> tuple[str, Any]:
        """Asks for flat arrays; a server that has none of them, or ragged rows, sends lists."""
        del model
        return "/generate", {
            "input_ids": [*token_ids, token_ids[0]],
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top_k,
            "return_text_in_logprobs": False,
            "return_flat_raw_top_logprobs": True,
            "return_flat_raw_top_logprobs_b64": True,
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
        }

    def read(self, answer: Any, token_ids: Sequence[int], top_k: int) -> Rows:  # noqa: ANN401
        """See `ServedEngine.read`."""
        meta = answer["meta_info"]
        sent = [*token_ids, token_ids[0]]
        own = meta.get("input_token_logprobs")
        if own is None:
            raise BadAnswerError("the answer has no input_token_logprobs")
        check_echo([entry[1] for entry in own], sent)
        if own[0][0] is not None:
            raise BadAnswerError("the first token has a row, and nothing was read before it")
        label_logprobs = number_array([entry[0] for entry in own[1:]], "the tokens' own values")
        flat = any(key.startswith("input_top_logprobs_val_flat") for key in meta)
        ids, logprobs = _flat(meta) if flat else _nested(meta["input_top_logprobs"], top_k)
        expected = (len(token_ids), min(top_k, self.job.vocab_size))
        if ids.shape != expected or logprobs.shape != expected:
            raise BadAnswerError(
                f"input_top_logprobs has {list(ids.shape)} ids and {list(logprobs.shape)} "
                f"log-probabilities where {list(expected)} were asked for"
            )
        labels = np.array(sent[1:], np.int64)
        return rows_of_entries(ids, logprobs, labels, label_logprobs, top_k, self.job.vocab_size)


def _nested(rows: Any, top_k: int) -> _Entries:  # noqa: ANN401 - parsed JSON
    """Ids [n, k] and log-probabilities [n, k] of `[null, [[logprob, id, text], …], …]`."""
    if not isinstance(rows, list) or not rows or rows[0] is not None:
        raise BadAnswerError("input_top_logprobs is no list of rows whose first is null")
    width = len(rows[1]) if len(rows) > 1 else top_k
    if any(len(row) != width for row in rows[1:]):
        raise BadAnswerError("the rows of input_top_logprobs differ in length")
    values = number_array([entry[0] for row in rows[1:] for entry in row], "log-probabilities")
    ids = id_array([entry[1] for row in rows[1:] for entry in row], "the ids of the rows")
    return ids.reshape(-1, width), values.reshape(-1, width)


def _flat(meta: Mapping[str, Any]) -> _Entries:
    """The same of arrays of all rows, as lists or in base64, with their shape."""
    shape = id_array(meta["input_top_logprobs_shape"], "the shape of the rows").tolist()
    prefix = meta.get("input_top_logprobs_null_prefix", 0)
    if len(shape) != 2 or prefix not in (0, 1):
        raise BadAnswerError(f"the rows have shape {shape} after {prefix!r} empty ones")
    names = ("input_top_logprobs_idx_flat", "input_top_logprobs_val_flat")
    if f"{names[0]}_b64" in meta:
        ids = _decoded(meta[f"{names[0]}_b64"], "<i4").astype(np.int64)
        values = _decoded(meta[f"{names[1]}_b64"], "<f4").astype(np.float64)
    else:
        ids = id_array(meta[names[0]], "the ids of the rows")
        values = number_array(meta[names[1]], "log-probabilities")
    size = shape[0] * shape[1]
    if len(ids) != size or len(values) != size:
        raise BadAnswerError(f"{len(ids)} ids and {len(values)} values are not of shape {shape}")
    if len(ids) and ids.min() < 0:
        raise BadAnswerError(f"the rows hold {ids.min()}, which is no token id")
    return ids.reshape(shape), values.reshape(shape)


def _decoded(text: Any, dtype: str) -> npt.NDArray[Any]:  # noqa: ANN401 - parsed JSON
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype)
    except (TypeError, ValueError, binascii.Error) as error:
        raise BadAnswerError("an array is not in base64, or is cut off") from error
