"""Captures the rows of a shard: runs its documents in batches and selects entries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from fusestore.cache.rows import Rows, blank_rows
from fusestore.cache.rule import Rule
from fusestore.capture.selection import Selection, select
from fusestore.errors import OutOfMemoryError
from fusestore.models.causality import Batching
from fusestore.models.logits import is_out_of_memory, logit_chunks, pad_batch
from fusestore.progress import Progress
from fusestore.tokenizers.token_table import TokenTable

_TOKENS_PER_BATCH = {"cpu": 4_096}
_TOKENS_PER_ACCELERATOR_BATCH = 32_768


@dataclass(frozen=True)
class _Span:
    """`count` rows of a document, from row `first` of the corpus."""

    document: int
    first: int
    count: int
    ends_document: bool


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


class RowCapturer:
    """Captures ranges of rows with one model.

    The rows of a range depend only on its bounds: a document that crosses a bound is run for both
    ranges. So any worker can make any shard, to the same bytes, unless it has run out of memory:
    its batches are smaller from then on, and a smaller batch may round differently.
    """

    def __init__(
        self,
        model: object,
        tokens: TokenTable,
        rule: Rule,
        batch_size: int | None,
        batching: Batching = "padded",
    ) -> None:
        self._model = model
        self._tokens = tokens
        self._rule = rule
        self._batch_size = batch_size
        self._batching = batching
        self._device = next(model.parameters()).device  # type: ignore[attr-defined]
        self._token_budget = _TOKENS_PER_BATCH.get(self._device.type, _TOKENS_PER_ACCELERATOR_BATCH)
        # While this machine stores a batch, CUDA computes the next batch.
        self._batches_under_way = 1 if self._device.type == "cuda" else 0

    def rows(self, start: int, stop: int, progress: Progress) -> tuple[Rows, list[int]]:
        """Rows `[start, stop)` of the whole corpus.

        Args:
            start: the first row.
            stop: one past the last row.
            progress: called after each batch; an error that it raises ends the capture.

        Returns:
            The rows, and the documents with logits that were not finite. These have `blank_rows`.
        """
        rows = blank_rows(stop - start, self._rule.top_k)
        offsets = self._tokens.document_offsets
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, stop, side="left"))
        lengths = np.diff(offsets)
        # Longest first: little padding, and a batch that does not fit fails at once.
        order = sorted(
            (index for index in range(first, last) if lengths[index] > 0),
            key=lambda index: (-lengths[index], index),
        )
        bad: set[int] = set()
        done = 0
        under_way: deque[list[_Chunk]] = deque()
        batches = self._batches(order, lengths)
        while True:
            batch = next(batches, None)
            if batch is not None:
                under_way.append(self._capture_batch(batch))
            elif not under_way:
                break
            if batch is not None and len(under_way) <= self._batches_under_way:
                continue
            for chunk in under_way.popleft():
                bad |= _store(chunk, start, rows)
                done += sum(_overlap(span, start, len(rows))[1] for span in chunk.spans)
            progress(done, stop - start)
        for index in bad:
            low = int(max(offsets[index], start)) - start
            high = int(min(offsets[index + 1], stop)) - start
            blank = blank_rows(high - low, self._rule.top_k)
            for field in fields(Rows):
                getattr(rows, field.name)[low:high] = getattr(blank, field.name)
        return rows, sorted(bad)

    def _batches(self, order: list[int], lengths: npt.NDArray[np.int64]) -> Iterator[list[int]]:
        position = 0
        while position < len(order):
            length = lengths[order[position]]
            size = self._batch_size or max(1, self._token_budget // int(length))
            if self._batching == "one document":
                size = 1
            batch = order[position : position + size]
            if self._batching == "one length":
                batch = [index for index in batch if lengths[index] == length]
            yield batch
            position += len(batch)

    def _capture_batch(self, batch: list[int]) -> list[_Chunk]:
        try:
            return self._run(batch)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                length = len(self._tokens.document(batch[0])[0])
                raise OutOfMemoryError(
                    f"Document {batch[0]} alone ({length:,} tokens) does not fit into the memory "
                    f"of {self._device} ({error}). Use a smaller dtype (--dtype bfloat16), another "
                    "device, or a corpus with a smaller --max-length."
                ) from error
        # Outside the handler, so that the failed batch's tensors are freed before the retry.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        self._token_budget = max(1, self._token_budget // 2)
        return self._capture_batch(batch[:half]) + self._capture_batch(batch[half:])

    @torch.inference_mode()
    def _run(self, batch: list[int]) -> list[_Chunk]:
        offsets = self._tokens.document_offsets
        documents = [self._tokens.document(index)[0] for index in batch]
        input_ids, mask = pad_batch(documents, self._device)
        chunks = []
        for chunk_start, logits in logit_chunks(self._model, input_ids, mask):
            width = logits.shape[1]
            spans, positions, labels, rows = [], [], [], []
            for row, index in enumerate(batch):
                document = documents[row][chunk_start:]
                if len(document) == 0:
                    continue
                count = min(width, len(document))
                first = int(offsets[index]) + chunk_start
                spans.append(_Span(index, first, count, count == len(document)))
                positions.append(np.arange(row * width, row * width + count))
                # A document's last row has no label; `_store` drops what is looked up for it.
                labels.append(np.resize(document[1:], len(document))[:count].astype(np.int64))
                rows.append(np.arange(first, first + count))
            selection = select(
                self._rule,
                logits.flatten(0, 1),
                torch.from_numpy(np.concatenate(positions)),
                torch.from_numpy(np.concatenate(labels)),
                np.concatenate(rows),
            )
            chunks.append(_Chunk(spans, selection))
        return chunks


def _overlap(span: _Span, start: int, count: int) -> tuple[int, int]:
    """Number of the span's rows before row `start`, and in rows `[start, start + count)`."""
    before = min(max(start - span.first, 0), span.count)
    return before, max(0, min(span.count - before, start + count - span.first - before))


def _store(chunk: _Chunk, start: int, rows: Rows) -> set[int]:
    """Copy the chunk's selection into `rows`, which begin at row `start`.

    Returns:
        The documents with a row that is not finite.
    """
    selection = chunk.selection()
    finite = selection.finite.numpy()
    bad: set[int] = set()
    done = 0
    for span in chunk.spans:
        if not finite[done : done + span.count].all():
            bad.add(span.document)
        before, count = _overlap(span, start, len(rows))
        source = slice(done + before, done + before + count)
        low = span.first + before - start
        target = slice(low, low + count)
        for field in fields(Rows):
            getattr(rows, field.name)[target] = getattr(selection, field.name).numpy()[source]
        if span.ends_document and count and before + count == span.count:
            rows.label_logprob[low + count - 1] = np.nan
        done += span.count
    return bad
