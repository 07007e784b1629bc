"""Values that the processes of one run exchange; every process must call these functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
