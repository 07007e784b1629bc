"""Processes as accelerate's configuration has them: one, data parallel, or FSDP2's pieces.

Under FSDP every process holds a piece of each weight and moment (a `DTensor`). Checkpoints and
models are written whole, so that they do not know how the weights were cut.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from fusestore.errors import IncompatibleError


def make_accelerator() -> Any:  # noqa: ANN401 - accelerate is untyped
    """The accelerator that the launcher's configuration asks for; autocast is ours.

    Raises:
        IncompatibleError: it asks for DeepSpeed, Megatron-LM, FSDP1, or pieces by size.
    """
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
    from accelerate.utils import disable_fsdp_ram_efficient_loading

    for name, value in (("DeepSpeed", "DEEPSPEED"), ("Megatron-LM", "MEGATRON_LM")):
        if _asks_for(f"ACCELERATE_USE_{value}"):
            raise IncompatibleError(
                f"Training under {name} is not supported: its engine makes steps of its own, which "
                "the guards, the checkpoints and an exact resume know nothing of. Use FSDP "
                "(fsdp_version: 2) or plain data parallelism in accelerate's configuration."
            )
    if not _asks_for("ACCELERATE_USE_FSDP"):
        return Accelerator(mixed_precision="no")
    # Every process looks at the whole model once before it is cut in pieces.
    disable_fsdp_ram_efficient_loading()
    accelerator = Accelerator(mixed_precision="no")
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate reads its FSDP configuration on devices only; torch shards on CPUs as well.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if accelerator.distributed_type == DistributedType.FSDP:
        check_fsdp(accelerator.state.fsdp_plugin)
    return accelerator


def check_fsdp(plugin: Any) -> None:  # noqa: ANN401
    """See that accelerate's FSDP settings are ones that the trainer can follow.

    Raises:
        IncompatibleError: FSDP1, or units by size.
    """
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    if plugin.fsdp_version != 2:
        raise IncompatibleError(
            "Training under FSDP1 is not supported: it flattens weights, so that checkpoints could "
            "not name them. Set fsdp_version: 2 in accelerate's configuration."
        )
    if plugin.auto_wrap_policy is size_based_auto_wrap_policy:
        raise IncompatibleError(
            "FSDP units by size could part the output head from the loss, which needs its weights "
            "whole. Set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP in accelerate's "
            "configuration."
        )


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether its weights are in pieces, so that a forward pass takes all processes."""
    return any(_is_piece(value) for value in module.parameters())


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


def _asks_for(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true")
