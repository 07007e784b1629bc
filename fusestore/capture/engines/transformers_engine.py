"""The engine `transformers`: a model in this process, and the reference for all others."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch

from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.capture.engines.protocol import (
    Capabilities,
    Document,
    DocumentRows,
    Engine,
    EngineJob,
)
from fusestore.capture.selection import Selection, select
from fusestore.errors import IncompatibleError, OutOfMemoryError
from fusestore.models.causality import Batching, prove_causal
from fusestore.models.loading import output_width
from fusestore.models.logits import is_out_of_memory, logit_chunks, pad_batch

_TOKENS_PER_BATCH = {"cpu": 4_096}
_TOKENS_PER_ACCELERATOR_BATCH = 32_768


@dataclass(frozen=True, slots=True)
class _Span:
    """`count` rows of a document, from position `position`."""

    document: Document
    position: int
    count: int


class _Chunk:
    """The selection for some spans, on its way from the device to this machine's memory."""

    def __init__(self, spans: Sequence[_Span], selection: Selection) -> None:
        self.spans = spans
        self._copied: torch.cuda.Event | None = None
        on_cuda = selection.tail.device.type == "cuda"
        # On CUDA the copy is asynchronous, and `selection` waits for it.
        self._selection = Selection(
            *(
                getattr(selection, field.name).to("cpu", non_blocking=on_cuda)
                for field in fields(Selection)
            )
        )
        if on_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def selection(self) -> Selection:
        """The selection in this machine's memory; waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._selection


class TransformersEngine(Engine):
    """Runs a model of transformers in this process, in batches, longest documents first.

    When memory runs out, a batch is halved and so are all later ones; a smaller batch may round
    differently.
    """

    capabilities = Capabilities(whole_rows=True, local_weights=True)

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - transformers is untyped
        batch_size: int | None = None,
        batching: Batching = "padded",
    ) -> None:
        """Use a model that is loaded and proved; `start` does both.

        Args:
            model: of transformers, in evaluation mode.
            batch_size: documents of a batch; by default as many as fit a budget of tokens.
            batching: which documents may run together.
        """
        self._model = model
        self._batch_size = batch_size
        self._batching = batching
        self._device = next(model.parameters()).device
        self.device = self._device.type
        self._token_budget = _TOKENS_PER_BATCH.get(self._device.type, _TOKENS_PER_ACCELERATOR_BATCH)
        # While this machine stores a batch, CUDA computes the next batch.
        self._batches_under_way = 1 if self._device.type == "cuda" else 0

    @classmethod
    def start(cls, job: EngineJob) -> Self:
        """Load the model, check its width, and prove that its rows are causal.

        Raises:
            NotFoundError, InvalidInputError: as `Model.load`.
            IncompatibleError: its output has another width than its configuration says, or its
                rows depend on more than the tokens up to them.
        """
        settings = job.settings
        model = job.model.load(
            dtype=job.dtype or "float32", device=settings.device, attention=settings.attention
        )
        width = output_width(model)
        if width != job.vocab_size:
            raise IncompatibleError(
                f"The configuration of {job.name} has vocab_size {job.vocab_size:,}, but its "
                f"output has {width:,} ids. Correct vocab_size in the model folder's config.json."
            )
        proof = prove_causal(model, job.tokens.token_ids, job.max_length, job.name)
        for note in proof.notes():
            job.reporter.line(f"{job.name}: {note}")
        return cls(model, settings.batch_size, proof.batching)

    def run(self, documents: Sequence[Document], rule: Rule) -> Generator[DocumentRows, None, None]:
        """See `Engine.run`; on CUDA, rows are yielded while the next batch is computed."""
        under_way: deque[list[_Chunk]] = deque()
        batches = self._batches(documents)
        while True:
            batch = next(batches, None)
            if batch is not None:
                under_way.append(self._run_batch(batch, rule))
            elif not under_way:
                break
            if batch is not None and len(under_way) <= self._batches_under_way:
                continue
            for chunk in under_way.popleft():
                yield from _rows(chunk)

    def _batches(self, documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
        position = 0
        while position < len(documents):
            length = len(documents[position].token_ids)
            size = self._batch_size or max(1, self._token_budget // length)
            if self._batching == "one document":
                size = 1
            batch = documents[position : position + size]
            if self._batching == "one length":
                batch = [document for document in batch if len(document.token_ids) == length]
            yield batch
            position += len(batch)

    def _run_batch(self, batch: Sequence[Document], rule: Rule) -> list[_Chunk]:
        try:
            return self._run(batch, rule)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                length = len(batch[0].token_ids)
                raise OutOfMemoryError(
                    f"Document {batch[0].index} alone ({length:,} tokens) does not fit into the "
                    f"memory of {self._device} ({error}). Use a smaller dtype (--dtype bfloat16), "
                    "another device, or a corpus with a smaller --max-length."
                ) from error
        # Outside the handler, so that the failed batch's tensors are freed before the retry.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        self._token_budget = max(1, self._token_budget // 2)
        return self._run_batch(batch[:half], rule) + self._run_batch(batch[half:], rule)

    @torch.inference_mode()
    def _run(self, batch: Sequence[Document], rule: Rule) -> list[_Chunk]:
        input_ids, mask = pad_batch([document.token_ids for document in batch], self._device)
        chunks = []
        for chunk_start, logits in logit_chunks(self._model, input_ids, mask):
            width = logits.shape[1]
            spans, positions, labels, rows = [], [], [], []
            for row, document in enumerate(batch):
                token_ids = document.token_ids[chunk_start:]
                if len(token_ids) == 0:
                    continue
                count = min(width, len(token_ids))
                first = document.first_row + chunk_start
                spans.append(_Span(document, chunk_start, count))
                positions.append(np.arange(row * width, row * width + count))
                # A document's last row has no label; what is looked up for it is ignored.
                labels.append(np.resize(token_ids[1:], len(token_ids))[:count].astype(np.int64))
                rows.append(np.arange(first, first + count))
            selection = select(
                rule,
                logits.flatten(0, 1),
                torch.from_numpy(np.concatenate(positions)),
                torch.from_numpy(np.concatenate(labels)),
                np.concatenate(rows),
            )
            chunks.append(_Chunk(spans, selection))
        return chunks


def _rows(chunk: _Chunk) -> Iterator[DocumentRows]:
    """The rows of each of the chunk's spans, as views."""
    selection = chunk.selection()
    finite = selection.finite.numpy()
    values = {field.name: getattr(selection, field.name).numpy() for field in fields(Rows)}
    done = 0
    for span in chunk.spans:
        part = slice(done, done + span.count)
        rows = Rows(**{name: array[part] for name, array in values.items()})
        yield DocumentRows(span.document, span.position, rows, bool(finite[part].all()))
        done += span.count
