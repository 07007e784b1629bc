"""Rows of one shard: which documents to run, in which batches, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fusestore.cache.rows import Rows, blank_rows
from fusestore.capture.engine import is_out_of_memory, logit_pieces, pad_batch
from fusestore.capture.selection import select_top_k
from fusestore.corpus.tokens import TokenTable
from fusestore.errors import OutOfMemoryError
from fusestore.progress import Progress

_TOKENS_PER_BATCH = {"cpu": 4_096}
_TOKENS_PER_ACCELERATOR_BATCH = 32_768


class RowCapturer:
    """Captures stretches of rows with one model.

    A stretch depends on nothing but its own bounds: documents that cross a bound are run by both
    neighbours. So any worker can make any shard, and makes the same bytes, unless it ran out of
    memory on the way: batches are smaller from then on, and a smaller batch may round differently.
    """

    def __init__(
        self,
        model: object,
        tokens: TokenTable,
        top_k: int,
        batch_size: int | None,
    ) -> None:
        self._model = model
        self._tokens = tokens
        self._top_k = top_k
        self._batch_size = batch_size
        self._device = next(model.parameters()).device  # type: ignore[attr-defined]
        self._token_budget = _TOKENS_PER_BATCH.get(self._device.type, _TOKENS_PER_ACCELERATOR_BATCH)

    def rows(self, start: int, stop: int, progress: Progress) -> tuple[Rows, list[int]]:
        """Rows `[start, stop)` of the whole corpus.

        Returns:
            The rows, and the documents whose logits were not finite. Their rows say nothing: no
            entry kept, all mass in the tail, no label.
        """
        rows = blank_rows(stop - start, self._top_k)
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
        for batch in self._batches(order, lengths):
            bad.update(self._capture_batch(batch, start, stop, rows))
            done += sum(
                int(min(offsets[index + 1], stop) - max(offsets[index], start)) for index in batch
            )
            progress(done, stop - start)
        for index in bad:
            low = int(max(offsets[index], start)) - start
            high = int(min(offsets[index + 1], stop)) - start
            blank = blank_rows(high - low, self._top_k)
            for name in ("ids", "logprobs", "tail", "label_logprob"):
                getattr(rows, name)[low:high] = getattr(blank, name)
        return rows, sorted(bad)

    def _batches(self, order: list[int], lengths: npt.NDArray[np.int64]) -> Iterator[list[int]]:
        position = 0
        while position < len(order):
            size = self._batch_size or max(1, self._token_budget // int(lengths[order[position]]))
            yield order[position : position + size]
            position += size

    def _capture_batch(self, batch: list[int], start: int, stop: int, rows: Rows) -> set[int]:
        try:
            return self._run(batch, start, stop, rows)
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
        # Outside the handler, so that the failed batch's tensors are gone before the retry.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        self._token_budget = max(1, self._token_budget // 2)
        bad = self._capture_batch(batch[:half], start, stop, rows)
        return bad | self._capture_batch(batch[half:], start, stop, rows)

    @torch.inference_mode()
    def _run(self, batch: list[int], start: int, stop: int, rows: Rows) -> set[int]:
        offsets = self._tokens.document_offsets
        documents = [self._tokens.document(index)[0] for index in batch]
        input_ids, mask = pad_batch(documents, self._device)
        labels = torch.roll(input_ids, -1, dims=1)
        bad: set[int] = set()
        for piece_start, logits in logit_pieces(self._model, input_ids, mask):
            piece_stop = piece_start + logits.shape[1]
            # Padding is dropped before the expensive part, not after.
            kept = [
                (row, index, min(piece_stop, len(documents[row])))
                for row, index in enumerate(batch)
                if len(documents[row]) > piece_start
            ]
            real = torch.cat([logits[row, : end - piece_start] for row, _, end in kept])
            real_labels = torch.cat([labels[row, piece_start:end] for row, _, end in kept])
            selection = select_top_k(real, real_labels, self._top_k)
            ids = selection.ids.to(torch.int32).cpu().numpy()
            logprobs = selection.logprobs.cpu().numpy()
            tail = selection.tail.cpu().numpy()
            label = selection.label_logprob.cpu().numpy()
            finite = selection.finite.cpu().numpy()
            taken = 0
            for row, index, end in kept:
                count = end - piece_start
                if not finite[taken : taken + count].all():
                    bad.add(index)
                if end == len(documents[row]):
                    label[taken + count - 1] = np.nan
                base = int(offsets[index]) + piece_start
                low, high = max(base, start), min(base + count, stop)
                if low < high:
                    source = slice(taken + low - base, taken + high - base)
                    target = slice(low - start, high - start)
                    rows.ids[target] = ids[source]
                    rows.logprobs[target] = logprobs[source]
                    rows.tail[target] = tail[source]
                    rows.label_logprob[target] = label[source]
                taken += count
        return bad
