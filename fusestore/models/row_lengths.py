"""What of a model depends on how long its rows are, by its configuration.

`causality` finds what moves rows by running a model over few tokens. Some parts of a model change
only after thousands of tokens, so these few are looked up.
"""

from __future__ import annotations

from typing import Any

_COUNTED = ("attention_chunk_size", "index_topk", "indexer_budget")
"""Chunked attention begins its chunks at the start of the row, not of the document; sparse
attention keeps a number of tokens of the row."""


def counts_from_row_start(model: Any) -> bool:  # noqa: ANN401 - transformers is untyped
    """Whether rows of a document may depend on where in a long row it begins."""
    config = model.config.get_text_config()
    return any(getattr(config, name, None) for name in _COUNTED)


def switch_length(model: Any) -> int | None:  # noqa: ANN401
    """The length up to which a model reads positions in one way, and beyond it in another.

    LongRoPE has two sets of frequencies. The longest document of a batch selects the set for all,
    so shorter documents must not run beside longer ones than this.
    """
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    # Either the parameters, or those of each type of layer.
    layers = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    lengths = {
        int(each["original_max_position_embeddings"])
        for each in layers
        if each.get("rope_type") == "longrope" and each.get("original_max_position_embeddings")
    }
    return min(lengths, default=None)
