"""The engine `transformers` on several processes, each with a part of every weight.

Rank 0 runs the capture: it takes leases, chooses batches and writes. Every batch goes to all ranks,
which run it in the same way, selection included, so they need the same memory. What one rank finds
(a batch is too large, it failed) holds for all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch

from fusestore.capture.engines.protocol import EngineJob
from fusestore.capture.engines.transformers_engine import TransformersEngine
from fusestore.errors import EngineError, IncompatibleError, LostRankError, ReportedByRankZeroError
from fusestore.models.logits import is_out_of_memory
from fusestore.models.precision import Dtype
from fusestore.models.rank_group import (
    Outcome,
    agree,
    is_joined,
    receive,
    send,
    wait_for_rank_zero,
)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Start:
    """Start the engine, with this dtype."""

    dtype: Dtype | None


@dataclass(frozen=True)
class _Batch:
    """Run a batch; with the arguments of `TransformersEngine._run`."""

    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _End:
    """The capture ended; `error` says why if it failed."""

    error: str | None = None


class TensorParallelEngine(TransformersEngine):
    """`TransformersEngine` whose ranks run every batch together; see `leading` and `follow`."""

    @classmethod
    def start(cls, job: EngineJob) -> Self:
        """As `TransformersEngine.start`, on all ranks; called on rank 0.

        Raises:
            IncompatibleError: this process has joined no group.
            EngineError: it failed on another rank.
        """
        if not is_joined():
            raise IncompatibleError(
                "tensor_parallel is for captures: nothing else runs in several processes that "
                "share a model. Leave it out, or use device_map, which distributes a model over "
                "the GPUs of one process."
            )
        send(_Start(job.dtype))
        return together(lambda: cls.start_part(job))

    @classmethod
    def start_part(cls, job: EngineJob) -> Self:
        """Start the engine on this rank, while all others do the same."""
        return super().start(job)

    def _run(self, *arguments: Any) -> Any:  # noqa: ANN401 - as the method that it repeats
        send(_Batch(arguments))
        return together(lambda: self.run_part(arguments))

    def run_part(self, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401
        """Run a batch on this rank, while all others do the same."""
        return super()._run(*arguments)


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """On rank 0, around its capture: the other ranks end when it ends."""
    try:
        yield
    except LostRankError:
        # A message would wait for the rank that is lost.
        raise
    except Exception as error:
        with contextlib.suppress(LostRankError):
            send(_End(str(error) or type(error).__name__))
        raise
    send(_End())


def follow(make_job: Callable[[Dtype | None], EngineJob]) -> None:
    """Do what rank 0 sends until its capture ends; on all other ranks.

    Args:
        make_job: makes the job of this rank from its dtype, when rank 0 has begun its own.

    Raises:
        ReportedByRankZeroError: the capture failed.
        LostRankError: rank 0 ended without a message.
    """
    engine: TensorParallelEngine | None = None
    while not isinstance(message := receive(), _End):
        try:
            if isinstance(message, _Start):
                dtype = message.dtype
                engine = together(lambda: TensorParallelEngine.start_part(make_job(dtype)))  # noqa: B023 - called at once
            elif engine is not None:
                together(lambda: engine.run_part(message.arguments))  # noqa: B023
        except LostRankError:
            raise
        except Exception:  # noqa: S110 - rank 0 has it too, and sends a smaller batch or the end
            pass
    if message.error is not None:
        wait_for_rank_zero()
        raise ReportedByRankZeroError(message.error)


def together(work: Callable[[], _Result]) -> _Result:
    """Do what all ranks do now; it fails if it fails on one of them.

    Raises:
        torch.OutOfMemoryError: another rank ran out of memory.
        EngineError: it failed on another rank.
        Exception: the error of this rank.
    """
    outcome: Outcome = "done"
    own_error: Exception | None = None
    try:
        result = work()
    except Exception as error:
        own_error = error
        outcome = "out of memory" if is_out_of_memory(error) else "failed"
    worst, reasons = agree(outcome, _sentence(own_error))
    if worst == "done":
        return result
    if own_error is not None and outcome == worst:
        raise own_error
    if worst == "out of memory":
        raise torch.OutOfMemoryError(reasons)
    raise EngineError(f"The capture failed on {reasons}")


def _sentence(error: Exception | None) -> str:
    return "" if error is None else str(error) or type(error).__name__
