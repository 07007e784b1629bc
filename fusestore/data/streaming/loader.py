"""Batches of a stream, whose state counts what the training loop was given."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, parent_process
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from fusestore.data.collation import collate
from fusestore.data.streaming.stream import Stream
from fusestore.errors import InvalidInputError

_REFUSED = {
    "shuffle": "the stream has its own order",
    "sampler": "the stream has its own order",
    "batch_sampler": "the stream has its own order",
    "drop_last": "every window comes once an epoch",
    "persistent_workers": "workers begin each epoch anew, at the state of the loader",
}


def worker_options(
    num_workers: int, worker_init_fn: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """DataLoader's options for workers that may fetch and make shards: forkserver's, or spawned.

    A forked worker can hang once its parent has used Polars or obstore.

    Args:
        num_workers: how many; without any there is nothing to say.
        worker_init_fn: called in each.
    """
    if num_workers == 0:
        return {}
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    beginning = _WorkerBeginning(dict(os.environ), worker_init_fn)
    return {"multiprocessing_context": method, "worker_init_fn": beginning}


@dataclass(frozen=True)
class _WorkerBeginning:
    """Gives a worker this process's environment, and ends it when this process was killed.

    A fork server has the environment of its first use. It lives as long as its workers, and torch
    ends a worker when its parent, which the server is, does not live any more.
    """

    environment: dict[str, str] = field(repr=False)
    then: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        if self.then is not None:
            self.then(worker)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class StreamingLoader(DataLoader[dict[str, Tensor]]):
    """A `torch.utils.data.DataLoader` over a stream, with `state_dict` and `load_state_dict`.

    Batches are the same for any number of workers. The state is counted here, where batches are
    given out: what workers have read ahead does not matter to it. It is the same on every rank,
    and may be loaded by another number of ranks or workers, or with another batch size, as long as
    all ranks stopped after the same number of batches.
    """

    def __init__(
        self,
        dataset: Stream,
        batch_size: int = 1,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[dict[str, Tensor]]], Any] = collate,
        **options: Any,  # noqa: ANN401 - DataLoader's own
    ) -> None:
        """Make batches of each rank.

        Args:
            dataset: the stream; it is moved along with the loader.
            batch_size: windows per batch and rank.
            num_workers: worker processes; started by forkserver, unless `options` say otherwise
                (`multiprocessing_context`). Forked ones read local datasets only.
            collate_fn: makes a batch of samples.
            options: further ones of DataLoader.

        Raises:
            InvalidInputError: an option that would change order or state.
        """
        for name, reason in _REFUSED.items():
            if options.get(name):
                raise InvalidInputError(f"StreamingLoader takes no {name}: {reason}.")
        if dataset.batch_size not in (None, batch_size) or batch_size < 1:
            raise InvalidInputError(
                f"batch_size={batch_size}, the stream's is {dataset.batch_size}: expected the same "
                "number, 1 or more."
            )
        dataset.batch_size = batch_size
        self._stream = dataset
        if options.get("multiprocessing_context") is None:
            options |= worker_options(num_workers, options.get("worker_init_fn"))
        super().__init__(
            dataset, batch_size, num_workers=num_workers, collate_fn=collate_fn, **options
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches that are left of the epoch."""
        state = self._stream.state_dict()
        epoch, start = state["epoch"], state["position"]
        _, world_size = self._stream.place()
        step = world_size * (self._stream.batch_size or 1)
        for number, batch in enumerate(super().__iter__(), 1):
            self._stream.seek(epoch, start + number * step)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The stream's state behind the last batch that was given out."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where `state_dict` was taken; see `Stream.load_state_dict`."""
        self._stream.load_state_dict(state)
