"""What stops a training run before it does harm: data that does not fit, NaN, a loss that rises."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusestore.errors import DivergedError, IncompatibleError, NonFiniteError
from fusestore.models.loading import output_width
from fusestore.train.step_batches import Trainable

SPIKE_HISTORY = 20
"""Steps whose median loss the next one is held against."""


def check_vocabulary(
    model: Any,  # noqa: ANN401 - transformers is untyped
    dataset: Trainable,
    model_path: Path,
) -> None:
    """See, before the first step, that the model has every token id of the dataset.

    Raises:
        IncompatibleError: it does not.
    """
    width = output_width(model)
    if dataset.vocab_size <= width:
        return
    largest = dataset.largest_token_id()
    if largest >= width:
        raise IncompatibleError(
            f"Fused dataset {dataset.name} has token id {largest}, but the model in "
            f"{model_path} has {width} ids: they do not belong together. Train the target that "
            "the dataset was fused for."
        )


def check_tokenizer(digest: str, dataset: Trainable, model: str) -> None:
    """See that the model's tokenizer is the one whose ids the dataset holds.

    Args:
        digest: of the model's tokenizer.
        dataset: what is trained on.
        model: its name, for the message.

    Raises:
        IncompatibleError: it is another one, even if all ids would fit.
    """
    expected = dataset.target
    if digest != expected:
        raise IncompatibleError(
            f"Fused dataset {dataset.name} holds tokens of the tokenizer with digest "
            f"{expected[:16]}, but that of {model} has digest {digest[:16]}: the same ids would "
            f"stand for other text. Train the target that the dataset was fused for, or fuse for "
            f"{model}."
        )


def not_finite(
    value: float, step: int, windows: Sequence[int], dataset: Trainable, kept: str
) -> NonFiniteError:
    """The error to raise when some process met a loss or gradient that is not a number.

    Args:
        value: the loss or the gradient's norm in this process.
        step: of the run, from 1.
        windows: what it was computed on.
        dataset: they are windows of.
        kept: what there is to go on from.
    """
    if math.isfinite(value):
        return NonFiniteError(
            f"Step {step}: the loss or its gradient is not a number in another process, which "
            f"names the documents. No weights were changed by this step; {kept}."
        )
    return NonFiniteError(
        f"Step {step}: the loss or its gradient is {value} for {dataset.describe(windows)}. "
        f"No weights were changed by this step; {kept}. Lower the learning rate, use precision "
        "'float32', or look at these documents' distributions with `fusestore inspect`."
    )


def check_spike(
    step: int,
    loss: float,
    earlier: Sequence[float],
    limit: float | None,
    windows: Sequence[int],
    dataset: Trainable,
    kept: str,
) -> None:
    """See that a step's loss is in keeping with the steps before it.

    Args:
        step: of the run, from 1.
        loss: of the step, in nats, over all processes.
        earlier: the losses of the last steps before it, `SPIKE_HISTORY` at most.
        limit: nats above their median; None: any loss will do.
        windows: what this process's share of the step was computed on.
        dataset: they are windows of.
        kept: what there is to go on from.

    Raises:
        DivergedError: it is higher; names the documents.
    """
    if limit is None or not earlier:
        return
    usual = statistics.median(earlier)
    if loss - usual > limit:
        raise DivergedError(
            f"Step {step}: the loss is {loss:.4g}, {loss - usual:.4g} above the median "
            f"of the {len(earlier)} steps before ({usual:.4g}); loss_spike allows {limit:g}. "
            f"It was computed on {dataset.describe(windows)}. No weights were changed by this "
            f"step; {kept}. Lower the learning rate or lengthen the warm-up; look at these "
            "documents with `fusestore inspect`; or raise loss_spike and run again, which goes "
            "on from the checkpoint if there is one."
        )


def check_weights(name: str, value: Tensor, step: int, kept: str) -> None:
    """See, before they are kept, that weights are numbers.

    Raises:
        NonFiniteError: they are not.
    """
    if not bool(torch.isfinite(value).all()):
        raise NonFiniteError(
            f"After step {step} the weights {name} are not finite and were not kept; {kept}. "
            "Lower the learning rate."
        )
