"""How many positions the means of the loss are taken over.

A step that is divided into batches, over accumulation and ranks, has the loss and gradient of one
large batch only if every batch divides its sums by the positions of the whole step. A mean of the
batches' means would weight the positions of short windows more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fusestore.cache.rows import NO_LABEL
from fusestore.errors import InvalidInputError
from fusestore.losses.sparse_target import distilled_positions


def count_positions(batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """The positions that each term of the loss averages over, in all batches: float64 [2], CPU.

    The first number counts positions with a label, the second those of them with a fused
    distribution. Count the batches of an optimizer step, add up the counts of all ranks, and give
    the result to the loss of each batch as `num_positions`; then add up the losses, without
    dividing by the number of batches. Where gradients are averaged over ranks, as in
    DistributedDataParallel, FSDP and DeepSpeed, give the mean of the ranks' counts instead of their
    sum: `accelerator.reduce(counts, "mean")`.

    Args:
        batches: from `fusestore.data.collate`; batches without `fused_mask` have no fused
            distributions.
    """
    counts = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        labeled = batch["next_ids"].reshape(-1) != NO_LABEL
        counts[0] += labeled.sum().cpu()
        if "fused_mask" in batch:
            counts[1] += distilled_positions(batch, labeled).sum().cpu()
    return counts


def check_num_positions(num_positions: Tensor) -> None:
    """Check the shape of what `count_positions` returned.

    Raises:
        InvalidInputError: it is another tensor.
    """
    if num_positions.shape != (2,):
        raise InvalidInputError(
            f"num_positions has shape {tuple(num_positions.shape)}; expected [2], the positions "
            "with a label and those with a fused distribution. Use fusestore.losses."
            "count_positions."
        )
