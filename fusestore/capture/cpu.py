"""Selection by the compiled kernels, on as many threads as torch has, for logits of any dtype."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from fusestore.capture.kernels import draw_rows, top_k_rows

_ROWS_TO_CONVERT = 16
"""Rows of half-precision logits that are converted at a time, to stay in the processor's cache."""

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_Array = npt.NDArray[np.float32]
_Positions = npt.NDArray[np.int64]


def top_k_on_cpu(
    logits: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor, k: int
) -> Entries:
    """Fields of a `Selection` for the rule `top-k`; arguments as for `select`."""
    n = len(positions)
    ids = np.zeros((n, k), np.int32)
    logprobs = np.full((n, k), np.nan, np.float32)
    tail, label_logprob = np.full((2, n), np.nan, np.float32)
    finite = np.zeros(n, np.bool_)
    numbers = labels.numpy()

    def select_rows(rows: slice, values: _Array, indices: _Positions) -> None:
        top_k_rows(
            values,
            indices,
            numbers[rows],
            k,
            ids[rows],
            logprobs[rows],
            tail[rows],
            label_logprob[rows],
            finite[rows],
        )

    _run_in_threads(logits, positions, select_rows)
    return (
        torch.from_numpy(ids),
        torch.from_numpy(logprobs),
        torch.from_numpy(tail),
        torch.from_numpy(label_logprob),
        torch.from_numpy(finite),
    )


def draw_on_cpu(
    logits: torch.Tensor,
    positions: torch.Tensor,
    labels: torch.Tensor,
    points: npt.NDArray[np.float64],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids int32 [n, draws], rising, at the cumulated masses `points` [n, draws].

    Returns:
        The ids, and `label_logprob` and `finite` of a `Selection`.
    """
    ids = np.zeros(points.shape, np.int32)
    label_logprob = np.full(len(points), np.nan, np.float32)
    finite = np.zeros(len(points), np.bool_)
    numbers = labels.numpy()

    def select_rows(rows: slice, values: _Array, indices: _Positions) -> None:
        draw_rows(
            values,
            indices,
            numbers[rows],
            points[rows],
            ids[rows],
            label_logprob[rows],
            finite[rows],
        )

    _run_in_threads(logits, positions, select_rows)
    return torch.from_numpy(ids), torch.from_numpy(label_logprob), torch.from_numpy(finite)


def _run_in_threads(
    logits: torch.Tensor,
    positions: torch.Tensor,
    select_rows: Callable[[slice, _Array, _Positions], None],
) -> None:
    """Call `select_rows(positions, float32 rows, indices of these rows)` in several threads."""

    def run(first: int, stop: int) -> None:
        if logits.dtype == torch.float32:
            select_rows(slice(first, stop), logits.numpy(), positions[first:stop].numpy())
            return
        for start in range(first, stop, _ROWS_TO_CONVERT):
            batch = slice(start, min(start + _ROWS_TO_CONVERT, stop))
            values = logits[positions[batch]].float().numpy()
            select_rows(batch, values, np.arange(len(values)))

    n, threads = len(positions), torch.get_num_threads()
    bounds = [n * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(max_workers=threads) as pool:
        list(pool.map(run, bounds[:-1], bounds[1:]))
