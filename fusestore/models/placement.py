"""Where the parts of a model lie: on one device, on several with offload, or one part per process.

accelerate's hooks move what a part reads to the device that computes it, and the model's result to
the device of its inputs. So inputs are given on the device of the output head (`io_device`), and
logits, which are by far the largest result, stay where they were computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusestore.errors import IncompatibleError

if TYPE_CHECKING:
    import torch

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""accelerate's rules by which layers are distributed over devices."""

LOWEST_VERSIONS = {
    # Of weights that stay on disk, earlier ones make tensors without numbers.
    "device_map": ("accelerate", "1.15"),
    # Earlier ones give each process its own part of the logits.
    "tensor_parallel": ("transformers", "5.16.1"),
}
"""What a placement needs beyond what is installed with fusestore."""

_LIMIT = re.compile(r"(?P<device>\d+|cpu)=(?P<number>\d+(\.\d+)?)(?P<unit>[KMGT]i?B|B)?")
_POWERS = {"B": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a model that does not fit on one device is spread; by default it lies on one.

    Attributes:
        device_map: rule by which layers are distributed over the devices of this process. What
            fits on none of them goes to the processor's memory, and the rest stays on disk.
        max_memory: bytes that weights may take, by GPU number or `cpu`. Devices that it does not
            name are not used, except that weights may stay on disk.
        offload_folder: where weights on disk are written that the model's own files do not hold in
            the form that is needed.
        tensor_parallel: each process of a started group holds a part of every weight.
    """

    device_map: DeviceMap | None = None
    max_memory: dict[str, int] = field(default_factory=dict)
    offload_folder: Path | None = None
    tensor_parallel: bool = False

    @property
    def on_one_device(self) -> bool:
        """Whether the whole model lies on one device."""
        return self.device_map is None and not self.tensor_parallel


def parse_memory(limits: Iterable[str]) -> dict[str, int]:
    """Bytes by device from limits such as `0=70GiB` or `cpu=200GB`.

    Raises:
        ValueError: a limit has another form, or a device has two limits.
    """
    parsed: dict[str, int] = {}
    for limit in limits:
        match = _LIMIT.fullmatch(limit)
        if match is None:
            raise ValueError(
                f"{limit!r} is no memory limit: expected DEVICE=SIZE with a GPU number or cpu, as "
                "in 0=70GiB or cpu=200GB"
            )
        device = match["device"] if match["device"] == "cpu" else str(int(match["device"]))
        if device in parsed:
            raise ValueError(f"device {device} has two memory limits")
        parsed[device] = memory_bytes(match["number"], match["unit"] or "B")
    return parsed


def memory_bytes(number: str, unit: str) -> int:
    """Bytes of an amount of memory: `GiB` and `G` are powers of 1024, `GB` is a power of 1000."""
    base = 1000 if unit.endswith("B") and not unit.endswith("iB") else 1024
    return int(float(number) * base ** _POWERS[unit[0]])


def loading_options(placement: Placement, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that put a model where it belongs.

    Args:
        placement: of the model.
        device: where it lies if on one device, as torch names it.

    Raises:
        IncompatibleError: what is installed cannot do it.
    """
    if placement.tensor_parallel:
        _check_version("tensor_parallel")
        from transformers.distributed.configuration_utils import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    if placement.device_map is None:
        # Straight to the device: the model need not fit into the processor's memory.
        return {} if device == "cpu" else {"device_map": {"": device}}
    _check_version("device_map")
    options: dict[str, Any] = {"device_map": placement.device_map}
    if placement.max_memory:
        options["max_memory"] = {
            int(name) if name.isdecimal() else name: limit
            for name, limit in placement.max_memory.items()
        }
    if placement.offload_folder is not None:
        options["offload_folder"] = str(placement.offload_folder)
    return options


def is_supported(setting: str) -> bool:
    """Whether what is installed can place a model by a setting of `LOWEST_VERSIONS`."""
    package, lowest = LOWEST_VERSIONS[setting]
    return _numbers(version(package)) >= _numbers(lowest)


def _check_version(setting: str) -> None:
    if not is_supported(setting):
        package, lowest = LOWEST_VERSIONS[setting]
        raise IncompatibleError(
            f"{setting} needs {package} {lowest} or later, and {version(package)} is installed. "
            f"Update it: pip install '{package}>={lowest}'."
        )


def _numbers(of_version: str) -> tuple[int, ...]:
    """The release that a version is, or is before."""
    return tuple(int(number) for number in re.findall(r"\d+", of_version)[:3])


def check_plan(config: Any, name: str) -> None:  # noqa: ANN401 - transformers is untyped
    """Check that transformers can divide the weights of an architecture among processes.

    Raises:
        IncompatibleError: it has no plan.
    """
    parts = (config, config.get_text_config())
    if not any(getattr(part, "base_model_tp_plan", None) for part in parts):
        raise IncompatibleError(
            f"transformers has no plan by which the weights of {name} ({config.model_type}) are "
            "divided among processes. Leave tensor_parallel out, and use device_map: --device-map "
            "auto distributes its layers over the GPUs."
        )


def io_device(model: Any) -> torch.device:  # noqa: ANN401 - transformers is untyped
    """The device on which a model is given its inputs, and on which its logits lie.

    Of a model that is spread over devices that of the output head, which is usually the last.
    Weights that are offloaded (`meta`) are moved to the device that computes with them.
    """
    head = model.get_output_embeddings()
    modules = [module for module in (head, model) if module is not None]
    for module in modules:
        for hook in _hooks(module):
            if getattr(hook, "execution_device", None) is not None:
                return _device(hook.execution_device)
    for module in modules:
        for parameter in module.parameters():
            if parameter.device.type != "meta":
                device: torch.device = parameter.device
                return device
    return _device("cpu")


def describe_placement(model: Any) -> str | None:  # noqa: ANN401
    """How many parts of a model lie on which device; None for a model on one device."""
    parts = getattr(model, "hf_device_map", None) or {}
    if len(set(parts.values())) < 2 and "disk" not in parts.values():
        return None
    devices = [str(device) for device in parts.values()]
    names = [f"{_named(name)} {devices.count(name)}" for name in dict.fromkeys(devices)]
    return f"parts of the model by device: {', '.join(names)}"


def _named(device: str) -> str:
    return f"GPU {device}" if device.isdecimal() else device


def _device(device: Any) -> torch.device:  # noqa: ANN401 - a number, a name or a device
    import torch

    return torch.device(device)


def _hooks(module: Any) -> Iterator[Any]:  # noqa: ANN401
    """Hooks of accelerate on a module."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        # Several hooks of one module are kept as one.
        yield from getattr(hook, "hooks", (hook,))
