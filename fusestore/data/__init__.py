"""Fused datasets as training reads them: memory-mapped or streamed windows, order, batches."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusestore.data.collation import collate, model_inputs
    from fusestore.data.dataset import FusedDataset, open_fused
    from fusestore.data.mixture import FusedMixture
    from fusestore.data.mixture_order import MixtureOrder
    from fusestore.data.on_demand import open_recipe
    from fusestore.data.order import BatchOrder, permutation
    from fusestore.data.streaming.loader import StreamingLoader
    from fusestore.data.streaming.stream_mixture import StreamingMixture
    from fusestore.data.streaming.stream_order import StreamOrder
    from fusestore.data.streaming.stream_reader import WindowReader
    from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
    from fusestore.data.window_loader import WindowLoader

__all__ = [
    "BatchOrder",
    "FusedDataset",
    "FusedMixture",
    "MixtureOrder",
    "StreamOrder",
    "StreamingFusedDataset",
    "StreamingLoader",
    "StreamingMixture",
    "WindowLoader",
    "WindowReader",
    "collate",
    "model_inputs",
    "open_fused",
    "open_recipe",
    "permutation",
]

_MODULES = {
    "BatchOrder": "order",
    "FusedDataset": "dataset",
    "FusedMixture": "mixture",
    "MixtureOrder": "mixture_order",
    "StreamOrder": "streaming.stream_order",
    "StreamingFusedDataset": "streaming.streaming_dataset",
    "StreamingLoader": "streaming.loader",
    "StreamingMixture": "streaming.stream_mixture",
    "WindowLoader": "window_loader",
    "WindowReader": "streaming.stream_reader",
    "collate": "collation",
    "model_inputs": "collation",
    "open_fused": "dataset",
    "open_recipe": "on_demand",
    "permutation": "order",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
