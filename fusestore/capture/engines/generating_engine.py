"""Engines that give rows by `LLM.generate` with `prompt_logprobs`: vLLM, and those with its API."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.capture.engines.protocol import (
    Capabilities,
    Document,
    DocumentRows,
    Engine,
    EngineJob,
)
from fusestore.capture.engines.served_rows import BadAnswerError, check_echo
from fusestore.errors import EngineError

_DOCUMENTS_AT_ONCE = 64


class GeneratingEngine(Engine):
    """Takes rows from `LLM.generate`; a subclass says what is sent, and how its outputs are read.

    Attributes:
        title: name of the package in messages.
    """

    capabilities = Capabilities(local_weights=True)
    title: ClassVar[str]

    def __init__(self, llm: Any, job: EngineJob, device: str) -> None:  # noqa: ANN401 - optional
        """Use a model that is loaded; `start` loads it.

        Args:
            llm: the package's `LLM`.
            job: of the engine.
            device: type of the device, as torch names it.
        """
        self._llm = llm
        self._vocab_size = job.vocab_size
        self._at_once = job.settings.batch_size or _DOCUMENTS_AT_ONCE
        self.device = device

    @abstractmethod
    def parameters(self, rule: Rule) -> Any:  # noqa: ANN401 - the package's SamplingParams
        """What is asked for each prompt."""

    @abstractmethod
    def prompt(self, token_ids: list[int]) -> list[int]:
        """The tokens that are sent for a document."""

    @abstractmethod
    def read(self, output: Any, prompt: list[int], top_k: int) -> Rows:  # noqa: ANN401
        """The rows in the output of a prompt, one for each token of the document.

        Raises:
            BadAnswerError: they are not the rows of these tokens.
        """

    def run(self, documents: Sequence[Document], rule: Rule) -> Generator[DocumentRows, None, None]:
        """See `Engine.run`; the package receives some documents at once, and schedules them."""
        parameters = self.parameters(rule)
        for start in range(0, len(documents), self._at_once):
            group = documents[start : start + self._at_once]
            prompts = [self.prompt(document.token_ids.tolist()) for document in group]
            outputs = self._llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False
            )
            for document, ids, output in zip(group, prompts, outputs, strict=True):
                try:
                    check_echo(list(output.prompt_token_ids), ids)
                    rows = self.read(output, ids, rule.top_k)
                except BadAnswerError as error:
                    raise EngineError(
                        f"{self.title} gave wrong rows for document {document.index}: {error}."
                    ) from error
                yield DocumentRows(document, 0, rows)
