"""Backward passes and updates under accelerate: one process, data parallel, or FSDP2."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from fusestore.losses.row_losses import FusionTerms
from fusestore.train.distributed.deepspeed_engine import DeepSpeedEngine
from fusestore.train.distributed.sharding import gather, run_like_forward, shard_like
from fusestore.train.optimizer import adamw
from fusestore.train.settings import TrainSettings
from fusestore.train.student.student import Student


class Engine(Protocol):
    """A student and its AdamW on the processes of a run. Every process makes the same calls."""

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """The context of one forward and backward pass; `last`: an optimizer step follows."""
        ...

    def forward(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        """See `Student.forward`."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, averaged over processes, to the gradients accumulated so far."""
        ...

    def step(self, learning_rate: float, check_norm: Callable[[float], None]) -> float:
        """Clip the gradients, update the weights, and reset the gradients.

        Args:
            learning_rate: of the step.
            check_norm: receives the norm of the gradient over all processes, and may raise. Where
                the norm is not finite, no weight has been changed.

        Returns:
            The norm before clipping.
        """
        ...

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's state as `<name>/<parameter>`, gathered; only after the first step."""
        ...

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `optimizer_state` returned.

        Raises:
            KeyError, RuntimeError: tensors are missing, or of another shape.
        """
        ...


def make_engine(
    accelerator: Any,  # noqa: ANN401 - accelerate is untyped
    student: Student,
    settings: TrainSettings,
) -> Engine:
    """The engine of the launcher's configuration."""
    from accelerate import DistributedType

    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return DeepSpeedEngine(accelerator, student, settings)
    return PlainEngine(accelerator, student, settings)


class PlainEngine:
    """torch's own AdamW, over whole weights or FSDP2's shards."""

    def __init__(
        self,
        accelerator: Any,  # noqa: ANN401
        student: Student,
        settings: TrainSettings,
    ) -> None:
        self._accelerator = accelerator
        self._parameter_names, self._optimizer = adamw(student.model, settings)
        self._student, self._prepared_optimizer = accelerator.prepare(student, self._optimizer)
        run_like_forward(student, "with_model")
        # The norm is computed in any case, to check that it is finite; infinity clips nothing.
        self._max_norm = settings.max_grad_norm or math.inf

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """See `Engine`."""
        context: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if last else self._accelerator.no_sync(self._student)
        )
        return context

    def forward(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        """See `Engine`."""
        terms: FusionTerms = self._student(batch)
        return terms

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        self._accelerator.backward(loss)

    def step(self, learning_rate: float, check_norm: Callable[[float], None]) -> float:
        """See `Engine`."""
        parameters = self._student.parameters()
        norm = float(self._accelerator.clip_grad_norm_(parameters, self._max_norm))
        check_norm(norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._prepared_optimizer.step()
        self._prepared_optimizer.zero_grad(set_to_none=True)
        return norm

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return {
            f"{name}/{self._parameter_names[index]}": gather(value)
            for index, entry in self._optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        content: dict[str, Any] = self._optimizer.state_dict()
        parameters = [value for group in self._optimizer.param_groups for value in group["params"]]
        content["state"] = {
            index: {
                "step": tensors[f"step/{name}"],
                "exp_avg": shard_like(tensors[f"exp_avg/{name}"], value),
                "exp_avg_sq": shard_like(tensors[f"exp_avg_sq/{name}"], value),
            }
            for index, (name, value) in enumerate(
                zip(self._parameter_names, parameters, strict=True)
            )
        }
        self._optimizer.load_state_dict(content)
