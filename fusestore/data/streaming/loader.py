"""Batches of a stream, with a state that counts the batches the training loop received."""

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
    "drop_last": "an epoch has every window once",
}


def worker_options(
    num_workers: int, worker_init_fn: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """DataLoader's options for workers that may fetch and make shards, by forkserver or spawn.

    A forked worker can hang once its parent has used Polars or obstore.

    Args:
        num_workers: number of workers; 0 needs no options.
        worker_init_fn: called in each worker.
    """
    if num_workers == 0:
        return {}
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    start = _WorkerStart(dict(os.environ), worker_init_fn)
    return {"multiprocessing_context": method, "worker_init_fn": start}


@dataclass(frozen=True)
class _WorkerStart:
    """Gives a worker this process's environment, and ends it when this process is killed.

    A fork server keeps the environment of its first use. torch ends a worker when its parent ends,
    but that is the server, which lives as long as its workers.
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

    Batches are the same for any number of workers. The state counts the batches that the loader
    yielded, without those that workers have prefetched. It is the same on every rank, and another
    number of ranks or workers, or another batch size, may load it, if all ranks stopped after the
    same number of batches.

    `Accelerator.prepare` returns it unchanged, because the stream gives each rank its own windows:
    batches stay on the CPU until the training loop moves them. `Accelerator.save_state` and
    `load_state` include its state.
    """

    # What accelerate looks at: `prepare` would shard the stream a second time.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

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
            dataset: the stream; the loader sets its position.
            batch_size: windows per batch and rank.
            num_workers: worker processes; started by forkserver, unless `options` say otherwise
                (`multiprocessing_context`). Forked ones read local datasets only.
            collate_fn: makes a batch of samples.
            options: further options of DataLoader.

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
        """The remaining batches of the epoch."""
        state = self._stream.state_dict()
        epoch, start = state["epoch"], state["position"]
        _, world_size = self._stream.place()
        step = world_size * (self._stream.batch_size or 1)
        self._stream.seek(epoch, start)
        for number, batch in enumerate(super().__iter__(), 1):
            self._stream.advance(epoch, start + number * step)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The stream's state after the last batch that was yielded."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; see `Stream.load_state_dict`."""
        self._stream.load_state_dict(state)
