"""Proves, by running a model, that its rows depend on nothing but the tokens up to them.

Row i is kept as the distribution after tokens 0..i. A masked language model, an encoder or a model
that reads a prefix in both directions gives rows that have read later tokens, and neither its class
nor its configuration has to say so. Padding and the other documents of a batch must not change a
row either. Where they do, documents run in batches without them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusestore.errors import IncompatibleError
from fusestore.models.loading import output_width
from fusestore.models.logits import (
    has_chunked_logits,
    is_out_of_memory,
    logit_chunks,
    pad_batch,
    whole_logits,
)
from fusestore.models.rounding import Distance, distance, rounding_share

Batching = Literal["padded", "one length", "one document"]
"""Which documents may run together: any; those of one length, which need no padding; none."""

_LENGTH = 12
"""Tokens of the longer document: all passes together read about 100 tokens."""

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
) -> Proof:
    """Check that a model's rows are causal, and find the batches that leave them unchanged.

    The model runs over two short documents alone and together, and with their last tokens replaced.
    The tokens are the corpus's own, so every process that captures it finds the same.

    Args:
        model: a causal language model in evaluation mode.
        token_ids: int32 [T] tokens of a corpus, of which the first are used.
        longest: tokens of its longest document, which is within the model's context.
        name: of the model, for messages.

    Raises:
        IncompatibleError: a row depends on later tokens, or on more than the tokens of its
            document; or the model does not run on token ids alone.
    """
    length = min(_LENGTH, longest)
    shorter = max(1, 2 * length // 3)
    text = np.resize(token_ids[: length + shorter], length + shorter)
    try:
        return _Passes(model, name).prove(text[:length], text[length:])
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
        self._device = next(model.parameters()).device

    def prove(self, first: _Ids, second: _Ids) -> Proof:
        """See `prove_causal`."""
        rows = self._alone(first)
        limit = rounding_share(self._model, rows)
        # Row 0 moves if a later token is read anywhere near; many rows move if the last one is.
        last = len(first) - 1
        changed = {count: _replaced(first, count, rows.shape[-1]) for count in (min(1, last), last)}
        others = {count: self._alone(ids) for count, ids in changed.items()}
        for count, other in others.items():
            moved = distance(rows[:count], other[:count])
            if moved.share > limit:
                self._check_repeatable(first, rows, limit)
                raise self._not_causal(moved, count)
        batches: tuple[tuple[Batching, list[_Ids], list[Tensor]], ...] = (
            ("padded", [first, second], [rows, self._alone(second)]),
            ("one length", [first, changed[last]], [rows, others[last]]),
            ("one document", [first], [rows]),
        )
        chunked = has_chunked_logits(self._model, self._tensor(first)[None])
        largest: Distance | None = None
        for batching, documents, alone in batches:
            moved = self._moved_together(documents, alone)
            if moved.share <= limit:
                return Proof(batching, largest, chunked)
            largest = largest or moved
        self._check_repeatable(first, rows, limit)
        raise IncompatibleError(
            f"The rows of {self._name} move by {moved.nats:.2g} nats when a document that runs "
            "alone has an attention mask of ones. Such rows are not those of the plain model, so "
            "they are not captured. Try another attention implementation (--attention eager)."
        )

    def _alone(self, ids: _Ids) -> Tensor:
        """Logits [len(ids), V] of a document as the plain model gives them."""
        logits = whole_logits(self._model, self._tensor(ids)[None])
        width = output_width(self._model)
        if logits.shape != (1, len(ids), width):
            raise IncompatibleError(
                f"{self._name} gives logits of shape {list(logits.shape)} for {len(ids)} tokens; "
                f"expected [1, {len(ids)}, {width}]. Give a model that predicts the next token."
            )
        return logits[0]

    def _moved_together(self, documents: list[_Ids], alone: list[Tensor]) -> Distance:
        """How far the rows of documents in one batch are from those of each document alone."""
        parts = [part for _, part in logit_chunks(self._model, *pad_batch(documents, self._device))]
        logits = torch.cat(parts, 1)
        distances = [distance(rows, logits[index, : len(rows)]) for index, rows in enumerate(alone)]
        return max(distances, key=lambda moved: moved.share)

    def _check_repeatable(self, ids: _Ids, rows: Tensor, limit: float) -> None:
        moved = distance(rows, self._alone(ids))
        if moved.share > limit:
            raise IncompatibleError(
                f"{self._name} gives the same document other rows each time it runs: a row moved "
                f"by {moved.nats:.2g} nats. Its forward pass draws random numbers, so no capture "
                "of it could be continued or checked."
            )

    def _not_causal(self, moved: Distance, count: int) -> IncompatibleError:
        return IncompatibleError(
            f"{self._name} is no causal language model: a row moved by {moved.nats:.2g} nats when "
            f"only tokens after it were replaced (rows up to {count - 1}, tokens from {count}). "
            "Such a model reads the token that it should predict, as masked language models "
            "(BERT, RoBERTa, XLM), encoders and prefix models do. Give a model that was trained "
            "to predict the next token."
        )

    def _tensor(self, ids: _Ids) -> Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self._device)


def _replaced(ids: _Ids, count: int, width: int) -> _Ids:
    """The document with other tokens after the first `count`, if possible from the document."""
    changed = ids.copy()
    for index in range(count, len(ids)):
        others = ids[ids != ids[index]]
        changed[index] = others[-1] if len(others) else (ids[index] + 1) % width
    return changed
