"""The loss and gradient of an optimizer step in a loop with accelerate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fusestore.data.collation import model_inputs
from fusestore.errors import InvalidInputError
from fusestore.losses.logit_loss import fusion_terms
from fusestore.losses.objective import FusionObjective
from fusestore.losses.positions import count_positions
from fusestore.train.distributed.collectives import sum_over_processes


def fusion_backward(
    accelerator: Any,  # noqa: ANN401 - accelerate is untyped
    model: Any,  # noqa: ANN401
    batches: Sequence[Mapping[str, Tensor]],
    objective: FusionObjective | None = None,
) -> float:
    """Accumulate the gradients of one optimizer step, and return its loss in nats.

    Loss and gradient are means over the positions of all batches in all processes, so they are
    those of one large batch. Gradients are synchronized once, with the last batch. Every process
    must call this with the same number of batches. It takes the place of `accelerator.accumulate`
    and `accelerator.backward`.

    ```python
    for batch in loader:  # fs.data.WindowLoader or fs.data.StreamingLoader
        loss = fusion_backward(accelerator, model, [batch])
        optimizer.step()
        optimizer.zero_grad()
    ```

    Args:
        accelerator: `accelerate.Accelerator`.
        model: the causal language model, from `accelerator.prepare`.
        batches: of the step, from `fusestore.data.collate`, on any device.
        objective: what is minimized; by default `FusionObjective()`.

    Raises:
        InvalidInputError: no batches, or an accelerator that accumulates by itself.
        IncompatibleError: a batch does not fit the model or the objective.
    """
    if not batches:
        raise InvalidInputError("An optimizer step needs at least one batch.")
    if accelerator.gradient_accumulation_steps != 1:
        raise InvalidInputError(
            f"The accelerator has gradient_accumulation_steps="
            f"{accelerator.gradient_accumulation_steps}, by which it would divide the loss. Make "
            "it without, and give fusion_backward all batches of a step."
        )
    objective = FusionObjective() if objective is None else objective
    counts = sum_over_processes(accelerator, count_positions(batches))
    # The mean of the processes' counts, because their gradients are averaged.
    counts /= accelerator.num_processes
    total = torch.zeros(1, dtype=torch.float64)
    for number, batch in enumerate(batches, 1):
        moved = {name: values.to(accelerator.device) for name, values in batch.items()}
        last = number == len(batches)
        with nullcontext() if last else accelerator.no_sync(model):
            logits = model(**model_inputs(moved)).logits
            loss = fusion_terms(logits, moved, objective, num_positions=counts).loss
            accelerator.backward(loss)
        total += loss.detach().double().cpu()
    return float(sum_over_processes(accelerator, total)) / float(accelerator.num_processes)
