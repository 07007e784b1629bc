"""Whether a model supports document masking: attention within each document of a window."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusestore.errors import IncompatibleError
from fusestore.models.batch_layout import BatchLayout
from fusestore.models.loading import output_width
from fusestore.models.logits import whole_logits
from fusestore.models.packed_rows import distance_from_alone
from fusestore.models.rounding import rounding_share

_CUTS = (5, 7)
"""First position of the second document in each window of the check."""

_LENGTH = 16


def check_document_masking(
    model: Any,  # noqa: ANN401 - transformers is untyped
    batch_size: int = 1,
) -> None:
    """Check, by running the model, that packed documents have the logits of separate documents.

    transformers derives document masks from `position_ids` in models that use its
    `masking_utils`; other models accept the same arguments and attend to the whole window.

    Args:
        model: a causal language model in float32.
        batch_size: windows per call; above 1 the check uses 2.

    Raises:
        IncompatibleError: the rows differ by more than rounding.
    """
    cuts = np.array(_CUTS[:batch_size])
    first = np.zeros_like(cuts)
    # Of each window its first document, then its second.
    layout = BatchLayout(
        lengths=np.stack([cuts, _LENGTH - cuts], 1).ravel(),
        row=np.repeat(np.arange(len(cuts)), 2),
        start=np.stack([first, cuts], 1).ravel(),
        rows=len(cuts),
        width=_LENGTH,
    )
    ids = np.random.default_rng(0).integers(
        min(output_width(model), model.get_input_embeddings().num_embeddings),
        size=layout.size,
        dtype=np.int32,
    )
    documents = np.split(ids, np.cumsum(layout.lengths)[:-1])
    device = model.get_input_embeddings().weight.device
    was_training = model.training
    # Dropout would draw from the global generator.
    model.eval()
    try:
        input_ids, position_ids = layout.tensors(documents, device)
        packed = whole_logits(model, input_ids, position_ids=position_ids)
        alone = [
            whole_logits(
                model, BatchLayout.one_row(np.array([len(each)])).tensors([each], device)[0]
            )
            for each in documents
        ]
    finally:
        model.train(was_training)
    moved = distance_from_alone(packed, layout, [logits[0] for logits in alone])
    if not moved.share <= rounding_share(model, packed):
        attention = getattr(model.config, "_attn_implementation", "?")
        raise IncompatibleError(
            f"{type(model).__name__} with attention {attention!r} does not support document "
            f"masking: the rows of packed documents differ by up to {moved.nats:.2g} nats from "
            "those of separate documents. Train with attend_within = 'window', with "
            "attn_implementation = 'sdpa' or 'eager', or on a dataset fused with packing = "
            "'document'."
        )
