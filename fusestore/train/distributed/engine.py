"""How gradients are made and applied under accelerate: one process, data parallel, or FSDP2."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from fusestore.losses.logit_loss import FusionTerms
from fusestore.train.distributed.deepspeed_engine import DeepSpeedEngine
from fusestore.train.distributed.sharding import pieces_like, run_like_forward, whole
from fusestore.train.optimizer import adamw
from fusestore.train.settings import TrainSettings
from fusestore.train.student import Student


class Engine(Protocol):
    """A student and its AdamW, spread over the processes of a run. All processes call alike."""

    def pass_of(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """What surrounds a forward and its backward pass; `last` is the one before a step."""
        ...

    def forward(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        """See `Student.forward`."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, averaged over the processes, to those of the passes before."""
        ...

    def step(self, learning_rate: float, check_norm: Callable[[float], None]) -> float:
        """Clip the gradients, change the weights, and forget the gradients.

        Args:
            learning_rate: of the step.
            check_norm: hears the gradient's norm over all processes; where that is no number,
                no weight has been changed, and it may raise.

        Returns:
            The norm before clipping.
        """
        ...

    def moments(self) -> dict[str, Tensor]:
        """AdamW's states as `<moment>/<parameter>`, whole; after the first step."""
        ...

    def put_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `moments` gives.

        Raises:
            KeyError, RuntimeError: some are missing, or of another shape.
        """
        ...


def make_engine(
    accelerator: Any,  # noqa: ANN401 - accelerate is untyped
    student: Student,
    settings: TrainSettings,
) -> Engine:
    """The engine that the launcher's configuration asks for."""
    from accelerate import DistributedType

    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return DeepSpeedEngine(accelerator, student, settings)
    return PlainEngine(accelerator, student, settings)


class PlainEngine:
    """torch's own AdamW, over whole weights or FSDP2's pieces."""

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
        # An endless limit scales nothing: the norm is wanted in any case, to see that it is one.
        self._max_norm = math.inf if settings.max_grad_norm is None else settings.max_grad_norm

    def pass_of(self, last: bool) -> contextlib.AbstractContextManager[Any]:
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

    def moments(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return {
            f"{moment}/{self._parameter_names[index]}": whole(value)
            for index, entry in self._optimizer.state_dict()["state"].items()
            for moment, value in entry.items()
        }

    def put_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        content: dict[str, Any] = self._optimizer.state_dict()
        parameters = [value for group in self._optimizer.param_groups for value in group["params"]]
        content["state"] = {
            index: {
                "step": tensors[f"step/{name}"],
                "exp_avg": pieces_like(tensors[f"exp_avg/{name}"], value),
                "exp_avg_sq": pieces_like(tensors[f"exp_avg_sq/{name}"], value),
            }
            for index, (name, value) in enumerate(
                zip(self._parameter_names, parameters, strict=True)
            )
        }
        self._optimizer.load_state_dict(content)
