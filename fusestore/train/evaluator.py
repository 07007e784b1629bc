"""Evaluations during a run: bits per byte of held-out documents, or a function's metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fusestore.errors import FusestoreError, InvalidInputError
from fusestore.progress import Reporter
from fusestore.tokenizers.token_table import TokenTable
from fusestore.train.distributed.collectives import from_main_process
from fusestore.train.distributed.sharding import is_sharded, reshard
from fusestore.train.held_out import score
from fusestore.train.manifest import EvaluationPoint
from fusestore.train.process_state import StopSignals
from fusestore.train.settings import TrainSettings
from fusestore.train.student.student import Student

Evaluation = Callable[[Any], Mapping[str, float]] | TokenTable
"""A function from the model to metrics, or held-out documents to score in bits per byte."""

SCORE = "bits_per_byte"
"""The metric that decides which model is the best; lower is better."""


def best_evaluation(points: Sequence[EvaluationPoint]) -> EvaluationPoint | None:
    """The first evaluation with the fewest bits per byte; None without evaluations."""
    return min(points, key=lambda point: point.metrics[SCORE], default=None)


class Evaluator:
    """Evaluates in the main process while the others wait; in all of them if weights are sharded.

    Loss curve and weights are the same with and without evaluations.
    """

    def __init__(
        self,
        accelerator: Any,  # noqa: ANN401 - accelerate is untyped
        evaluation: Evaluation | None,
        settings: TrainSettings,
        stops: StopSignals,
        name: str,
        reporter: Reporter,
    ) -> None:
        """Take a run's evaluation; `name` is what the reporter calls the model.

        Raises:
            InvalidInputError: `settings.result` is `best` and there is no evaluation.
        """
        if evaluation is None and settings.result == "best":
            raise InvalidInputError(
                "result is 'best', but nothing is evaluated, so no model is the best. Give "
                "held-out text (`--evaluate CORPUS/SPLIT`, or evaluate_split in a fusion.toml), "
                "or set result to 'last'."
            )
        self._accelerator = accelerator
        self._evaluation = evaluation
        self._settings = settings
        self._stops = stops
        self._name = name
        self._reporter = reporter

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether the model is evaluated after `step` steps: first, at the end, and in between."""
        every = self._settings.eval_every
        return self._evaluation is not None and (
            step in (0, total_steps) or (every is not None and step % every == 0)
        )

    def run(self, step: int, student: Student) -> EvaluationPoint | None:
        """The metrics of a model, the same in every process; None if a signal stopped it.

        Raises:
            InvalidInputError: `settings.result` is `best` and the metrics lack bits per byte.
            FusestoreError: it failed in the main process, which raises the evaluation's own error.
        """
        metrics, failure = None, None
        if is_sharded(student):
            metrics = student.with_model(self._metrics)
            reshard(student)
        elif self._accelerator.is_main_process:
            # The other processes wait, so the evaluation may stop in the middle.
            try:
                with contextlib.suppress(KeyboardInterrupt), self._stops.at_once():
                    metrics = student.with_model(self._metrics)
            except Exception as error:
                # Raised after the other processes were informed.
                failure = error
        metrics, failed = from_main_process(self._accelerator, (metrics, failure is not None))
        if failure is not None:
            raise failure
        if failed:
            raise FusestoreError(
                f"The evaluation after step {step} failed; the main process reports why."
            )
        if metrics is None:
            return None
        if self._settings.result == "best" and SCORE not in metrics:
            raise InvalidInputError(
                f"result is 'best', which {SCORE} decides, but the evaluation gives "
                f"{sorted(metrics)}. Return {SCORE} too, or set result to 'last'."
            )
        return EvaluationPoint(step=step, metrics=metrics)

    def _metrics(self, model: Any) -> dict[str, float]:  # noqa: ANN401
        if isinstance(self._evaluation, TokenTable):
            precision = self._settings.precision
            return score(self._evaluation, precision, self._name, self._reporter, model)
        if self._evaluation is None:
            return {}
        model.eval()
        try:
            with torch.no_grad():
                metrics = self._evaluation(model)
        finally:
            model.train()
        return {name: float(value) for name, value in metrics.items()}
