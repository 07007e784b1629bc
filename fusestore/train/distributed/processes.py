"""What the processes of one run tell each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def any_process(accelerator: Any, here: bool) -> bool:  # noqa: ANN401 - accelerate is untyped
    """Whether it is so in some process; every process must ask."""
    if accelerator.num_processes == 1:
        return here
    flag = torch.tensor([float(here)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item() > 0)


def sum_over_processes(accelerator: Any, values: Tensor) -> Tensor:  # noqa: ANN401
    """The sum of all processes' values, on the CPU."""
    if accelerator.num_processes == 1:
        return values
    total: Tensor = accelerator.reduce(values.to(accelerator.device), "sum")
    return total.cpu()


def of_main_process(accelerator: Any, value: Any) -> Any:  # noqa: ANN401
    """What the main process has, in all of them."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]
