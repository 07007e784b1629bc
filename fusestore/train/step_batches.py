"""The batches of each optimizer step: a function of the plan and the step's number.

A step takes the next windows of the order, as many as `TrainingPlan.windows_per_step`, however they
are divided over processes and batches. The last step of an epoch takes the rest. A process for
which no window is left then gets padding, which adds nothing to loss and gradient, so every window
comes once in an epoch, and every process makes the same number of forward passes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fusestore.data.collation import collate
from fusestore.data.mixture import TrainingDataset
from fusestore.data.order import BatchOrder
from fusestore.data.streaming.loader import StreamingLoader, worker_options
from fusestore.data.streaming.stream import Stream
from fusestore.data.windows import NO_WINDOW, padding_sample
from fusestore.errors import InvalidInputError
from fusestore.train.manifest import TrainingPlan

Trainable = TrainingDataset | Stream
"""What a model is trained on: a dataset or a mixture, mapped or streamed."""


def windows_in_epoch(dataset: Trainable) -> int:
    """Windows of an epoch, over all ranks."""
    return dataset.num_windows if isinstance(dataset, Stream) else len(dataset)


def step_batches(
    dataset: Trainable, plan: TrainingPlan, rank: int, steps_done: int
) -> Generator[list[dict[str, Tensor]], None, None]:
    """The batches of each optimizer step after `steps_done`, epoch after epoch, without end.

    A stream gives the batches of a map-style dataset with the same order. Padding is removed from
    a batch that holds windows, too.

    Args:
        dataset: the training data; the position of a stream is set.
        plan: of the run, divided for its processes.
        rank: of this process, out of `plan.world_size`.
        steps_done: optimizer steps to skip.

    Raises:
        InvalidInputError: a stream that was opened for another rank or world size.
    """
    settings, world_size = plan.settings, plan.world_size
    accumulation = settings.gradient_accumulation
    if isinstance(dataset, Stream) and dataset.place() != (rank, world_size):
        raise InvalidInputError(
            f"{dataset.name} is a stream of rank and world size {dataset.place()}, but the run has "
            f"{(rank, world_size)}. Open it without rank and world_size."
        )
    batches = -(-windows_in_epoch(dataset) // (settings.batch_size * world_size))
    epoch, steps_into_epoch = divmod(steps_done, -(-batches // accumulation))
    while True:
        first = steps_into_epoch * accumulation
        group: list[dict[str, Tensor]] = []
        remaining = islice(_epoch(dataset, plan, rank, epoch, first), batches - first)
        for number, batch in enumerate(remaining, first + 1):
            group.append(batch)
            if len(group) == accumulation or number == batches:
                yield group
                group = []
        epoch, steps_into_epoch = epoch + 1, 0


def _epoch(
    dataset: Trainable, plan: TrainingPlan, rank: int, epoch: int, first_batch: int
) -> Iterator[dict[str, Tensor]]:
    settings = plan.settings
    options: dict[str, Any] = {
        "collate_fn": partial(
            _collate,
            padding=padding_sample(dataset.top_k, sampled=dataset.sampled),
            document_masking=settings.attend_within == "document",
        ),
        "num_workers": settings.num_workers,
        # Without its own generator a loader would draw from the global one.
        "generator": torch.Generator(),
    }
    if isinstance(dataset, Stream):
        dataset.seek(epoch, first_batch * settings.batch_size * plan.world_size)
        return iter(StreamingLoader(dataset, settings.batch_size, **options))
    order = BatchOrder(
        dataset,
        settings.batch_size,
        seed=settings.seed,
        epoch=epoch,
        first_batch=first_batch,
        rank=rank,
        world_size=plan.world_size,
        keep_all=True,
    )
    workers = worker_options(settings.num_workers)
    return iter(DataLoader(dataset, batch_sampler=order, **options, **workers))


def _collate(
    samples: Sequence[dict[str, Tensor]], *, padding: dict[str, Tensor], document_masking: bool
) -> dict[str, Tensor]:
    if isinstance(samples, list):
        # The last batch of a stream has padding on some ranks.
        samples = [sample for sample in samples if int(sample["window"]) != NO_WINDOW]
    return collate(samples or [padding], document_masking=document_masking)
