"""Packed rows: how a model takes them, and how far they move a document's own rows.

Whether a model masks documents from each other is found by running it. Many types accept position
ids and attend to the whole row; recurrent ones carry their state into the next document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from fusestore.models.batch_layout import BatchLayout
from fusestore.models.rounding import Distance, distance
from fusestore.models.row_lengths import counts_from_row_start

Packing = Literal["one row", "rows"]
"""How packed documents lie: in one long row; in rows about as long as the longest of them."""


def packing_of(model: Any) -> Packing | None:  # noqa: ANN401 - transformers is untyped
    """How documents are packed for a model, if it masks them; None: better not at all.

    Kernels for documents of any length (flash attention) and block masks (flex attention) skip what
    a token does not attend to, and flash attention takes packed documents in one row only. Others
    compute scores between all tokens of a row, so its length is what attention costs.
    """
    if counts_from_row_start(model):
        return None
    attention = str(getattr(model.config.get_text_config(), "_attn_implementation", ""))
    return "one row" if "flash" in attention or attention == "flex_attention" else "rows"


def distance_from_alone(logits: Tensor, layout: BatchLayout, alone: Sequence[Tensor]) -> Distance:
    """How far rows in a batch are from those of each document alone.

    Args:
        logits: [rows, width, V] of the batch.
        layout: where its documents lie.
        alone: logits [length, V] of each document.
    """
    parts = zip(layout.row, layout.start, layout.lengths, alone, strict=True)
    distances = [
        distance(rows, logits[row, start : start + length]) for row, start, length, rows in parts
    ]
    return max(distances, key=lambda moved: moved.share)
