"""The fused rows of a batch as one sparse distribution per position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fusestore.errors import IncompatibleError
from fusestore.losses.objective import FusionObjective


class SparseTarget(NamedTuple):
    """P at the objective's temperature over k token ids and the ghost, per position.

    Attributes:
        ids: int64 [N, k]; unused entries repeat a used id of their row, or are 0 without one.
        used: bool [N, k].
        logprobs: log P [N, k + 1], the ghost last; −inf in unused entries, without a ghost, and in
            all entries of positions without a target.
        mask: bool [N] positions that have a target.
    """

    ids: Tensor
    used: Tensor
    logprobs: Tensor
    mask: Tensor

    def rows(self, rows: slice) -> SparseTarget:
        """The target of some positions."""
        return SparseTarget(self.ids[rows], self.used[rows], self.logprobs[rows], self.mask[rows])


def sparse_target(
    batch: Mapping[str, Tensor],
    labeled: Tensor,
    vocab_size: int,
    objective: FusionObjective,
    dtype: torch.dtype,
) -> SparseTarget:
    """The target of N positions, from a batch of `fusestore.data.collate`.

    Args:
        batch: its `fused_*` fields, N positions in all.
        labeled: bool [N]; other positions have no target.
        vocab_size: V, of the student.
        objective: its temperature and tail.
        dtype: to compute in.

    Raises:
        IncompatibleError: the fields do not fit each other or the student's ids, or they are
            samples and the objective would be biased.
    """
    _check_shapes(batch, labeled)
    sampled = batch.get("fused_sampled")
    if sampled is not None and bool(sampled.any()):
        objective.check_samples("this batch")
    ids = batch["fused_ids"].reshape(len(labeled), -1)
    logprobs = batch["fused_logprobs"].reshape(ids.shape).to(dtype)
    mask = distilled_positions(batch, labeled)
    used = _used(logprobs) & mask[:, None]
    # An unused entry gets the id of its row's first used entry, without mass: gathering and
    # scattering it has no effect.
    first = ids.gather(-1, used.to(torch.int8).argmax(-1, keepdim=True))
    ids = torch.where(used, ids, torch.where(mask[:, None], first, 0))
    check_ids(ids, vocab_size, "fused_ids")
    kept = torch.where(used, logprobs, -torch.inf)
    ghost = torch.full_like(kept[:, :1], -torch.inf)
    if objective.tail == "ghost":
        # A row with the whole vocabulary has no mass outside its entries.
        has_ghost = mask & (used.sum(-1) < vocab_size)
        tail = batch["fused_tail"].reshape(-1, 1).to(dtype)
        ghost = torch.where(has_ghost[:, None], tail, ghost)
    scaled = torch.cat([kept, ghost], -1) / objective.temperature
    # Rows without a target would become NaN.
    normalized = torch.where(mask[:, None], torch.log_softmax(scaled, -1), -torch.inf)
    return SparseTarget(ids, used, normalized, mask)


def distilled_positions(batch: Mapping[str, Tensor], labeled: Tensor) -> Tensor:
    """Which of N positions have a target: bool [N].

    Args:
        batch: its `fused_mask` [B, L] and `fused_logprobs` [B, L, k], B · L = N.
        labeled: bool [N].
    """
    used = _used(batch["fused_logprobs"]).any(-1)
    return (batch["fused_mask"] & used).reshape(-1) & labeled


def _used(logprobs: Tensor) -> Tensor:
    # NaN counts as used, so that a damaged distribution makes the loss NaN.
    return logprobs != -torch.inf


def check_ids(ids: Tensor, vocab_size: int, name: str) -> None:
    """Check that all ids lie in [0, V), because others end a CUDA process without an error.

    Raises:
        IncompatibleError: an id lies outside.
    """
    if ids.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(ids))
    if low < 0 or high >= vocab_size:
        raise IncompatibleError(
            f"{name} holds token id {low if low < 0 else high}, but the model gives logits for "
            f"ids 0 to {vocab_size - 1}. Train the model that the distributions were fused for."
        )


def _check_shapes(batch: Mapping[str, Tensor], labeled: Tensor) -> None:
    shape = batch["next_ids"].shape
    actual = {
        name: tuple(batch[name].shape)
        for name in ("fused_ids", "fused_logprobs", "fused_tail", "fused_mask")
    }
    top_k = actual["fused_ids"][-1:]
    expected = {
        "fused_ids": (*shape, *top_k),
        "fused_logprobs": (*shape, *top_k),
        "fused_tail": tuple(shape),
        "fused_mask": tuple(shape),
    }
    if actual != expected or len(labeled) != shape.numel():
        raise IncompatibleError(
            f"The batch's fields do not fit each other: next_ids has shape {tuple(shape)}, the "
            f"others {actual}; expected {expected}. Make batches with fusestore.data.collate."
        )
