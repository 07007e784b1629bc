"""What a table of windows must say; without imports but NumPy, for workers of a training run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def windows_problem(
    starts: npt.NDArray[np.int64], num_tokens: int, window_length: int
) -> str | None:
    """Why a table of windows is none; None if it is.

    Args:
        starts: int64 [W + 1], the first position of each window, and the end of the last.
        num_tokens: of the dataset.
        window_length: the largest number of positions of a window.
    """
    if starts[0] != 0 or starts[-1] != num_tokens or np.any(starts[1:] <= starts[:-1]):
        return "does not divide the dataset into windows"
    longest = int(np.diff(starts).max())
    if longest > window_length:
        return f"has a window of {longest:,} tokens; windows have at most {window_length:,}"
    return None
