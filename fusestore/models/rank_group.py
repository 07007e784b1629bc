"""The processes that hold parts of one model, and what they tell each other.

Rank 0 decides; the others follow. Messages are Python objects over gloo, from rank 0 to all. After
each piece of work all agree on how it went: an error of one rank is an error of all. A rank that
ended closes its connections, which ends the wait of the others.

    rank 0              rank 1, 2, …
    send(work)          work = receive()
    agree(outcome)      agree(outcome)
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist

from fusestore.errors import EngineError, InvalidInputError, LostRankError
from fusestore.process_rank import local_rank

Outcome = Literal["done", "out of memory", "failed"]

AGREE_S = 60.0
"""Seconds that a rank whose work failed waits for the others, which may wait for it in turn."""

_COLLECTIVE = timedelta(hours=2)
"""The longest collective of a model: ranks may load their parts at different speeds."""

_MESSAGE = timedelta(days=30)
"""The longest wait for a message, because rank 0 may wait for other writers."""

_OUTCOMES: tuple[Outcome, ...] = ("done", "out of memory", "failed")


_messages: dist.ProcessGroup | None = None
"""The group of messages, apart from that of the model: work that failed leaves collectives open."""


class _Report(NamedTuple):
    outcome: Outcome
    message: str


@contextlib.contextmanager
def rank_group() -> Iterator[int]:
    """Join the processes that torchrun started; yields the rank of this one.

    Raises:
        InvalidInputError: torchrun did not start several processes, or this machine has fewer GPUs
            than processes.
        EngineError: the processes do not find each other.
    """
    global _messages
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise InvalidInputError(
            "tensor_parallel needs several processes. Start the command with torchrun, with as "
            "many processes as there are GPUs: torchrun --nproc-per-node 4 --no-python fusestore "
            "capture …"
        )
    if dist.is_initialized():
        raise InvalidInputError("This process belongs to a torch.distributed group already.")
    if torch.cuda.is_available():
        _bind_gpu()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=_COLLECTIVE)
        _messages = dist.new_group(backend="gloo", timeout=_MESSAGE)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"The processes of torchrun do not find each other: {error}") from error
    # After an error the group stays until the process ends: to end it could wait for other ranks,
    # and these take its end for that of the process.
    yield dist.get_rank()
    _messages = None
    # Models hold the group, too.
    gc.collect()
    dist.destroy_process_group()


def is_joined() -> bool:
    """Whether this process has joined a group."""
    return _messages is not None


def send(message: object) -> None:
    """Send an object to all other ranks; on rank 0.

    Raises:
        LostRankError: another rank ended.
    """
    with _others_alive():
        dist.broadcast_object_list([message], src=0, group=_messages)


def receive() -> Any:  # noqa: ANN401 - what rank 0 sent
    """Wait for the next object that rank 0 sends.

    Raises:
        LostRankError: rank 0 ended.
    """
    received: list[Any] = [None]
    with _others_alive():
        dist.broadcast_object_list(received, src=0, group=_messages)
    return received[0]


def wait_for_rank_zero(seconds: float = 10.0) -> None:
    """Wait until rank 0 has ended, so that its message is out before a launcher ends all ranks."""
    work = dist.broadcast(torch.zeros(1), src=0, group=_messages, async_op=True)
    with contextlib.suppress(RuntimeError):
        work.wait(timedelta(seconds=seconds))


def agree(outcome: Outcome, message: str = "") -> tuple[Outcome, str]:
    """The worst outcome of a piece of work among all ranks, and the messages of those ranks.

    Args:
        outcome: of this rank.
        message: says why, unless it is `done`.

    Raises:
        LostRankError: another rank ended, or does not answer because it waits within the work.
    """
    worst = torch.tensor(_OUTCOMES.index(outcome))
    with _others_alive(message):
        work = dist.all_reduce(worst, dist.ReduceOp.MAX, group=_messages, async_op=True)
        if outcome == "done":
            work.wait()
        else:
            work.wait(timedelta(seconds=AGREE_S))
        if worst == 0:
            return "done", ""
        reports: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(reports, _Report(outcome, message), group=_messages)
    worst_outcome = _OUTCOMES[int(worst)]
    reasons: dict[str, list[str]] = {}
    for rank, report in enumerate(reports):
        if report.outcome == worst_outcome:
            reasons.setdefault(report.message, []).append(str(rank))
    return worst_outcome, "; ".join(
        f"rank {', '.join(ranks)}: {reason}" for reason, ranks in reasons.items()
    )


@contextlib.contextmanager
def _others_alive(own_message: str = "") -> Iterator[None]:
    """Turn the error of a broken connection, or of a wait that took too long, into ours."""
    try:
        yield
    except RuntimeError as error:
        own = f" This process (rank {dist.get_rank()}): {own_message}" if own_message else ""
        raise LostRankError(
            "Another of the processes that share the model ended, or does not answer; its own "
            f"message says why.{own} The same command continues with the missing shards."
        ) from error


def _bind_gpu() -> None:
    number = local_rank()
    if number >= torch.cuda.device_count():
        raise InvalidInputError(
            f"torchrun started more processes on this machine than its "
            f"{torch.cuda.device_count()} GPUs. Start one process per GPU."
        )
    torch.cuda.set_device(number)
