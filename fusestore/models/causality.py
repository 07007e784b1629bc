"""Proves, by running a model, that its rows depend on nothing but the tokens up to them.

Row i is kept as the distribution after tokens 0..i. A masked language model, an encoder or a model
that reads a prefix in both directions gives rows that have read later tokens, and neither its class
nor its configuration has to say so. Padding and the other documents of a batch or of a packed row
must not change a row either. Where they do, documents run in batches without them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusestore.errors import IncompatibleError
from fusestore.models.batch_layout import BatchLayout
from fusestore.models.loading import output_width
from fusestore.models.logits import (
    has_chunked_logits,
    is_out_of_memory,
    logit_chunks,
    whole_logits,
)
from fusestore.models.packed_rows import Packing, distance_from_alone
from fusestore.models.placement import io_device
from fusestore.models.rounding import Distance, distance, rounding_share

Batching = Packing | Literal["padded", "one length", "one document"]
"""How documents run together: several in a row, packed; any, each in a padded row; those of one
length, which need no padding; none."""

_LENGTH = 64
"""Tokens of the longest document; all passes together read about seven times as many."""

_LENGTH_OF_LARGE = 8
"""The same for a model of `_LARGE` parameters on a processor, which would take many seconds."""

_LARGE = 2**24

_Ids = npt.NDArray[np.int32]


class Proof(NamedTuple):
    """What the passes of a model showed.

    Attributes:
        batching: which documents may run together.
        moved: how far rows moved in larger batches than that; None if none moved.
        chunked: whether logits are made in chunks.
    """

    batching: Batching
    moved: Distance | None
    chunked: bool

    def notes(self) -> list[str]:
        """Sentences on what makes this model slower or larger to run than others."""
        notes = []
        if self.moved is not None:
            cause, way = {
                "one length": ("padding", "each batch has documents of one length"),
                "one document": ("the other documents of a batch", "each document runs alone"),
            }[self.batching]
            notes.append(f"{cause} moves its rows by {self.moved.nats:.2g} nats, so {way}")
        if not self.chunked:
            notes.append("its output head needs whole documents, so logits are not made in chunks")
        return notes


def prove_causal(
    model: Any,  # noqa: ANN401 - transformers is untyped
    token_ids: _Ids,
    longest: int,
    name: str,
    packing: Packing | None = None,
) -> Proof:
    """Check that a model's rows are causal, and find the batches that leave them unchanged.

    The model runs over a short document, over others that begin alike, and over several together.
    The tokens are the corpus's own, so every process that captures it finds the same.

    Args:
        model: a causal language model in evaluation mode.
        token_ids: int32 [T] tokens of a corpus, of which the first are used.
        longest: tokens of its longest document, which is within the model's context.
        name: of the model, for messages.
        packing: how documents are packed if that leaves rows unchanged; None: they are not.

    Raises:
        IncompatibleError: a row depends on later tokens, or on more than the tokens of its
            document; or the model does not run on token ids alone.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    is_slow = parameters >= _LARGE and io_device(model).type == "cpu"
    length = min(_LENGTH_OF_LARGE if is_slow else _LENGTH, longest)
    try:
        return _Passes(model, name).prove(np.resize(token_ids[:length], length), packing)
    except IncompatibleError:
        raise
    except Exception as error:
        # The code of a model may raise anything.
        if is_out_of_memory(error):
            raise
        raise IncompatibleError(
            f"{name} ({type(model).__name__}) does not run on token ids alone "
            f"({type(error).__name__}: {error}). Give a model that continues plain text."
        ) from error


class _Passes:
    """The passes of one model."""

    def __init__(self, model: Any, name: str) -> None:  # noqa: ANN401
        self._model = model
        self._name = f"{name} ({type(model).__name__})"
        self._device = io_device(model)
        self._width = output_width(model)

    def prove(self, document: _Ids, packing: Packing | None) -> Proof:
        """See `prove_causal`."""
        rows = self._alone(document)
        last = len(document) - 1
        # Row 0 moves if tokens are read anywhere near it; many rows move if the last one is read.
        counts = (min(1, last), last)
        changed = [_replaced(document, count, self._width) for count in counts]
        changed_rows = [self._alone(ids) for ids in changed]
        for count, others in zip(counts, changed_rows, strict=True):
            self._check_causal(document, rows[:count], others[:count], "replaced")
        shorter = changed[0][: max(1, 2 * len(document) // 3)]
        shorter_rows = self._alone(shorter)
        self._check_causal(document, changed_rows[0][: len(shorter)], shorter_rows, "left out")
        chunked = has_chunked_logits(self._model, self._tensor(document))
        if packing is not None and self._is_packable(
            packing, [document, shorter, changed[1]], [rows, shorter_rows, changed_rows[1]]
        ):
            return Proof(packing, None, chunked)
        batches: tuple[tuple[Batching, list[_Ids], list[Tensor]], ...] = (
            ("padded", [document, shorter], [rows, shorter_rows]),
            ("one length", [document, changed[1]], [rows, changed_rows[1]]),
        )
        largest: Distance | None = None
        for batching, documents, alone in batches:
            layout = BatchLayout.padded(_lengths(documents))
            moved = self._moved_together(documents, layout, alone)
            if not self._is_moved(moved, rows):
                return Proof(batching, largest, chunked)
            largest = largest or moved
        self._check_repeatable(document, rows)
        return Proof("one document", largest, chunked)

    def _is_packable(self, packing: Packing, documents: list[_Ids], alone: list[Tensor]) -> bool:
        """Whether documents that follow others in their row have the rows of each alone."""
        lengths = _lengths(documents)
        layout = BatchLayout.one_row(lengths)
        if packing == "rows":
            # The last document has a row of its own, which ends in padding.
            first, second, _ = lengths.tolist()
            row, start = np.array([0, 0, 1]), np.array([0, first, 0])
            layout = BatchLayout(lengths, row, start, 2, first + second)
        try:
            moved = self._moved_together(documents, layout, alone)
        except Exception as error:
            # The code of a model may raise anything when it is given position ids.
            if is_out_of_memory(error):
                raise
            return False
        return not self._is_moved(moved, alone[0])

    def _alone(self, ids: _Ids) -> Tensor:
        """Logits [len(ids), V] of a document as the plain model gives them."""
        logits = whole_logits(self._model, self._tensor(ids))
        if logits.shape != (1, len(ids), self._width):
            raise IncompatibleError(
                f"{self._name} gives logits of shape {list(logits.shape)} for {len(ids)} tokens; "
                f"expected [1, {len(ids)}, {self._width}]. Give a model that predicts the next "
                "token of plain text."
            )
        return logits[0]

    def _moved_together(
        self, documents: list[_Ids], layout: BatchLayout, alone: list[Tensor]
    ) -> Distance:
        """How far rows in one batch are from those of each document alone, float [len, V]."""
        input_ids, position_ids = layout.tensors(documents, self._device)
        chunks = logit_chunks(self._model, input_ids, position_ids=position_ids)
        logits = torch.cat([part for _, part in chunks], 1)
        return distance_from_alone(logits, layout, alone)

    def _is_moved(self, moved: Distance, rows: Tensor) -> bool:
        return moved.share > rounding_share(self._model, rows)

    def _check_causal(self, document: _Ids, rows: Tensor, others: Tensor, what: str) -> None:
        moved = distance(rows, others)
        if not self._is_moved(moved, rows):
            return
        self._check_repeatable(document, self._alone(document))
        raise IncompatibleError(
            f"{self._name} is no causal language model: a row moved by {moved.nats:.2g} nats when "
            f"the tokens after it were {what}. So its rows have read the tokens that they should "
            "predict, as those of masked language models (BERT, RoBERTa, XLM), encoders and "
            "prefix models have. Give a model that was trained to predict the next token."
        )

    def _check_repeatable(self, document: _Ids, rows: Tensor) -> None:
        moved = distance(rows, self._alone(document))
        if self._is_moved(moved, rows):
            raise IncompatibleError(
                f"{self._name} gives other rows each time it reads the same document: a row moved "
                f"by {moved.nats:.2g} nats. Its forward pass draws random numbers, so a capture "
                "of it cannot be continued or checked."
            )

    def _tensor(self, ids: _Ids) -> Tensor:
        return torch.from_numpy(ids.astype(np.int64))[None].to(self._device)


def _lengths(documents: list[_Ids]) -> npt.NDArray[np.int64]:
    return np.array([len(ids) for ids in documents])


def _replaced(ids: _Ids, count: int, width: int) -> _Ids:
    """The document with other tokens after the first `count`, if possible from the document."""
    changed = ids.copy()
    for index in range(count, len(ids)):
        others = ids[ids != ids[index]]
        changed[index] = others[-1] if len(others) else (ids[index] + 1) % width
    return changed
