"""Samples for training code, made from rows of windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusestore.cache.rows import NO_LABEL

SAMPLE_ARRAYS: dict[str, np.dtype[Any]] = {
    "input_ids": np.dtype(np.int32),
    "next_ids": np.dtype(np.int32),
    "ids": np.dtype(np.int32),
    "logprobs": np.dtype(np.float32),
    "tail": np.dtype(np.float32),
    "kind": np.dtype(np.uint8),
}
"""Arrays of a fused dataset that a sample is made from, and their dtypes."""

WIDE_ARRAYS = ("ids", "logprobs")
"""Arrays with `top_k` columns; the others have one value per position."""

NO_WINDOW = -1
"""`window` of padding."""

_CACHE_LINE = 64
"""Bytes."""

_NO_DISTILLATION = 0
"""Value of `kind` where a position has no fused distribution."""


def empty_rows(num_rows: int, top_k: int) -> dict[str, npt.NDArray[Any]]:
    """`SAMPLE_ARRAYS` by name for this number of positions, uninitialized.

    All share one allocation, which an allocator reuses. Several large allocations would be returned
    to the system and cleared page by page, which takes longer than writing them. Each array begins
    on a cache line: copying from the beginning of a page to an unaligned address takes up to six
    times as long.
    """
    memory = np.empty(_memory_for(num_rows, top_k), np.uint8)
    begin = -memory.ctypes.data % _CACHE_LINE
    arrays = {}
    for name, dtype in SAMPLE_ARRAYS.items():
        shape = (num_rows, top_k) if name in WIDE_ARRAYS else (num_rows,)
        values = arrays[name] = np.ndarray(shape, dtype, memory, begin)
        begin += values.nbytes + -values.nbytes % _CACHE_LINE
    return arrays


def _memory_for(num_rows: int, top_k: int) -> int:
    """Bytes of `empty_rows`, with room to begin each array on a cache line."""
    narrow = sum(dtype.itemsize for dtype in SAMPLE_ARRAYS.values())
    wide = sum(SAMPLE_ARRAYS[name].itemsize for name in WIDE_ARRAYS)
    return num_rows * (narrow + (top_k - 1) * wide) + (len(SAMPLE_ARRAYS) + 1) * _CACHE_LINE


def sample_of(
    rows: Mapping[str, npt.NDArray[Any]], window: int, *, sampled: bool
) -> dict[str, Tensor]:
    """The sample of window `window`, as `FusedDataset` describes it.

    Args:
        rows: `SAMPLE_ARRAYS` by name, the window's l positions; writable, and owned by the sample
            after the call.
        window: its number.
        sampled: whether rows of any source are samples.
    """
    return {
        **_by_position(rows),
        "fused_sampled": torch.from_numpy(np.array(sampled)),
        "window": torch.from_numpy(np.array(window)),
    }


class Windows(Sequence[dict[str, Tensor]]):
    """Several windows that were read together: a sequence of samples, cut at the first access.

    Samples, and the tensors of `stacked`, are views of one allocation.

    Attributes:
        lengths: positions of each window.
    """

    def __init__(
        self,
        rows: Mapping[str, npt.NDArray[Any]],
        lengths: Sequence[int],
        windows: Sequence[int],
        *,
        sampled: bool,
    ) -> None:
        """Samples as `sample_of` makes them.

        Args:
            rows: `SAMPLE_ARRAYS` by name, the concatenated positions of all windows; writable, and
                owned by the samples after the call.
            lengths: positions of each window.
            windows: their numbers.
            sampled: whether rows of any source are samples.
        """
        self.lengths = list(lengths)
        self._positions = _by_position(rows)
        self._scalars = {
            "fused_sampled": torch.from_numpy(np.full(len(windows), sampled)),
            "window": torch.from_numpy(np.array(windows, np.int64)),
        }

    @cached_property
    def _samples(self) -> list[dict[str, Tensor]]:
        # Skips the bookkeeping for gradients, which would double the time.
        split = torch.unsafe_split_with_sizes
        fields = [split(values, self.lengths) for values in self._positions.values()]
        fields += [values.unbind() for values in self._scalars.values()]
        names = (*self._positions, *self._scalars)
        return [dict(zip(names, values, strict=True)) for values in zip(*fields, strict=True)]

    @property
    def is_cut(self) -> bool:
        """Whether a sample was accessed; its user may have replaced tensors in it."""
        return "_samples" in self.__dict__

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self._samples)

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Tensor]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        return self._samples[index]

    def stacked(self, name: str, padding: float) -> Tensor:
        """A field of all windows: [B, L, …] with L of the longest window, or [B].

        Args:
            name: of the field.
            padding: value that pads shorter windows on the right.
        """
        if name in self._scalars:
            return self._scalars[name]
        values, longest = self._positions[name], max(self.lengths)
        if min(self.lengths) == longest:
            return values.view(len(self), longest, *values.shape[1:])
        return pad_right(torch.unsafe_split_with_sizes(values, self.lengths), padding)


def pad_right(windows: Sequence[Tensor], padding: float) -> Tensor:
    """One field of B windows of different lengths, [l, …] each, as [B, L, …] with L the longest."""
    longest = max(map(len, windows))
    padded = windows[0].new_full((len(windows), longest, *windows[0].shape[1:]), padding)
    for row, window in zip(padded, windows, strict=True):
        row[: len(window)] = window
    return padded


def _by_position(rows: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """The fields of a sample with one value or row per position; changes `next_ids`."""
    document_end = rows["next_ids"] == NO_LABEL
    # Losses know one id for what they ignore.
    np.maximum(rows["next_ids"], NO_LABEL, out=rows["next_ids"])
    # `torch.tensor` takes several times as long as `from_numpy`.
    tensor = torch.from_numpy
    return {
        "input_ids": tensor(rows["input_ids"]),
        "next_ids": tensor(rows["next_ids"]),
        "fused_ids": tensor(rows["ids"]),
        "fused_logprobs": tensor(rows["logprobs"]),
        "fused_tail": tensor(rows["tail"]),
        "fused_mask": tensor(rows["kind"] != _NO_DISTILLATION),
        "document_end": tensor(document_end),
    }


def padding_sample(top_k: int, *, sampled: bool) -> dict[str, Tensor]:
    """A sample of one position without label and distribution, which adds nothing to a loss."""
    rows: dict[str, npt.NDArray[Any]] = {
        "input_ids": np.zeros(1, np.int32),
        "next_ids": np.full(1, NO_LABEL, np.int32),
        "ids": np.zeros((1, top_k), np.int32),
        "logprobs": np.full((1, top_k), -np.inf, np.float32),
        "tail": np.zeros(1, np.float32),
        "kind": np.full(1, _NO_DISTILLATION, np.uint8),
    }
    return sample_of(rows, NO_WINDOW, sampled=sampled)
