"""Checks that stop a training run: data that does not fit the model, NaN, a rising loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusestore.errors import (
    CorruptionError,
    DivergedError,
    FusestoreError,
    IncompatibleError,
    NonFiniteError,
)
from fusestore.fuse.row_rules import first_bad_row
from fusestore.models.loading import output_width
from fusestore.train.step_batches import Trainable

SPIKE_HISTORY = 20
"""Number of steps for the median that the next loss is compared with."""


def check_vocabulary(
    model: Any,  # noqa: ANN401 - transformers is untyped
    dataset: Trainable,
    name: str,
) -> None:
    """Check, before the first step, that the model has every token id of the dataset.

    Raises:
        IncompatibleError: an id is missing.
    """
    width = output_width(model)
    if dataset.vocab_size <= width:
        return
    largest = dataset.largest_token_id()
    if largest >= width:
        raise IncompatibleError(
            f"Fused dataset {dataset.name} has token id {largest}, but the model {name} has only "
            f"{width} ids. Train the target that the dataset was fused for."
        )


def check_tokenizer(digest: str, dataset: Trainable, name: str) -> None:
    """Check that the dataset holds ids of the model's tokenizer.

    Args:
        digest: of the model's tokenizer.
        dataset: what is trained on.
        name: of the model, for the message.

    Raises:
        IncompatibleError: the dataset was fused for another tokenizer, even if all ids would fit.
    """
    expected = dataset.target
    if digest != expected:
        raise IncompatibleError(
            f"Fused dataset {dataset.name} holds tokens of the tokenizer with digest "
            f"{expected[:16]}, but that of {name} has digest {digest[:16]}: the same ids would "
            f"stand for other text. Train the target that the dataset was fused for, or fuse for "
            f"{name}."
        )


def check_rows(batch: Mapping[str, Tensor], dataset: Trainable) -> FusestoreError | None:
    """The error to raise if a batch holds what is no distribution; see `fuse.row_rules`.

    Args:
        batch: of `fusestore.data.collate`.
        dataset: the dataset of its windows.
    """
    top_k = batch["fused_ids"].shape[-1]

    def flat(name: str, dtype: type) -> npt.NDArray[Any]:
        return batch[name].numpy().astype(dtype, copy=False).reshape(-1)

    bad = first_bad_row(
        flat("input_ids", np.int32),
        flat("next_ids", np.int32),
        flat("fused_ids", np.int32).reshape(-1, top_k),
        flat("fused_logprobs", np.float32).reshape(-1, top_k),
        flat("fused_tail", np.float32),
        flat("fused_mask", np.uint8),
        dataset.vocab_size,
        2,
        unused_is_empty=False,
    )
    if bad is None:
        return None
    index, place = divmod(bad.row, batch["input_ids"].shape[1])
    window = int(batch["window"][index])
    kind = IncompatibleError if bad.is_foreign_id else CorruptionError
    return kind(
        f"{dataset.place_of(window, place)} is no row to train on: {bad.problem}. It lies in "
        f"{dataset.describe([window])}. Run `fusestore verify` on its store, and fuse it again."
    )


def not_finite(
    value: float, step: int, windows: Sequence[int], dataset: Trainable, kept: str
) -> NonFiniteError:
    """The error to raise when the loss or gradient of some process is not finite.

    Args:
        value: the loss or the gradient's norm in this process.
        step: of the run, from 1.
        windows: the windows it was computed on.
        dataset: the dataset of the windows.
        kept: which checkpoint there is.
    """
    if math.isfinite(value):
        return NonFiniteError(
            f"Step {step}: the loss or its gradient is not a number in another process, which "
            f"names the documents. No weights were changed by this step; {kept}."
        )
    return NonFiniteError(
        f"Step {step}: the loss or its gradient is {value} for {dataset.describe(windows)}. "
        f"No weights were changed by this step; {kept}. Lower the learning rate, use precision "
        "'float32', or look at these documents' distributions with `fusestore show --document`."
    )


def check_spike(
    step: int,
    loss: float,
    earlier: Sequence[float],
    limit: float,
    windows: Sequence[int],
    dataset: Trainable,
    kept: str,
) -> None:
    """Check that a step's loss is not far above those of the steps before it.

    Args:
        step: of the run, from 1.
        loss: of the step, in nats, over all processes.
        earlier: the losses of the last steps before it, `SPIKE_HISTORY` at most.
        limit: nats above their median; 0: no limit.
        windows: the windows of this process's share of the step.
        dataset: the dataset of the windows.
        kept: which checkpoint there is.

    Raises:
        DivergedError: it is above the limit; the documents are named.
    """
    if limit == 0.0 or not earlier:
        return
    usual = statistics.median(earlier)
    if loss - usual > limit:
        raise DivergedError(
            f"Step {step}: the loss is {loss:.4g}, {loss - usual:.4g} above the median "
            f"of the {len(earlier)} steps before ({usual:.4g}); loss_spike allows {limit:g}. "
            f"It was computed on {dataset.describe(windows)}. No weights were changed by this "
            f"step; {kept}. Lower the learning rate or lengthen the warm-up; look at these "
            "documents with `fusestore show --document`; or raise loss_spike and run again, which "
            "resumes from a kept checkpoint."
        )


def check_weights(name: str, value: Tensor, step: int, kept: str) -> None:
    """Check, before they are stored, that weights are finite.

    Raises:
        NonFiniteError: they are not finite.
    """
    if not bool(torch.isfinite(value).all()):
        raise NonFiniteError(
            f"After step {step} the weights {name} are not finite and were not kept; {kept}. "
            "Lower the learning rate."
        )
