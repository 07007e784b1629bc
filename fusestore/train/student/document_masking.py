"""Whether a model supports document masking: attention within each document of a window."""

from __future__ import annotations

from typing import Any

import torch

from fusestore.errors import IncompatibleError
from fusestore.models.loading import output_width

_CUTS = (5, 7)
"""First position of the second document in each window of the check."""

_LENGTH = 16
_TOLERANCE = 1e-4
"""As a share of the largest logit: far above rounding in float32, far below an effect of tokens."""


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
        IncompatibleError: the logits differ.
    """
    rows = min(batch_size, len(_CUTS))
    width = min(output_width(model), model.get_input_embeddings().num_embeddings)
    generator = torch.Generator().manual_seed(0)
    device = model.get_input_embeddings().weight.device
    ids = torch.randint(width, (rows, _LENGTH), generator=generator).to(device)
    positions = torch.arange(_LENGTH, device=device)
    cuts = torch.tensor(_CUTS[:rows], device=device)[:, None]
    position_ids = torch.where(positions < cuts, positions, positions - cuts)
    was_training = model.training
    # Dropout would draw from the global generator.
    model.eval()
    try:
        with torch.no_grad():
            packed = model(input_ids=ids, position_ids=position_ids, use_cache=False).logits
            alone = torch.stack(
                [
                    torch.cat(
                        [
                            model(input_ids=document[None], use_cache=False).logits[0]
                            for document in documents
                        ]
                    )
                    for documents in (
                        row.split([cut, _LENGTH - cut])
                        for row, cut in zip(ids, _CUTS, strict=False)
                    )
                ]
            )
    finally:
        model.train(was_training)
    difference = float((packed - alone).abs().max())
    if not difference <= _TOLERANCE * float(alone.abs().max()):
        attention = getattr(model.config, "_attn_implementation", "?")
        raise IncompatibleError(
            f"{type(model).__name__} with attention {attention!r} does not support document "
            f"masking: the logits of packed documents differ by up to {difference:.2g} from those "
            "of separate documents. Train with attend_within = 'window', with "
            "attn_implementation = 'sdpa' or 'eager', or on a dataset fused with packing = "
            "'document'."
        )
