"""Sharded weights, of which every process holds a part: FSDP2's `DTensor`s, ZeRO 3's parameters.

Checkpoints and models are written gathered, so that they do not depend on how weights were sharded.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether weights are sharded, so that a forward pass needs all processes."""
    return any(_is_dtensor(value) or _is_zero3(value) for value in module.parameters())


def reshard(module: torch.nn.Module) -> None:
    """Free the gathered weights that a forward pass without a backward pass leaves."""
    from torch.distributed.fsdp import FSDPModule

    for submodule in module.modules():
        if isinstance(submodule, FSDPModule):
            submodule.reshard()


def run_like_forward(module: torch.nn.Module, method: str) -> None:
    """Gather sharded weights for a method as for `forward`; no effect where none are sharded."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    register_fsdp_forward_method(module, method)


def gather(value: Tensor) -> Tensor:
    """A sharded tensor gathered on the CPU; any other unchanged. Every process must call this."""
    if _is_zero3(value):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().cpu().clone()
    if not _is_dtensor(value):
        return value
    gathered: Tensor = value.full_tensor()  # type: ignore[attr-defined]
    return gathered.cpu()


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a gathered tensor; the tensor itself where `like` is not sharded."""
    if not _is_dtensor(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
    )


def _is_dtensor(value: Tensor) -> bool:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _is_zero3(value: Tensor) -> bool:
    # DeepSpeed's own test; ZeRO 1 and 2 leave parameters whole.
    return hasattr(value, "ds_id")
