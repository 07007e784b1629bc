"""Fused datasets for training: memory-mapped windows, their order, and batches."""

from fusestore.data.collate import collate
from fusestore.data.dataset import FusedDataset, open_fused
from fusestore.data.order import BatchOrder, permutation

__all__ = ["BatchOrder", "FusedDataset", "collate", "open_fused", "permutation"]
