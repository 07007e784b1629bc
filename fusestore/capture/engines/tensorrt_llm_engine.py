"""The engine `tensorrt-llm`: TensorRT-LLM in this process, `LLM.generate` with `prompt_logprobs`.

`outputs[0].prompt_logprobs` has one element for each prompt token: the k most likely tokens after
it, and the token that does follow. So element i is a document's row i, one place before where vLLM
has it, and no further token is sent. What follows the last token is the one that is generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.capture.engines.generating_engine import GeneratingEngine
from fusestore.capture.engines.protocol import EngineJob
from fusestore.capture.engines.served_rows import BadAnswerError, rows_of_lists
from fusestore.errors import EngineError, MissingDependencyError

_GENERATED_TOKENS = 1
_TOKENS_AT_ONCE = 8192
"""What TensorRT-LLM computes at once by default; a document must not be cut into parts."""


class TensorRTLLMEngine(GeneratingEngine):
    """See the module."""

    title = "TensorRT-LLM"

    def __init__(self, llm: Any, job: EngineJob) -> None:  # noqa: ANN401 - the package is optional
        """Use TensorRT-LLM's model; `start` makes it."""
        super().__init__(llm, job, device="cuda")

    @classmethod
    def start(cls, job: EngineJob) -> Self:
        """Load the model.

        Raises:
            MissingDependencyError: TensorRT-LLM is not installed.
            EngineError: it cannot run the model.
        """
        try:
            from tensorrt_llm import LLM
            from tensorrt_llm.llmapi import KvCacheConfig
        except ImportError as error:
            raise MissingDependencyError(
                "Engine tensorrt-llm needs the package tensorrt_llm, which NVIDIA publishes for "
                f"Linux with its GPUs, in this environment ({error}). Install it as its "
                "documentation says, or use engine vllm or sglang."
            ) from error
        length = job.max_length + _GENERATED_TOKENS
        try:
            llm = LLM(
                model=str(job.model.folder),
                dtype=job.dtype or "auto",
                skip_tokenizer_init=True,
                trust_remote_code=job.settings.trust_remote_code,
                max_input_len=job.max_length,
                max_seq_len=length,
                max_num_tokens=max(_TOKENS_AT_ONCE, length),
                enable_chunked_prefill=False,
                # A reused block has no logits, so its rows would be missing.
                kv_cache_config=KvCacheConfig(enable_block_reuse=False),
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"TensorRT-LLM cannot run {job.name}: {error}") from error
        return cls(llm, job)

    def parameters(self, rule: Rule) -> Any:  # noqa: ANN401 - the package is optional
        """See `GeneratingEngine.parameters`."""
        from tensorrt_llm import SamplingParams

        return SamplingParams(
            prompt_logprobs=rule.top_k,
            max_tokens=_GENERATED_TOKENS,
            # There is no tokenizer to take them from; −1 is none.
            end_id=-1,
            pad_id=-1,
            detokenize=False,
            add_special_tokens=False,
        )

    def prompt(self, token_ids: list[int]) -> list[int]:
        """The document."""
        return token_ids

    def read(self, output: Any, prompt: list[int], top_k: int) -> Rows:  # noqa: ANN401
        """See `read_rows`."""
        return read_rows(output.outputs[0].prompt_logprobs, prompt, top_k, self._vocab_size)

    def close(self) -> None:
        """End TensorRT-LLM's worker processes."""
        self._llm.shutdown()


def read_rows(
    elements: Sequence[Mapping[int, Any]] | None,
    token_ids: Sequence[int],
    top_k: int,
    vocab_size: int,
) -> Rows:
    """The rows of TensorRT-LLM's `prompt_logprobs`.

    Args:
        elements: for each token, by id the objects (`logprob`, `rank`) of what may follow it.
        token_ids: n tokens, which were sent.
        top_k: entries of a row.
        vocab_size: V.

    Raises:
        BadAnswerError: they are not the rows of these tokens.
    """
    if elements is None or len(elements) != len(token_ids):
        count = 0 if elements is None else len(elements)
        raise BadAnswerError(
            f"prompt_logprobs has {count:,} elements for {len(token_ids):,} tokens"
        )
    for row, (element, following) in enumerate(zip(elements, token_ids[1:], strict=False)):
        if not isinstance(element, Mapping):
            raise BadAnswerError(f"row {row} is no dictionary of token ids")
        if following not in element:
            raise BadAnswerError(
                f"row {row} lacks the next token, {following}. Versions before February 2026 leave "
                "it out where it is not among the most likely: update TensorRT-LLM"
            )
    # Nothing follows the last token; its row needs some label, which is not used.
    last = next(iter(elements[-1]), 0)
    labels = np.array([*token_ids[1:], last], np.int64)
    return rows_of_lists(_entries(elements), labels, top_k, vocab_size)


def _entries(elements: Sequence[Mapping[int, Any]]) -> Iterator[tuple[list[int], list[float]]]:
    for element in elements:
        yield list(element), [entry.logprob for entry in element.values()]
