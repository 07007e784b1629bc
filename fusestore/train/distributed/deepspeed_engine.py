"""Training under DeepSpeed: ZeRO 1, 2 and 3, whose engine clips gradients and steps by itself.

Weights stay float32 and autocast is our own, as in the other engines. Checkpoints are our own too,
so a run can resume under another configuration; DeepSpeed's pickles are not used.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fusestore.errors import IncompatibleError
from fusestore.losses.row_losses import FusionTerms
from fusestore.train.optimizer import adamw
from fusestore.train.settings import TrainSettings
from fusestore.train.student.student import Student

_STATE = ("exp_avg", "exp_avg_sq")


def check_deepspeed(config: dict[str, Any], settings: TrainSettings, num_processes: int) -> None:
    """Check that a DeepSpeed configuration does not contradict the settings, and complete it.

    Args:
        config: DeepSpeed's, as accelerate holds it; values that are `auto` or missing are set.
        settings: of the run.
        num_processes: of the run.

    Raises:
        IncompatibleError: it has an optimizer, a schedule or a precision of its own, a batch size
            or norm that differs from the settings', no ZeRO, or its state on NVMe.
    """
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise IncompatibleError(
            f"DeepSpeed's configuration has ZeRO stage {zero.get('stage')}; 1, 2 and 3 are "
            "supported. For whole weights on every device use plain data parallelism "
            "(distributed_type: MULTI_GPU)."
        )
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise IncompatibleError(
                f"DeepSpeed's configuration has a section '{section}', but the training "
                "settings define AdamW and the learning rate. Remove the section."
            )
    for section in ("fp16", "bf16"):
        if config.get(section, {}).get("enabled") is True:
            raise IncompatibleError(
                f"DeepSpeed's configuration has {section}.enabled: true, but weights are kept in "
                "float32, and `precision` in the training settings selects the format of matrix "
                "products. Remove it, or set it to 'auto'."
            )
    for section in ("offload_optimizer", "offload_param"):
        if zero.get(section, {}).get("device") == "nvme":
            raise IncompatibleError(
                f"DeepSpeed's configuration has {section} on nvme, which checkpoints cannot read. "
                "Offload to the CPU instead."
            )
    accumulation = settings.gradient_accumulation
    _set(config, "train_micro_batch_size_per_gpu", settings.batch_size, "batch_size")
    if config.get("gradient_accumulation_steps") != 1:
        # accelerate sets 1 where the configuration sets nothing.
        _set(config, "gradient_accumulation_steps", accumulation, "gradient_accumulation")
    _set(
        config,
        "train_batch_size",
        settings.batch_size * accumulation * num_processes,
        "batch_size · gradient_accumulation · processes",
    )
    # 0 is no clipping in DeepSpeed too.
    _set(config, "gradient_clipping", settings.max_grad_norm, "max_grad_norm")
    # The training loop divides by the positions of a step, as with the other engines.
    config["gradient_accumulation_steps"] = 1
    del config["train_batch_size"]


def _set(config: dict[str, Any], key: str, value: float, setting: str) -> None:
    configured = config.get(key, "auto")
    if configured not in ("auto", value):
        raise IncompatibleError(
            f"DeepSpeed's configuration has {key}: {configured}, but {setting}, by the training "
            f"settings, is {value}. Make them equal, or set {key} to 'auto'."
        )
    config[key] = value


class DeepSpeedEngine:
    """The engine that `deepspeed.initialize` makes; see `distributed.engine.Engine`."""

    def __init__(
        self,
        accelerator: Any,  # noqa: ANN401 - accelerate is untyped
        student: Student,
        settings: TrainSettings,
    ) -> None:
        # DeepSpeed warns of its own calls at every step.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        names, optimizer = adamw(student.model, settings)
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        self._parameters = dict(zip(names, parameters, strict=True))
        self._engine, _ = accelerator.prepare(student, optimizer)
        self._student = student
        self._device = accelerator.device

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW over this process's shards."""
        optimizer: torch.optim.Optimizer = self._engine.optimizer.optimizer
        return optimizer

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """See `Engine`."""
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def forward(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        """See `Engine`."""
        terms: FusionTerms = self._engine(batch)
        return terms

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        # Not through accelerate, which would step at once.
        self._engine.backward(loss)

    def step(self, learning_rate: float, check_norm: Callable[[float], None]) -> float:
        """See `Engine`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        # Where float32 gradients are not finite, DeepSpeed skips the step and the norm is infinity.
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        check_norm(norm)
        return norm

    def optimizer_state(self) -> dict[str, Tensor]:
        """See `Engine`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_state()
        [step] = {float(entry["step"]) for entry in self._optimizer.state.values()}
        tensors = {}
        for name, parameter in self._parameters.items():
            tensors[f"step/{name}"] = torch.tensor(step)
            for key in _STATE:
                value = safe_get_full_optimizer_state(parameter, key)
                tensors[f"{key}/{name}"] = value.cpu()
        return tensors

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._create_state()
        self._link_state()
        for name, parameter in self._parameters.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            for key in _STATE:
                value = tensors[f"{key}/{name}"]
                if value.shape != shape:
                    raise RuntimeError(f"{key} of {name} has shape {value.shape}, not {shape}")
                safe_set_full_optimizer_state(parameter, value.to(self._device), key)
        [step] = {int(tensors[f"step/{name}"]) for name in self._parameters}
        for entry in self._optimizer.state.values():
            if torch.is_tensor(entry["step"]):
                entry["step"].fill_(step)
            else:
                entry["step"] = step

    def _create_state(self) -> None:
        """Make the optimizer create its state, by a step with gradient and learning rate zero."""
        with self.micro_batch(last=True):
            ids = torch.zeros(1, 2, dtype=torch.int64, device=self._device)
            logits = self._student.with_model(lambda model: model(input_ids=ids).logits)
            self.backward(logits.float().sum() * 0.0)
        self.step(0.0, lambda _: None)

    def _link_state(self) -> None:
        """Link the parameters to their optimizer state in ZeRO's flat tensors.

        ZeRO 1 and 2 do that by themselves after the first step of the first parameter group, when
        the other groups have no state yet.
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self._engine.optimizer
        if hasattr(zero, "single_partition_of_fp32_groups"):
            flat_groups = zero.single_partition_of_fp32_groups
            for parameters, flat in zip(zero.bit16_groups, flat_groups, strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, self._optimizer.state)
