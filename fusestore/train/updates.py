"""One optimizer step: loss, gradients, the guards, and then the update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusestore.data.windows import NO_WINDOW
from fusestore.errors import CorruptionError
from fusestore.losses.positions import count_positions
from fusestore.train.distributed.collectives import any_process, sum_over_processes
from fusestore.train.distributed.engine import make_engine
from fusestore.train.guards import SPIKE_HISTORY, check_rows, check_spike, not_finite
from fusestore.train.manifest import LossPoint, TrainingPlan
from fusestore.train.optimizer import learning_rate_at, lm_weight_at
from fusestore.train.process_state import seed_step
from fusestore.train.step_batches import Trainable
from fusestore.train.student.student import Student


class Updates:
    """Makes the optimizer steps of a student, in the engine of accelerate's configuration.

    Attributes:
        engine: holds the optimizer.
    """

    def __init__(
        self,
        accelerator: Any,  # noqa: ANN401 - accelerate is untyped
        student: Student,
        dataset: Trainable,
        plan: TrainingPlan,
    ) -> None:
        self.engine = make_engine(accelerator, student, plan.settings)
        self._accelerator = accelerator
        self._student = student
        self._dataset = dataset
        self._plan = plan
        self._settings = plan.settings

    def step(
        self,
        step: int,
        batches: list[dict[str, Tensor]],
        points: Sequence[LossPoint],
        kept: str,
    ) -> tuple[LossPoint, int]:
        """Make one optimizer step.

        Args:
            step: from 1.
            batches: this process's share of the step.
            points: of the steps before.
            kept: which checkpoint there is, for messages.

        Returns:
            The losses of the step, and its target tokens over all processes.

        Raises:
            CorruptionError: a row of a batch is no distribution.
            NonFiniteError: the loss or its gradient is not a number in some process.
            DivergedError: the loss rose by more than `settings.loss_spike`.
        """
        self._check_rows(step, batches, kept)
        seed_step(self._settings.seed, step, self._accelerator.process_index)
        total_steps = self._plan.total_steps
        lm_weight = lm_weight_at(self._settings, step - 1, total_steps)
        self._student.objective = self._settings.fusion_objective(lm_weight)
        counts = sum_over_processes(self._accelerator, count_positions(batches))
        # The mean of the processes' counts, because the engine averages their gradients.
        self._student.num_positions = counts / self._plan.world_size
        totals = sum_over_processes(self._accelerator, self._backward(step, batches, kept))
        loss, lm, fused = (float(value) / self._plan.world_size for value in totals[:3])
        check_spike(
            step,
            loss,
            [point.loss for point in points[-SPIKE_HISTORY:]],
            self._settings.loss_spike,
            _windows(batches),
            self._dataset,
            kept,
        )
        learning_rate = learning_rate_at(self._settings, step - 1, total_steps)
        norm = self.engine.step(
            learning_rate, lambda norm: self._check_finite(norm, step, batches, kept)
        )
        point = LossPoint(
            step=step,
            loss=loss,
            lm=lm,
            fused=fused if lm_weight < 1.0 else None,
            lm_weight=lm_weight,
            learning_rate=learning_rate,
            grad_norm=norm,
        )
        return point, int(totals[3])

    def _backward(self, step: int, batches: list[dict[str, Tensor]], kept: str) -> Tensor:
        """Accumulate the gradients of this process's batches.

        Returns:
            Loss, lm, fused and tokens, float64 [4]. The mean of the first three over all processes
            is the mean over the positions of the step.
        """
        sums = torch.zeros(4, dtype=torch.float64)
        for number, batch in enumerate(batches, 1):
            with self.engine.micro_batch(last=number == len(batches)):
                terms = self.engine.forward(self._moved(batch))
                values = torch.stack([terms.loss.detach(), terms.lm, terms.fused]).double().cpu()
                self._check_finite(float(values[0]), step, [batch], kept)
                self.engine.backward(terms.loss)
            sums[:3] += values
            sums[3] += int(batch["attention_mask"][batch["window"] != NO_WINDOW].sum())
        return sums

    def _moved(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = self._accelerator.device
        return {
            name: tensor.to(device)
            for name, tensor in batch.items()
            if self._settings.fuses or not name.startswith("fused_")
        }

    def _check_rows(self, step: int, batches: list[dict[str, Tensor]], kept: str) -> None:
        """Check what is trained on before the model sees it: every process ends, one says why."""
        if not self._settings.fuses:
            return
        problems = (check_rows(batch, self._dataset) for batch in batches)
        problem = next((each for each in problems if each is not None), None)
        if any_process(self._accelerator, problem is not None):
            raise problem or CorruptionError(
                f"Step {step}: another process has read a row that is no distribution, and names "
                f"it. No weights were changed by this step; {kept}."
            )

    def _check_finite(
        self, value: float, step: int, batches: list[dict[str, Tensor]], kept: str
    ) -> None:
        if any_process(self._accelerator, not math.isfinite(value)):
            raise not_finite(value, step, _windows(batches), self._dataset, kept)


def _windows(batches: list[dict[str, Tensor]]) -> list[int]:
    windows = {int(window) for batch in batches for window in batch["window"]}
    return sorted(windows - {NO_WINDOW})
