"""The protocol of engines: token ids in, rows out.

An engine computes the next-token distributions of documents. Everything else is the same for all
engines and not their business: which documents a shard needs, selection, the order of ids,
encoding, leases, receipts, estimates, verification. See docs/how-to/add-an-engine.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.models.precision import Dtype
from fusestore.progress import Reporter
from fusestore.tokenizers.token_table import TokenTable

if TYPE_CHECKING:
    from fusestore.capture.settings import CaptureSettings
    from fusestore.models.model import Model


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; declared once, known before it is started.

    Attributes:
        max_top_k: largest number of entries of a row; None for the whole vocabulary.
        known_tail: whether the mass outside the entries is known. If not, every tail is NaN.
        exact_label: whether a row has the exact log-probability of the next token, also where that
            is not among the entries. A capture needs it.
        temperature_free: whether log-probabilities are those of the softmax at temperature 1,
            before any sampling filter. A capture needs it.
        whole_rows: whether the engine has whole distributions and applies every selection rule
            itself. Others receive the rule `top-k` only, and their rows are checked.
        wanted_rows_only: whether it computes no row that is not wanted, but for a few. Others run
            the output head for every token that the model reads.
        local_weights: whether it loads the model's weights in this process, so that `dtype`,
            `device`, `attention` and `batch_size` apply. For others the model needs no weights
            here.
        gguf: whether these weights are those of a GGUF file as it is. Its model is a `GgufModel`,
            and none of these settings apply.
    """

    max_top_k: int | None = None
    known_tail: bool = True
    exact_label: bool = True
    temperature_free: bool = True
    whole_rows: bool = False
    wanted_rows_only: bool = False
    local_weights: bool = False
    gguf: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A document to run.

    Attributes:
        index: its number in the corpus.
        first_row: the number of its first token in the corpus; draws depend on it.
        token_ids: int32 [n] its tokens, BOS included; at least one. Where only some rows are
            wanted, they end with the token after the last of these.
        wanted: bool [n], the rows that are kept, at least one; None for all.
    """

    index: int
    first_row: int
    token_ids: npt.NDArray[np.int32]
    wanted: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """Consecutive rows of one document.

    Attributes:
        document: the document.
        position: of the first row in the document.
        rows: the rows. A tail that is not known is NaN. The label of the document's last row,
            which has no next token, is ignored.
        finite: whether all wanted rows are distributions (no NaN, no +inf). If not, the document
            counts as not finite; see the setting `on_nan`.
    """

    document: Document
    position: int
    rows: Rows
    finite: bool = True


@dataclass(frozen=True)
class EngineJob:
    """What an engine is started for.

    Attributes:
        name: of the cache, for messages.
        model: the model: tokenizer and configuration; weights where they are on this machine.
        settings: of the capture.
        vocab_size: V, the number of ids of the output, padding included.
        max_length: most tokens of a document.
        dtype: the dtype to run in; None where the engine's own decides.
        read_tokens: reads the tokens of the corpus, for engines that try themselves on some.
        reporter: receives lines about what was found.
    """

    name: str
    model: Model
    settings: CaptureSettings
    vocab_size: int
    max_length: int
    dtype: Dtype | None
    read_tokens: Callable[[], TokenTable]
    reporter: Reporter

    @cached_property
    def tokens(self) -> TokenTable:
        """The tokens of the corpus."""
        return self.read_tokens()


class Engine(ABC):
    """Computes rows; made by `start`, closed when the capture ends or fails.

    Attributes:
        capabilities: of the class.
        device: the device's type as torch names it, or `elsewhere`: how large a sample an estimate
            takes, and which memory it measures.
    """

    capabilities: ClassVar[Capabilities]
    device: str = "elsewhere"

    @classmethod
    @abstractmethod
    def start(cls, job: EngineJob) -> Self:
        """Load or connect, and check what can be checked before the first shard.

        Raises:
            FusestoreError: the engine cannot compute the rows of this model; the message says why
                and what to do.
        """

    @abstractmethod
    def run(self, documents: Sequence[Document], rule: Rule) -> Generator[DocumentRows, None, None]:
        """The rows of documents, in any order and in spans of any length.

        Every wanted row of every document is yielded once. Others may be yielded, and are dropped.
        A row depends on the tokens up to it only. The generator may be closed before its end.

        Args:
            documents: longest first.
            rule: selects the entries; `top-k` unless the engine has `whole_rows`.

        Yields:
            Rows with `rule.top_k` entries each: int32 ids and float32 natural log-probabilities at
            temperature 1, falling, −inf and id 0 where there is no entry.

        Raises:
            FusestoreError: it failed for good. Its message names the document.
        """

    def close(self) -> None:  # noqa: B027 - most engines hold nothing that outlives them
        """Release connections and memory; called once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
