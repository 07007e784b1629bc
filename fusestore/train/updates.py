"""Optimizer steps: loss, gradients, the guards' say, and then the update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusestore.data.mixture import Fused
from fusestore.train.evaluate import autocast
from fusestore.train.guards import SPIKE_HISTORY, check_spike, not_finite
from fusestore.train.losses import FusionTerms
from fusestore.train.manifest import LossPoint, TrainingPlan
from fusestore.train.optimizer import adamw
from fusestore.train.processes import any_process, sum_over_processes
from fusestore.train.schedules import learning_rate_at, lm_weight_at
from fusestore.train.sharding import run_like_forward
from fusestore.train.student import Student


class _Gradients(NamedTuple):
    """What the backward passes of a step leave besides the gradients themselves.

    Attributes:
        sums: loss, lm, fused (means over this process's batches) and tokens, float64 [4].
        norm: of the gradient over all processes, before clipping.
    """

    sums: Tensor
    norm: float


class Updates:
    """A student and its optimizer, prepared by accelerate.

    Attributes:
        optimizer: the plain one, whose states checkpoints keep.
        parameter_names: of its parameters, in its order.
    """

    def __init__(
        self,
        accelerator: Any,  # noqa: ANN401 - accelerate is untyped
        student: Student,
        dataset: Fused,
        plan: TrainingPlan,
    ) -> None:
        self.parameter_names, self.optimizer = adamw(student.model, plan.settings)
        self._accelerator = accelerator
        self._plain_student = student
        self._student, self._prepared_optimizer = accelerator.prepare(student, self.optimizer)
        run_like_forward(student, "with_model")
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
            batches: this process's share of it.
            points: of the steps before.
            kept: what there is to go on from, for messages.

        Returns:
            Its losses, and its target tokens over all processes.

        Raises:
            NonFiniteError: the loss or its gradient is not a number in some process.
            DivergedError: the loss rose by more than `settings.loss_spike`.
        """
        total_steps = self._plan.total_steps
        lm_weight = lm_weight_at(self._settings, step - 1, total_steps)
        self._plain_student.objective = self._settings.fusion_objective(lm_weight)
        gradients = self._backward(step, batches, kept)
        totals = sum_over_processes(self._accelerator, gradients.sums)
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
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._prepared_optimizer.step()
        self._prepared_optimizer.zero_grad(set_to_none=True)
        point = LossPoint(
            step=step,
            loss=loss,
            lm=lm,
            fused=fused if lm_weight < 1.0 else None,
            lm_weight=lm_weight,
            learning_rate=learning_rate,
            grad_norm=gradients.norm,
        )
        return point, int(totals[3])

    def _backward(self, step: int, batches: list[dict[str, Tensor]], kept: str) -> _Gradients:
        """Gradients of this process's batches, averaged over processes and clipped."""
        sums = torch.zeros(4, dtype=torch.float64)
        for number, batch in enumerate(batches, 1):
            syncs = number == len(batches)
            with contextlib.nullcontext() if syncs else self._accelerator.no_sync(self._student):
                terms = self._forward(batch)
                values = torch.stack([terms.loss.detach(), terms.lm, terms.fused]).double().cpu()
                self._check_finite(float(values[0]), step, [batch], kept)
                self._accelerator.backward(terms.loss / len(batches))
            sums[:3] += values / len(batches)
            sums[3] += int(batch["attention_mask"].sum())
        limit = self._settings.max_grad_norm
        # An endless limit scales nothing: the norm is wanted in any case, to see that it is one.
        norm = float(
            self._accelerator.clip_grad_norm_(
                self._student.parameters(), math.inf if limit is None else limit
            )
        )
        self._check_finite(norm, step, batches, kept)
        return _Gradients(sums, norm)

    def _forward(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        device = self._accelerator.device
        moved = {
            name: tensor.to(device)
            for name, tensor in batch.items()
            if self._settings.fuses or not name.startswith("fused_")
        }
        with autocast(device, self._settings.precision):
            terms: FusionTerms = self._student(moved)
        return terms

    def _check_finite(
        self, value: float, step: int, batches: list[dict[str, Tensor]], kept: str
    ) -> None:
        if any_process(self._accelerator, not math.isfinite(value)):
            raise not_finite(value, step, _windows(batches), self._dataset, kept)


def _windows(batches: list[dict[str, Tensor]]) -> list[int]:
    return sorted({int(window) for batch in batches for window in batch["window"]})
