"""The engine `vllm`: vLLM's OpenAI-compatible server, `POST /v1/completions`.

`prompt_logprobs` gives, for each prompt token but the first, its own log-probability and those of
the k most likely tokens in its place. So a document's row i is element i + 1 of the answer. The
row after the last token has no element: one more token is sent, whose own log-probability is not
used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import Rows
from fusestore.capture.engines.served_engine import ServedEngine
from fusestore.capture.engines.served_rows import (
    BadAnswerError,
    check_echo,
    number_array,
    rows_of_lists,
)


class VllmEngine(ServedEngine):
    """See the module."""

    # The token that is sent after the document, and the one that is generated.
    extra_tokens = 2

    def request(self, token_ids: Sequence[int], model: str, top_k: int) -> tuple[str, Any]:
        """No sampling setting of the server or of the model's generation_config.json applies."""
        return "/v1/completions", {
            "model": model,
            "prompt": [*token_ids, token_ids[0]],
            "prompt_logprobs": top_k,
            "return_token_ids": True,
            "add_special_tokens": False,
            "max_tokens": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": 0,
        }

    def read(self, answer: Any, token_ids: Sequence[int], top_k: int) -> Rows:  # noqa: ANN401
        """See `ServedEngine.read`."""
        (choice,) = answer["choices"]
        sent = [*token_ids, token_ids[0]]
        elements = choice.get("prompt_logprobs", answer.get("prompt_logprobs"))
        if elements is None:
            raise BadAnswerError(
                "the answer has no prompt_logprobs. llama.cpp's server, for one, has none: use "
                "vLLM, or another engine"
            )
        echo = choice.get("prompt_token_ids")
        if echo is None:
            raise BadAnswerError(
                "the answer does not repeat the token ids (return_token_ids), which vLLM does "
                "since 0.10.2; update it"
            )
        check_echo(echo, sent)
        if not isinstance(elements, list) or len(elements) != len(sent):
            count = len(elements) if isinstance(elements, list) else 0
            raise BadAnswerError(
                f"prompt_logprobs has {count:,} elements for {len(sent):,} tokens. A prefix cache "
                "may have left some out: start the server with --no-enable-prefix-caching"
            )
        if elements[0] is not None:
            raise BadAnswerError("the first token has a row, and nothing was read before it")
        labels = np.array(sent[1:], np.int64)
        return rows_of_lists(_entries(elements[1:]), labels, top_k, self.job.vocab_size)

    def _advice(self, problem: str) -> str:
        if "max allowed" in problem or "max_logprobs" in problem:
            return (
                f"Start the server with --max-logprobs {self.job.settings.top_k}, or capture with "
                "a smaller --top-k."
            )
        return super()._advice(problem)


def _entries(elements: Sequence[Any]) -> Iterator[tuple[list[int], npt.NDArray[np.float64]]]:
    """Ids and log-probabilities of each row of parsed JSON."""
    for row, element in enumerate(elements):
        if not all(map(_is_id, element)):
            raise BadAnswerError(f"row {row} has keys that are no token ids")
        values = [entry["logprob"] for entry in element.values()]
        yield list(map(int, element)), number_array(values, f"the log-probabilities of row {row}")


def _is_id(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 10
