"""The `Accelerator` of a run, by the configuration that its launcher sets."""

from __future__ import annotations

import atexit
import gc
import os
from typing import Any

from fusestore.errors import IncompatibleError, MissingDependencyError
from fusestore.train.distributed.deepspeed_engine import check_deepspeed
from fusestore.train.settings import TrainSettings


def make_accelerator() -> Any:  # noqa: ANN401 - accelerate is untyped
    """An accelerator for one process, data parallelism, FSDP2, or DeepSpeed's ZeRO.

    A process that fails leaves its process group as it is: to end it might wait for the others.

    Raises:
        IncompatibleError: the configuration is for Megatron-LM, FSDP1 or FSDP units by size,
            accelerate itself refuses it, or it does not join the processes of the launcher.
        MissingDependencyError: it is for DeepSpeed, which is not installed.
    """
    import torch
    from accelerate import Accelerator, DeepSpeedPlugin, DistributedType
    from accelerate import FullyShardedDataParallelPlugin as FsdpPlugin
    from accelerate.utils import disable_fsdp_ram_efficient_loading

    if _asks_for("ACCELERATE_USE_MEGATRON_LM"):
        raise IncompatibleError(
            "Training under Megatron-LM is not supported: it has its own models. Use FSDP "
            "(fsdp_version: 2), DeepSpeed, or plain data parallelism in accelerate's configuration."
        )
    atexit.unregister(_end_process_group)
    # Every process checks the whole model before it is sharded.
    if _asks_for("ACCELERATE_USE_FSDP"):
        disable_fsdp_ram_efficient_loading()
    started = _number_of_processes()
    # By itself accelerate joins processes on CPUs only if its own launcher started them; those of
    # torchrun would each train alone, and publish the same model.
    cpu = {"cpu": True} if started > 1 and not torch.accelerator.is_available() else {}
    try:
        accelerator = Accelerator(mixed_precision="no", **cpu)
    except ImportError as error:
        if not _asks_for("ACCELERATE_USE_DEEPSPEED"):
            raise
        raise MissingDependencyError(
            "accelerate's configuration asks for DeepSpeed: pip install 'fusestore[deepspeed]', "
            f"or use FSDP (fsdp_version: 2) ({error})."
        ) from error
    except ValueError as error:
        raise IncompatibleError(f"accelerate refuses its configuration: {error}") from error
    if accelerator.num_processes != started:
        raise IncompatibleError(
            f"The launcher started {started} processes (WORLD_SIZE), but accelerate joins "
            f"{accelerator.num_processes} on {accelerator.device}: each would train alone. Set "
            "ACCELERATE_USE_CPU=true to train on CPUs, or start one process."
        )
    state = accelerator.state
    # accelerate reads these configurations on devices only; both work on CPUs as well.
    on_cpus = state.distributed_type == DistributedType.MULTI_CPU
    if on_cpus and _asks_for("ACCELERATE_USE_FSDP"):
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FsdpPlugin()
    if on_cpus and _asks_for("ACCELERATE_USE_DEEPSPEED"):
        plugin = DeepSpeedPlugin()
        plugin.set_mixed_precision("no")
        plugin.select(_from_accelerator_state=True)
        state.distributed_type = DistributedType.DEEPSPEED
        state.deepspeed_plugins = plugin
    if state.distributed_type == DistributedType.FSDP:
        check_fsdp(state.fsdp_plugin)
    if state.distributed_type == DistributedType.DEEPSPEED:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # Otherwise transformers would shard, under ZeRO 3, every model that it loads.
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    return accelerator


def complete_configuration(
    accelerator: Any,  # noqa: ANN401 - accelerate is untyped
    settings: TrainSettings,
) -> None:
    """Set what accelerate's configuration leaves to the settings of the run.

    Raises:
        IncompatibleError: its DeepSpeed section contradicts the settings.
    """
    from accelerate import DistributedType

    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        check_deepspeed(config, settings, accelerator.num_processes)


def end_process_group_at_exit() -> None:
    """End the process group, if there is one, before the interpreter ends.

    A thread of gloo that frees a tensor later than that aborts the process (pytorch issue 190489),
    and NCCL warns of a process group that nobody ended.
    """
    atexit.register(_end_process_group)


def _end_process_group() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Models that data parallelism wrapped hold the group, too.
        gc.collect()
        torch.distributed.destroy_process_group()


def check_fsdp(plugin: Any) -> None:  # noqa: ANN401
    """Check that the trainer supports accelerate's FSDP settings.

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
            "FSDP units by size could separate the output head from the loss, which needs its "
            "weights gathered. Set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP in accelerate's "
            "configuration."
        )


def _number_of_processes() -> int:
    """Processes that a launcher started; 1 without one."""
    if "LOCAL_RANK" not in os.environ:
        return 1
    return int(os.environ.get("WORLD_SIZE", "1"))


def _asks_for(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true")
