"""Values that the processes of one run exchange; every process must call these functions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from fusestore.errors import FusestoreError, LostRankError

_Result = TypeVar("_Result")

_LOST = re.compile(
    r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Timed out waiting|timeout", re.I
)
"""What torch's messages say about a process that ended or does not answer."""


def any_process(accelerator: Any, condition: bool) -> bool:  # noqa: ANN401 - accelerate is untyped
    """Whether the condition holds in some process."""
    if accelerator.num_processes == 1:
        return condition
    flag = torch.tensor([float(condition)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item() > 0)


def sum_over_processes(accelerator: Any, values: Tensor) -> Tensor:  # noqa: ANN401
    """The sum of all processes' values, on the CPU."""
    if accelerator.num_processes == 1:
        return values
    total: Tensor = accelerator.reduce(values.to(accelerator.device), "sum")
    return total.cpu()


def from_main_process(accelerator: Any, value: Any) -> Any:  # noqa: ANN401
    """The main process's value, in every process."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def by_main_process(accelerator: Any, function: Callable[[], _Result]) -> _Result:  # noqa: ANN401
    """Call a function in the main process; its result in every process.

    Other processes may not see the main process's disk.

    Raises:
        FusestoreError: it failed in the main process, which raises its own error.
    """
    result: Any = None
    failure = None
    if accelerator.is_main_process:
        try:
            result = function()
        except Exception as error:
            # Raised after the other processes were informed.
            failure = error
    result, failed = from_main_process(accelerator, (result, failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise FusestoreError("The main process could not go on; its own message says why.")
    value: _Result = result
    return value


def tensors_of_main_process(
    accelerator: Any,  # noqa: ANN401
    read: Callable[[], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Tensors that the main process reads, in every process, on the CPU.

    Raises:
        FusestoreError: reading failed in the main process, which raises its own error.
    """
    tensors: dict[str, Tensor] = {}

    def forms() -> list[tuple[str, torch.Size, torch.dtype]]:
        tensors.update(read())
        return [(name, value.shape, value.dtype) for name, value in tensors.items()]

    for name, shape, dtype in by_main_process(accelerator, forms):
        if accelerator.num_processes > 1:
            # NCCL sends what is on devices.
            device = accelerator.device
            own = tensors.get(name)
            sent = torch.empty(shape, dtype=dtype, device=device) if own is None else own.to(device)
            torch.distributed.broadcast(sent, 0)
            tensors[name] = sent.cpu()
    return tensors


@contextlib.contextmanager
def lost_processes(accelerator: Any, next_step: Callable[[], str]) -> Iterator[None]:  # noqa: ANN401
    """Turn torch's error about another process that ended, or does not answer, into ours.

    Args:
        accelerator: of the run.
        next_step: says which checkpoint there is and what to do.

    Raises:
        LostRankError: in place of torch's error.
    """
    try:
        yield
    except FusestoreError:
        raise
    except RuntimeError as error:
        is_torchs = isinstance(error, torch.distributed.DistError) or _LOST.search(str(error))
        if accelerator.num_processes == 1 or not is_torchs:
            raise
        raise LostRankError(
            f"Process {accelerator.process_index} of {accelerator.num_processes} lost another: it "
            "ended, or cannot be reached. If it could, its own message says why. "
            f"{next_step()}"
        ) from error
