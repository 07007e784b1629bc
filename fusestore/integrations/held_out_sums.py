"""The loss of a held-out dataset: a mean over its positions, not over its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fusestore.losses.objective import FusionObjective
from fusestore.losses.positions import count_positions
from fusestore.losses.row_losses import FusionTerms


class HeldOutSums:
    """Adds up both terms of the loss, and the positions that they are means over."""

    def __init__(self, sums: Tensor | None = None) -> None:
        """Begin with sums.

        Args:
            sums: float64 [4], both terms and their positions; by default zeros.
        """
        self._sums = torch.zeros(4, dtype=torch.float64) if sums is None else sums

    def add(self, terms: FusionTerms, batch: Mapping[str, Tensor]) -> None:
        """Add a batch.

        Args:
            terms: means over the positions of the batch.
            batch: from `fusestore.data.collate`.
        """
        counts = count_positions([batch])
        totals = torch.stack([terms.lm, terms.fused]).detach().double().cpu() * counts
        self._sums += torch.cat([totals, counts])

    def reduced(self, add_up: Callable[[Tensor], Tensor]) -> HeldOutSums:
        """The sums of all processes.

        Args:
            add_up: returns the sum of all processes' tensors, on the CPU.
        """
        return HeldOutSums(add_up(self._sums))

    def means(self, objective: FusionObjective) -> dict[str, float]:
        """`loss`, `lm` and, unless λ is 1, `fused`, in nats, over all batches.

        Args:
            objective: which the terms are of.
        """
        lm, fused = (self._sums[:2] / self._sums[2:].clamp(min=1.0)).tolist()
        if objective.lm_weight == 1.0:
            return {"loss": lm, "lm": lm}
        loss = objective.lm_weight * lm + (1.0 - objective.lm_weight) * fused
        return {"loss": loss, "lm": lm, "fused": fused}
