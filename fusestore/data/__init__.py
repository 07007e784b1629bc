"""Fused datasets as training reads them: memory-mapped windows, order, batches."""
