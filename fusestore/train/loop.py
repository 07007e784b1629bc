"""The training loop: plain PyTorch on accelerate, one optimizer step after the other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fusestore.corpus.tokens import TokenTable
from fusestore.data.collate import collate
from fusestore.data.mixture import Fused
from fusestore.data.order import BatchOrder, batches_per_epoch
from fusestore.train.checkpoint import TrainState, restore, save_checkpoint
from fusestore.train.evaluate import autocast, bits_per_byte
from fusestore.train.guards import SPIKE_HISTORY, check_spike, check_weights, not_finite
from fusestore.train.losses import FusionTerms
from fusestore.train.manifest import EvaluationPoint, LossPoint, TrainingPlan
from fusestore.train.optimizer import adamw
from fusestore.train.settings import learning_rate_at
from fusestore.train.student import Student
from fusestore.train.surroundings import stop_signals

Evaluation = Callable[[Any], Mapping[str, float]] | TokenTable
"""A function from the model to metrics, or held-out documents to score in bits per byte."""


class TrainingProgress(NamedTuple):
    """What the progress callback is told after every optimizer step.

    Attributes:
        step: steps done.
        total_steps: of the run.
        num_tokens: target tokens of this step, over all processes.
        point: the step's losses.
    """

    step: int
    total_steps: int
    num_tokens: int
    point: LossPoint


class TrainingLoop:
    """A student, its optimizer and its data, on their way to the last step."""

    def __init__(
        self,
        accelerator: Any,  # noqa: ANN401 - accelerate is untyped
        student: Student,
        dataset: Fused,
        plan: TrainingPlan,
        work_dir: Path,
        evaluation: Evaluation | None,
        progress: Callable[[TrainingProgress], None] | None,
    ) -> None:
        self.accelerator = accelerator
        self.plain_model = student.model
        self.dataset = dataset
        self.plan = plan
        self.settings = plan.settings
        self.work_dir = work_dir
        self.evaluation = evaluation
        self.progress = progress
        self.parameter_names, plain_optimizer = adamw(self.plain_model, self.settings)
        self.plain_optimizer = plain_optimizer
        self.student, self.optimizer = accelerator.prepare(student, plain_optimizer)
        self.kept_step: int | None = None

    def to_the_end(self, state: TrainState) -> TrainState:
        """Make all steps that are missing."""
        if state.step > 0:
            restore(self.work_dir, self.plain_model, self.plain_optimizer, self.parameter_names)
            self.kept_step = state.step
        total = self.plan.total_steps
        # Curves grow in lists and are frozen into the state when it is kept.
        points, evaluations = list(state.loss_curve), list(state.evaluations)
        num_tokens = state.num_tokens

        def frozen(step: int) -> TrainState:
            return state.model_copy(
                update={
                    "step": step,
                    "num_tokens": num_tokens,
                    "loss_curve": tuple(points),
                    "evaluations": tuple(evaluations),
                }
            )

        if state.step == 0 and self.evaluation is not None:
            evaluations.append(EvaluationPoint(step=0, metrics=self._evaluate()))
        with stop_signals() as stop_asked, contextlib.closing(self._steps(state.step)) as steps:
            for step in range(state.step + 1, total + 1):
                point, step_tokens = self._step(step, next(steps), points)
                points.append(point)
                num_tokens += step_tokens
                if self.progress is not None and self.accelerator.is_main_process:
                    self.progress(TrainingProgress(step, total, step_tokens, point))
                if self._evaluates_after(step):
                    evaluations.append(EvaluationPoint(step=step, metrics=self._evaluate()))
                stop = self._any_process(stop_asked())
                every = self.settings.checkpoint_every
                if step < total and (stop or (every is not None and step % every == 0)):
                    self._keep(frozen(step))
                if stop and step < total:
                    raise KeyboardInterrupt(
                        f"Stopped after step {step} of {total}; the same command goes on from "
                        f"the checkpoint in {self.work_dir}."
                    )
        check_weights(self.plain_model, total, self._kept)
        return frozen(total)

    def _steps(self, steps_done: int) -> Generator[list[dict[str, Tensor]], None, None]:
        """The batches of each optimizer step from `steps_done` on, epoch after epoch."""
        settings, world_size = self.settings, self.plan.world_size
        accumulation = settings.gradient_accumulation
        batches = batches_per_epoch(len(self.dataset), settings.batch_size, world_size)
        epoch, steps_into_epoch = divmod(steps_done, -(-batches // accumulation))
        while True:
            order = BatchOrder(
                self.dataset,
                settings.batch_size,
                seed=settings.seed,
                epoch=epoch,
                first_batch=steps_into_epoch * accumulation,
                rank=self.accelerator.process_index,
                world_size=world_size,
            )
            loader = DataLoader(
                self.dataset,
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

    def _step(
        self, step: int, batches: list[dict[str, Tensor]], points: Sequence[LossPoint]
    ) -> tuple[LossPoint, int]:
        """One optimizer step over the batches; returns its losses and its number of tokens.

        The guards have their say before the optimizer changes a weight.
        """
        windows = sorted({int(window) for batch in batches for window in batch["window"]})
        sums, grad_norm = self._backward(step, batches)
        totals = self._sum_over_processes(sums)
        loss, lm, fused = (float(value) / self.plan.world_size for value in totals[:3])
        earlier = [point.loss for point in points[-SPIKE_HISTORY:]]
        check_spike(
            step, loss, earlier, self.settings.loss_spike, windows, self.dataset, self._kept
        )
        learning_rate = learning_rate_at(self.settings, step - 1, self.plan.total_steps)
        for group in self.plain_optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        point = LossPoint(
            step=step,
            loss=loss,
            lm=lm,
            fused=fused if self.settings.fuses else None,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
        )
        return point, int(totals[3])

    def _backward(self, step: int, batches: list[dict[str, Tensor]]) -> tuple[Tensor, float]:
        """Gradients of this process's batches, clipped; loss, lm, fused and tokens; their norm."""
        sums = torch.zeros(4, dtype=torch.float64)
        for number, batch in enumerate(batches, 1):
            syncs = number == len(batches)
            with contextlib.nullcontext() if syncs else self.accelerator.no_sync(self.student):
                terms = self._forward(batch)
                values = torch.stack([terms.loss.detach(), terms.lm, terms.fused]).double().cpu()
                self._check_finite(float(values[0]), step, [batch])
                self.accelerator.backward(terms.loss / len(batches))
            sums[:3] += values / len(batches)
            sums[3] += int(batch["attention_mask"].sum())
        limit = self.settings.max_grad_norm
        # An endless limit scales nothing: the norm is wanted in any case, to see that it is one.
        norm = float(
            self.accelerator.clip_grad_norm_(
                self.student.parameters(), math.inf if limit is None else limit
            )
        )
        self._check_finite(norm, step, batches)
        return sums, norm

    def _forward(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        device = self.accelerator.device
        moved = {
            name: tensor.to(device)
            for name, tensor in batch.items()
            if self.settings.fuses or not name.startswith("fused_")
        }
        with autocast(device, self.settings.precision):
            terms: FusionTerms = self.student(moved)
        return terms

    def _check_finite(self, value: float, step: int, batches: list[dict[str, Tensor]]) -> None:
        if self._any_process(not math.isfinite(value)):
            windows = sorted({int(window) for batch in batches for window in batch["window"]})
            raise not_finite(value, step, windows, self.dataset, self._kept)

    @property
    def _kept(self) -> str:
        """What there is to go on from, for messages."""
        if self.kept_step is None:
            return "no checkpoint was kept yet (checkpoint_every says how often)"
        return f"the checkpoint of step {self.kept_step} is kept in {self.work_dir}"

    def _any_process(self, here: bool) -> bool:
        if self.plan.world_size == 1:
            return here
        flag = torch.tensor([float(here)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self.plan.world_size == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return total.cpu()

    def _evaluates_after(self, step: int) -> bool:
        every = self.settings.eval_every
        due = every is not None and step % every == 0
        return self.evaluation is not None and (due or step == self.plan.total_steps)

    def _evaluate(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self.accelerator.is_main_process:
            if isinstance(self.evaluation, TokenTable):
                held_out = bits_per_byte(
                    self.plain_model, self.evaluation, precision=self.settings.precision
                )
                metrics = {
                    "bits_per_byte": held_out.bits_per_byte,
                    "nats_per_token": held_out.nats_per_token,
                }
            elif self.evaluation is not None:
                self.plain_model.eval()
                with torch.no_grad():
                    found = self.evaluation(self.plain_model)
                self.plain_model.train()
                metrics = {name: float(value) for name, value in found.items()}
        self.accelerator.wait_for_everyone()
        return metrics

    def _keep(self, state: TrainState) -> None:
        check_weights(self.plain_model, state.step, self._kept)
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.work_dir, state, self.plain_model, self.plain_optimizer, self.parameter_names
            )
        self.kept_step = state.step
        self.accelerator.wait_for_everyone()
