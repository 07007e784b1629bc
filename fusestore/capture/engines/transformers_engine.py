"""The engine `transformers`: a model in this process, and the reference for all others."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.capture.batches import Batch, limits_on, plan_batches
from fusestore.capture.engines.protocol import (
    Capabilities,
    Document,
    DocumentRows,
    Engine,
    EngineJob,
)
from fusestore.capture.selection import Selection, select
from fusestore.errors import IncompatibleError, OutOfMemoryError
from fusestore.models.batch_layout import BatchLayout
from fusestore.models.causality import Batching, prove_causal
from fusestore.models.compilation import compile_layers
from fusestore.models.loading import output_width
from fusestore.models.logits import is_out_of_memory, logit_chunks
from fusestore.models.packed_rows import Packing, packing_of
from fusestore.models.placement import describe_placement, io_device
from fusestore.models.row_lengths import switch_length


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
            # The logits of a model on several GPUs may lie on another than the current one.
            stream = torch.cuda.current_stream(selection.tail.device)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(stream)

    def selection(self) -> Selection:
        """The selection in this machine's memory; waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._selection


class TransformersEngine(Engine):
    """Runs a model of transformers in this process, in batches, longest documents first.

    When memory runs out, the budget of a batch is halved for all that is left; a smaller batch may
    round differently.
    """

    capabilities = Capabilities(whole_rows=True, wanted_rows_only=True, local_weights=True)

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
            batching: how documents run together.
        """
        self._model = model
        self._batching = batching
        self._device = io_device(model)
        self.device = self._device.type
        self._limits = limits_on(self._device.type)._replace(
            documents=batch_size, switch=switch_length(model)
        )
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
            dtype=job.dtype or "float32",
            device=settings.device,
            attention=settings.attention,
            placement=settings.placement,
            quantization=settings.quantization,
        )
        placed = describe_placement(model)
        if placed is not None:
            job.reporter.line(f"{job.name}: {placed}")
        if settings.compile:
            job.reporter.line(f"{job.name}: {compile_layers(model)}")
        width = output_width(model)
        if width != job.vocab_size:
            raise IncompatibleError(
                f"The configuration of {job.name} has vocab_size {job.vocab_size:,}, but its "
                f"output has {width:,} ids. Correct vocab_size in the model folder's config.json."
            )
        packing = None if settings.batch_size is not None else _packing(model)
        proof = prove_causal(model, job.tokens.token_ids, job.max_length, job.name, packing)
        for note in proof.notes():
            job.reporter.line(f"{job.name}: {note}")
        return cls(model, settings.batch_size, proof.batching)

    def run(self, documents: Sequence[Document], rule: Rule) -> Generator[DocumentRows, None, None]:
        """See `Engine.run`; on CUDA, rows are yielded while the next batch is computed."""
        under_way: deque[list[_Chunk]] = deque()
        for chunks in self._batches(documents, rule):
            under_way.append(chunks)
            if len(under_way) > self._batches_under_way:
                yield from _rows(under_way.popleft())
        for chunks in under_way:
            yield from _rows(chunks)

    def _batches(self, documents: Sequence[Document], rule: Rule) -> Iterator[list[_Chunk]]:
        """Run documents; what is left when memory runs out is divided into smaller batches."""
        while documents:
            lengths = np.array([len(document.token_ids) for document in documents])
            left = np.ones(len(documents), np.bool_)
            for batch in plan_batches(lengths, self._batching, self._limits):
                chunks = self._run_or_shrink([documents[i] for i in batch.documents], batch, rule)
                if chunks is None:
                    break
                yield chunks
                left[batch.documents] = False
            documents = [documents[i] for i in np.flatnonzero(left).tolist()]

    def _run_or_shrink(
        self, documents: Sequence[Document], batch: Batch, rule: Rule
    ) -> list[_Chunk] | None:
        """Run a batch; None if it does not fit into memory, and then later ones are smaller."""
        try:
            return self._run(documents, batch.layout, rule)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(documents) == 1:
                length = len(documents[0].token_ids)
                raise OutOfMemoryError(
                    f"Document {documents[0].index} alone ({length:,} tokens) does not fit into "
                    f"the memory of {self._device} ({error}). Use a smaller dtype (--dtype "
                    "bfloat16), another device, or a corpus with a smaller --max-length."
                ) from error
        # Outside the handler, so that the failed batch's tensors are freed before the retry.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        limits = self._limits
        self._limits = limits._replace(
            tokens=max(1, min(limits.tokens, batch.layout.size) // 2),
            documents=limits.documents and len(documents) // 2,
        )
        return None

    @torch.inference_mode()
    def _run(self, documents: Sequence[Document], layout: BatchLayout, rule: Rule) -> list[_Chunk]:
        tokens = _Tokens(documents, layout)
        input_ids, position_ids = layout.tensors(
            [document.token_ids for document in documents], self._device
        )
        chunks = []
        slots = torch.from_numpy(tokens.slot)
        for start, logits in logit_chunks(
            self._model, input_ids, position_ids=position_ids, slots=slots
        ):
            count = logits.shape[1]
            here = slice(start, start + count)
            selection = select(
                rule,
                logits[0],
                torch.arange(count),
                torch.from_numpy(tokens.label[here]),
                tokens.cache_row[here],
            )
            chunks.append(_Chunk(tokens.spans(here), selection))
        return chunks


def _packing(model: Any) -> Packing | None:  # noqa: ANN401 - transformers is untyped
    """How documents are packed here, if the model masks them; None: not at all.

    Not on a processor: its batches are small enough for buckets, and its attention is slower over
    packed rows, whose mask it reads, than over padded ones, which need none.
    """
    return None if io_device(model).type == "cpu" else packing_of(model)


class _Tokens:
    """The wanted tokens of a batch, documents one after the other: int64 arrays.

    Attributes:
        slot: `row * width + column` in the batch.
        label: the next token. A document's last token has none; its label is ignored.
        cache_row: number of its row among those of all tokens.
    """

    def __init__(self, documents: Sequence[Document], layout: BatchLayout) -> None:
        self._documents = documents
        wanted = np.concatenate([_wanted(document) for document in documents])
        self._document = np.repeat(np.arange(len(documents)), layout.lengths)[wanted]
        self._position = layout.positions()[wanted]
        self.slot = layout.slots()[wanted]
        token_ids = np.concatenate([document.token_ids for document in documents])
        self.label = np.roll(token_ids, -1).astype(np.int64)[wanted]
        first = np.array([document.first_row for document in documents])
        self.cache_row = first[self._document] + self._position

    def spans(self, tokens: slice) -> list[_Span]:
        """The spans that some of the tokens make up, in their order."""
        documents, positions = self._document[tokens], self._position[tokens]
        begins = np.ones(len(documents), np.bool_)
        begins[1:] = (np.diff(documents) != 0) | (np.diff(positions) != 1)
        first = np.flatnonzero(begins)
        counts = np.diff(first, append=len(documents))
        return [
            _Span(self._documents[number], position, count)
            for number, position, count in zip(
                documents[first].tolist(), positions[first].tolist(), counts.tolist(), strict=True
            )
        ]


def _wanted(document: Document) -> npt.NDArray[np.bool_]:
    if document.wanted is not None:
        return document.wanted
    return np.ones(len(document.token_ids), np.bool_)


def _rows(chunks: Sequence[_Chunk]) -> Iterator[DocumentRows]:
    """The rows of each of the chunks' spans, as views."""
    for chunk in chunks:
        selection = chunk.selection()
        finite = selection.finite.numpy()
        values = {field.name: getattr(selection, field.name).numpy() for field in fields(Rows)}
        done = 0
        for span in chunk.spans:
            part = slice(done, done + span.count)
            rows = Rows(**{name: array[part] for name, array in values.items()})
            yield DocumentRows(span.document, span.position, rows, bool(finite[part].all()))
            done += span.count
