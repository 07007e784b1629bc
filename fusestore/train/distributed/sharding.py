"""Weights of which every process holds a piece: FSDP2's `DTensor`s, or ZeRO 3's parameters.

Checkpoints and models are written whole, so that they do not know how the weights were cut.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether its weights are in pieces, so that a forward pass takes all processes."""
    return any(_is_piece(value) or _is_zero3(value) for value in module.parameters())


def reshard(module: torch.nn.Module) -> None:
    """Drop the whole weights that a forward pass without a backward pass leaves."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def run_like_forward(module: torch.nn.Module, method: str) -> None:
    """Have a method see whole weights as `forward` does; nothing where none are in pieces."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    register_fsdp_forward_method(module, method)


def whole(value: Tensor) -> Tensor:
    """A tensor that is in pieces as one, on the CPU; any other as it is. All processes must ask."""
    if _is_zero3(value):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().cpu().clone()
    if not _is_piece(value):
        return value
    entire: Tensor = value.full_tensor()  # type: ignore[attr-defined]
    return entire.cpu()


def pieces_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's piece of a whole tensor, cut like another; as it is where that is whole."""
    if not _is_piece(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
    )


def _is_piece(value: Tensor) -> bool:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _is_zero3(value: Tensor) -> bool:
    # DeepSpeed's own test; ZeRO 1 and 2 leave parameters whole.
    return hasattr(value, "ds_id")
