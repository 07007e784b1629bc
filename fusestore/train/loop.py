"""The training loop: optimizer steps, evaluations, checkpoints, and stopping on a signal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fusestore.progress import Reporter
from fusestore.train.checkpoint import (
    TrainState,
    drop_best_except,
    load_best,
    restore_optimizer,
    save_best,
    save_checkpoint,
)
from fusestore.train.distributed.collectives import any_process, lost_processes
from fusestore.train.distributed.sharding import gather
from fusestore.train.evaluator import Evaluation, Evaluator, best_evaluation
from fusestore.train.guards import check_weights
from fusestore.train.logs import TensorBoardLog
from fusestore.train.manifest import EvaluationPoint, LossPoint, TrainingPlan
from fusestore.train.process_state import StopSignals
from fusestore.train.step_batches import Trainable, step_batches
from fusestore.train.student.model_folder import trained_weights
from fusestore.train.student.student import Student
from fusestore.train.updates import Updates


class TrainingProgress(NamedTuple):
    """What the progress callback receives after every optimizer step.

    Attributes:
        step: steps done.
        total_steps: of the run.
        num_tokens: target tokens of this step, over all processes.
        num_tokens_so_far: target tokens of all steps, including those before an interruption.
        point: the step's losses.
        evaluation: the last evaluation; None before the first.
    """

    step: int
    total_steps: int
    num_tokens: int
    num_tokens_so_far: int
    point: LossPoint
    evaluation: EvaluationPoint | None


class Trained(NamedTuple):
    """The result of a finished run; see `TrainingManifest`.

    Attributes:
        weights: of `result_step`, see `trained_weights`; in the main process only.
        result_step: the last step, or that of the best evaluation.
        num_tokens: target tokens of the run.
        loss_curve: of the run.
        evaluations: of the run.
    """

    weights: dict[str, Tensor]
    result_step: int
    num_tokens: int
    loss_curve: tuple[LossPoint, ...]
    evaluations: tuple[EvaluationPoint, ...]


class TrainingLoop:
    """Trains a student up to the last step of a plan, from its beginning or from a checkpoint.

    Its plan is divided for the processes that there are; a checkpoint keeps the plan with which the
    run began.
    """

    def __init__(
        self,
        accelerator: Any,  # noqa: ANN401 - accelerate is untyped
        student: Student,
        dataset: Trainable,
        plan: TrainingPlan,
        work_dir: Path,
        stops: StopSignals,
        evaluation: Evaluation | None,
        progress: Callable[[TrainingProgress], None] | None,
        log: TensorBoardLog | None,
        name: str,
        reporter: Reporter,
    ) -> None:
        self._accelerator = accelerator
        self._student = student
        self._dataset = dataset
        self._plan = self._begun_plan = plan
        self._work_dir = work_dir
        self._stops = stops
        self._progress = progress
        self._log = log
        self._evaluator = Evaluator(accelerator, evaluation, plan.settings, stops, name, reporter)
        self._updates = Updates(accelerator, student, dataset, plan)
        self._kept: TrainState | None = None
        self._step = 0
        self._num_tokens = 0
        self._points: list[LossPoint] = []
        self._evaluations: list[EvaluationPoint] = []

    def run(self, state: TrainState) -> Trained:
        """Make all steps and evaluations that are missing; the student has the state's weights.

        Raises:
            KeyboardInterrupt: a signal came. A checkpoint was written, if a step was made.
            LostRankError: another process ended, or does not answer.
        """
        with lost_processes(self._accelerator, self._after_a_loss):
            return self._run(state)

    def _run(self, state: TrainState) -> Trained:
        self._restore(state)
        rank = self._accelerator.process_index
        batches = step_batches(self._dataset, self._plan, rank, self._step)
        with contextlib.closing(batches):
            while True:
                if self._evaluation_is_missing and not self._stop_is_requested:
                    self._evaluate()
                complete = self._step == self._plan.total_steps and not self._evaluation_is_missing
                stop = self._stop_is_requested and not complete
                if stop or self._checkpoint_is_due:
                    self._save()
                if stop:
                    raise KeyboardInterrupt(
                        f"Stopped after step {self._step} of {self._plan.total_steps}; "
                        f"{self._kept_in_words}. The same command resumes the run."
                    )
                if complete:
                    return self._result()
                self._make_step(next(batches))

    def _restore(self, state: TrainState) -> None:
        self._begun_plan = state.plan
        self._step, self._num_tokens = state.step, state.num_tokens
        # Curves grow in lists, and are copied into a TrainState when a checkpoint is written.
        self._points, self._evaluations = list(state.loss_curve), list(state.evaluations)
        if state.step > 0:
            restore_optimizer(self._accelerator, self._work_dir, self._updates.engine)
            self._kept = state
            best = self._best_step
            if best < self._step and self._accelerator.is_main_process:
                # A missing file is reported now, not after all the work.
                load_best(self._work_dir, best)

    def _make_step(self, batches: list[dict[str, Tensor]]) -> None:
        self._step += 1
        point, num_tokens = self._updates.step(
            self._step, batches, self._points, self._kept_in_words
        )
        self._points.append(point)
        self._num_tokens += num_tokens
        if self._log is not None:
            self._log.step(point, num_tokens)
        if self._progress is not None and self._accelerator.is_main_process:
            self._progress(
                TrainingProgress(
                    self._step,
                    self._plan.total_steps,
                    num_tokens,
                    self._num_tokens,
                    point,
                    self._evaluations[-1] if self._evaluations else None,
                )
            )

    @property
    def _stop_is_requested(self) -> bool:
        return any_process(self._accelerator, self._stops.requested)

    @property
    def _evaluation_is_missing(self) -> bool:
        if self._evaluations and self._evaluations[-1].step == self._step:
            return False
        return self._evaluator.is_due(self._step, self._plan.total_steps)

    def _evaluate(self) -> None:
        point = self._evaluator.run(self._step, self._student)
        if point is None:
            return
        self._evaluations.append(point)
        if self._log is not None:
            self._log.evaluation(point)
        keeps_best = self._plan.settings.result == "best" and self._step < self._plan.total_steps
        if keeps_best and best_evaluation(self._evaluations) == point:
            weights = self._gathered_weights()
            if self._accelerator.is_main_process:
                save_best(self._work_dir, self._step, weights)
                self._drop_other_bests()

    @property
    def _checkpoint_is_due(self) -> bool:
        every, step = self._plan.settings.checkpoint_every, self._step
        return every is not None and (step % every == 0 or step == self._plan.total_steps)

    def _save(self) -> None:
        """Write a checkpoint, unless no step was made or nothing changed since the last."""
        state = TrainState(
            plan=self._begun_plan,
            step=self._step,
            num_tokens=self._num_tokens,
            loss_curve=tuple(self._points),
            evaluations=tuple(self._evaluations),
        )
        if self._step == 0 or state == self._kept:
            return
        weights = self._gathered_weights()
        optimizer_state = self._updates.engine.optimizer_state()
        if self._accelerator.is_main_process:
            save_checkpoint(self._work_dir, state, weights, optimizer_state)
        self._kept = state
        if self._accelerator.is_main_process:
            self._drop_other_bests()
        self._accelerator.wait_for_everyone()

    def _drop_other_bests(self) -> None:
        """Keep the best weights so far, and those of the checkpoint, which a resumed run needs."""
        if self._plan.settings.result != "best":
            return
        kept = () if self._kept is None else self._kept.evaluations
        bests = [best_evaluation(points) for points in (self._evaluations, kept)]
        drop_best_except(self._work_dir, {point.step for point in bests if point is not None})

    def _gathered_weights(self) -> dict[str, Tensor]:
        """The checked weights, gathered in the main process; every process must call this."""
        weights = {}
        for name, value in trained_weights(self._student.model).items():
            gathered = gather(value)
            check_weights(name, gathered, self._step, self._kept_in_words)
            if self._accelerator.is_main_process:
                weights[name] = gathered
        return weights

    def _result(self) -> Trained:
        weights, step = self._gathered_weights(), self._best_step
        if step < self._step and self._accelerator.is_main_process:
            weights = load_best(self._work_dir, step)
        return Trained(
            weights, step, self._num_tokens, tuple(self._points), tuple(self._evaluations)
        )

    @property
    def _best_step(self) -> int:
        """The step of the weights to publish if the run ended now."""
        best = None
        if self._plan.settings.result == "best":
            best = best_evaluation(self._evaluations)
        return self._step if best is None else best.step

    def _after_a_loss(self) -> str:
        kept = self._kept_in_words
        return f"{kept[0].upper()}{kept[1:]}. Start all processes again by the same command."

    @property
    def _kept_in_words(self) -> str:
        """Which checkpoint there is, for messages."""
        if self._kept is None:
            return "no checkpoint was kept yet (checkpoint_every sets how often)"
        return f"the checkpoint of step {self._kept.step} is kept in {self._work_dir}"
