"""Fused datasets as training reads them: memory-mapped or streamed windows, order, batches."""

from fusestore.data.collate import collate
from fusestore.data.dataset import FusedDataset, open_fused
from fusestore.data.loader import StreamingLoader
from fusestore.data.on_demand import open_recipe
from fusestore.data.order import BatchOrder, permutation
from fusestore.data.stream_order import StreamOrder
from fusestore.data.streaming import StreamingFusedDataset

__all__ = [
    "BatchOrder",
    "FusedDataset",
    "StreamOrder",
    "StreamingFusedDataset",
    "StreamingLoader",
    "collate",
    "open_fused",
    "open_recipe",
    "permutation",
]
