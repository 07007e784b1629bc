"""Batches that know how many positions their optimizer step has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from fusestore.data.streaming.loader import StreamingLoader
from fusestore.data.window_loader import WindowLoader
from fusestore.errors import InvalidInputError
from fusestore.losses.positions import count_positions


class StepLoader:
    """Batches of a loader; each has `num_positions`, those of all batches of its optimizer step.

    A trainer that accumulates gradients divides the loss of each batch before it has seen the next.
    With the positions of the whole step, the accumulated gradient is that of one large batch. The
    last step of an epoch may have fewer batches.

    Attributes:
        loader: what is read; its state is that after the batches of a step.
        accumulation: batches per optimizer step.
    """

    def __init__(self, loader: WindowLoader | StreamingLoader, accumulation: int = 1) -> None:
        if accumulation < 1:
            raise InvalidInputError(f"accumulation={accumulation}: expected 1 or more.")
        self.loader = loader
        self.accumulation = accumulation

    def __len__(self) -> int:
        """Batches of one rank in an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The remaining batches of the epoch."""
        batches = iter(self.loader)
        while step := list(islice(batches, self.accumulation)):
            positions = count_positions(step)
            for batch in step:
                yield {**batch, "num_positions": positions}

    def state_dict(self) -> dict[str, Any]:
        """The loader's state; see `StreamingLoader`."""
        return self._streaming().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; see `StreamingLoader`."""
        self._streaming().load_state_dict(state)

    def _streaming(self) -> StreamingLoader:
        if not isinstance(self.loader, StreamingLoader):
            raise InvalidInputError(
                f"{type(self.loader).__name__} has no state. Read a stream "
                "(fusestore.data.StreamingLoader) to resume in the middle of an epoch."
            )
        return self.loader
