"""Which batches make up each optimizer step: a function of the plan and the step's number."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fusestore.data.collation import collate
from fusestore.data.mixture import Fused
from fusestore.data.order import BatchOrder, batches_per_epoch
from fusestore.train.manifest import TrainingPlan


def step_batches(
    dataset: Fused, plan: TrainingPlan, rank: int, steps_done: int
) -> Generator[list[dict[str, Tensor]], None, None]:
    """The batches of each optimizer step from `steps_done` on, epoch after epoch, for ever.

    Args:
        dataset: what is trained on.
        plan: of the run.
        rank: of this process, out of `plan.world_size`.
        steps_done: optimizer steps to leave out.
    """
    settings, world_size = plan.settings, plan.world_size
    accumulation = settings.gradient_accumulation
    batches = batches_per_epoch(len(dataset), settings.batch_size, world_size)
    epoch, steps_into_epoch = divmod(steps_done, -(-batches // accumulation))
    while True:
        order = BatchOrder(
            dataset,
            settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            first_batch=steps_into_epoch * accumulation,
            rank=rank,
            world_size=world_size,
        )
        loader = DataLoader(
            dataset,
            batch_sampler=order,
            collate_fn=partial(collate, documents_apart=settings.attend_within == "document"),
            num_workers=settings.num_workers,
            # A forked worker can hang once the parent has used Polars or s3fs.
            multiprocessing_context="forkserver" if settings.num_workers else None,
            # Without its own generator the loader would draw from the global one.
            generator=torch.Generator(),
        )
        group: list[dict[str, Tensor]] = []
        for number, batch in enumerate(loader, 1):
            group.append(batch)
            if len(group) == accumulation or number == len(order):
                yield group
                group = []
        epoch, steps_into_epoch = epoch + 1, 0
