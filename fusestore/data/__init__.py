"""Fused datasets as training reads them: memory-mapped windows, order, batches."""

from fusestore.data.collate import collate
from fusestore.data.dataset import FusedDataset, open_fused
from fusestore.data.on_demand import open_recipe
from fusestore.data.order import BatchOrder, permutation

__all__ = ["BatchOrder", "FusedDataset", "collate", "open_fused", "open_recipe", "permutation"]
