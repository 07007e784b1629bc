"""Whether accelerate divides among its processes what is already one process's share."""

from __future__ import annotations

import sys


def is_sharded_by_accelerate(source: object) -> bool:
    """Whether the loader of accelerate that is being iterated shards this dataset or batch sampler.

    `Accelerator.prepare` wraps loaders without asking their datasets. While a wrapped loader is
    iterated, `GradientState` names it.
    """
    accelerate = sys.modules.get("accelerate.data_loader")
    if accelerate is None:
        return False
    loader = accelerate.GradientState().active_dataloader
    if loader is None:
        return False
    dataset, batch_sampler = loader.dataset, loader.batch_sampler
    if isinstance(loader, accelerate.DataLoaderDispatcher):
        # The main process alone reads.
        return source is dataset or source is batch_sampler
    if isinstance(dataset, accelerate.IterableDatasetShard):
        return source is dataset.dataset
    if isinstance(batch_sampler, accelerate.BatchSamplerShard):
        return source is batch_sampler.batch_sampler
    return False
