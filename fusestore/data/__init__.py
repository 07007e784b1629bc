"""Fused datasets as training reads them: memory-mapped or streamed windows, order, batches."""

from fusestore.data.collate import collate, model_inputs
from fusestore.data.dataset import FusedDataset, open_fused
from fusestore.data.mixture import FusedMixture
from fusestore.data.mixture_order import MixtureOrder
from fusestore.data.on_demand import open_recipe
from fusestore.data.order import BatchOrder, permutation
from fusestore.data.streaming.loader import StreamingLoader
from fusestore.data.streaming.stream_mixture import StreamingMixture
from fusestore.data.streaming.stream_order import StreamOrder
from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset

__all__ = [
    "BatchOrder",
    "FusedDataset",
    "FusedMixture",
    "MixtureOrder",
    "StreamOrder",
    "StreamingFusedDataset",
    "StreamingLoader",
    "StreamingMixture",
    "collate",
    "model_inputs",
    "open_fused",
    "open_recipe",
    "permutation",
]
