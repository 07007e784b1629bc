"""The training loop: one optimizer step after the other, evaluated, kept, and stopped in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fusestore.progress import Reporter
from fusestore.train.checkpoint import (
    TrainState,
    drop_best_but,
    load_best,
    restore_moments,
    save_best,
    save_checkpoint,
)
from fusestore.train.distributed.processes import any_process
from fusestore.train.distributed.sharding import whole
from fusestore.train.evaluation import Evaluation, Evaluator, best_evaluation
from fusestore.train.guards import check_weights
from fusestore.train.logs import TensorBoardLog
from fusestore.train.manifest import EvaluationPoint, LossPoint, TrainingPlan
from fusestore.train.step_batches import Trainable, step_batches
from fusestore.train.student import Student
from fusestore.train.surroundings import StopSignals
from fusestore.train.trained_weights import trained_weights
from fusestore.train.updates import Updates


class TrainingProgress(NamedTuple):
    """What the progress callback is told after every optimizer step.

    Attributes:
        step: steps done.
        total_steps: of the run.
        num_tokens: target tokens of this step, over all processes.
        num_tokens_so_far: of all steps done, those before an interruption too.
        point: the step's losses.
        evaluation: the last one.
    """

    step: int
    total_steps: int
    num_tokens: int
    num_tokens_so_far: int
    point: LossPoint
    evaluation: EvaluationPoint | None


class Trained(NamedTuple):
    """What a finished run publishes; see `TrainingManifest`.

    Attributes:
        weights: of `result_step`, as `fusestore.train.trained_weights` gives them; only in the
            main process.
        result_step: the last, or that of the best evaluation.
        num_tokens: of the run.
        loss_curve: likewise.
        evaluations: likewise.
    """

    weights: dict[str, Tensor]
    result_step: int
    num_tokens: int
    loss_curve: tuple[LossPoint, ...]
    evaluations: tuple[EvaluationPoint, ...]


class TrainingLoop:
    """A student, its optimizer and its data, on their way to the last step."""

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
        self._plan = plan
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

    def to_the_end(self, state: TrainState) -> Trained:
        """Make all steps and evaluations that are missing; the student has the state's weights.

        Raises:
            KeyboardInterrupt: a signal came; a checkpoint is kept, once a step is made.
        """
        self._go_on_from(state)
        rank = self._accelerator.process_index
        batches = step_batches(self._dataset, self._plan, rank, self._step)
        with contextlib.closing(batches):
            while True:
                if self._evaluation_is_missing and not self._stop_is_asked:
                    self._evaluate()
                complete = self._step == self._plan.total_steps and not self._evaluation_is_missing
                stop = self._stop_is_asked and not complete
                if stop or self._checkpoint_is_due:
                    self._keep()
                if stop:
                    raise KeyboardInterrupt(
                        f"Stopped after step {self._step} of {self._plan.total_steps}; "
                        f"{self._kept_in_words}. The same command goes on."
                    )
                if complete:
                    return self._result()
                self._make_step(next(batches))

    def _go_on_from(self, state: TrainState) -> None:
        self._step, self._num_tokens = state.step, state.num_tokens
        # Curves grow in lists and are frozen into a state when it is kept.
        self._points, self._evaluations = list(state.loss_curve), list(state.evaluations)
        if state.step > 0:
            restore_moments(self._work_dir, self._updates.engine)
            self._kept = state
            best = self._best_step
            if best < self._step and self._accelerator.is_main_process:
                # Missed now rather than when all the work is done.
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
    def _stop_is_asked(self) -> bool:
        return any_process(self._accelerator, self._stops.asked)

    @property
    def _evaluation_is_missing(self) -> bool:
        there = bool(self._evaluations) and self._evaluations[-1].step == self._step
        return not there and self._evaluator.is_due(self._step, self._plan.total_steps)

    def _evaluate(self) -> None:
        point = self._evaluator.run(self._step, self._student)
        if point is None:
            return
        self._evaluations.append(point)
        if self._log is not None:
            self._log.evaluation(point)
        wanted = self._plan.settings.result == "best" and self._step < self._plan.total_steps
        if wanted and best_evaluation(self._evaluations) == point:
            weights = self._sound_weights()
            if self._accelerator.is_main_process:
                save_best(self._work_dir, self._step, weights)
                self._drop_other_bests()

    @property
    def _checkpoint_is_due(self) -> bool:
        every, step = self._plan.settings.checkpoint_every, self._step
        return every is not None and (step % every == 0 or step == self._plan.total_steps)

    def _keep(self) -> None:
        """Write a checkpoint, unless there is nothing to keep, or nothing new."""
        state = TrainState(
            plan=self._plan,
            step=self._step,
            num_tokens=self._num_tokens,
            loss_curve=tuple(self._points),
            evaluations=tuple(self._evaluations),
        )
        if self._step == 0 or state == self._kept:
            return
        weights = self._sound_weights()
        moments = self._updates.engine.moments()
        if self._accelerator.is_main_process:
            save_checkpoint(self._work_dir, state, weights, moments)
        self._kept = state
        if self._accelerator.is_main_process:
            self._drop_other_bests()
        self._accelerator.wait_for_everyone()

    def _drop_other_bests(self) -> None:
        """Leave the best weights so far, and those of the checkpoint, which may be gone on from."""
        if self._plan.settings.result != "best":
            return
        kept = () if self._kept is None else self._kept.evaluations
        bests = [best_evaluation(points) for points in (self._evaluations, kept)]
        drop_best_but(self._work_dir, {point.step for point in bests if point is not None})

    def _sound_weights(self) -> dict[str, Tensor]:
        """Whole weights, in the main process; all must ask."""
        weights = {}
        for name, value in trained_weights(self._student.model).items():
            entire = whole(value)
            check_weights(name, entire, self._step, self._kept_in_words)
            if self._accelerator.is_main_process:
                weights[name] = entire
        return weights

    def _result(self) -> Trained:
        weights, step = self._sound_weights(), self._best_step
        if step < self._step and self._accelerator.is_main_process:
            weights = load_best(self._work_dir, step)
        return Trained(
            weights, step, self._num_tokens, tuple(self._points), tuple(self._evaluations)
        )

    @property
    def _best_step(self) -> int:
        """Of the weights to publish if the run ended here: this one, or the best before."""
        best = None
        if self._plan.settings.result == "best":
            best = best_evaluation(self._evaluations)
        return self._step if best is None else best.step

    @property
    def _kept_in_words(self) -> str:
        """What there is to go on from, for messages."""
        if self._kept is None:
            return "no checkpoint was kept yet (checkpoint_every says how often)"
        return f"the checkpoint of step {self._kept.step} is kept in {self._work_dir}"
