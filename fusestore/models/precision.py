"""The floating-point format of a model if the settings say `auto`.

`auto` is bfloat16 if the device has instructions for it, else float32: emulated bfloat16 is up to
80 times slower than float32. The choice depends on what the device supports, never on measured
times, so that it does not change with the load of the machine. The first writer of an artifact
stores the chosen format with it, and later workers read it from the artifact.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from fusestore.progress import Reporter

Dtype = Literal["float32", "bfloat16", "float16"]
"""Format of a model that captures."""

Precision = Literal["float32", "bfloat16"]
"""Format in which a model with float32 weights computes its matrix products."""

DtypeSetting = Literal["auto", "float32", "bfloat16", "float16"]
PrecisionSetting = Literal["auto", "float32", "bfloat16"]

DTYPES: tuple[str, ...] = get_args(Dtype)

_X86 = ("avx512_bf16", "amx_bf16")
_ARM = ("bf16",)

_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""oneDNN reads the first of these variables that is set."""

_ISAS_WITHOUT_BFLOAT16 = frozenset({"AVX512_CORE", "AVX512_CORE_VNNI"})
"""Limits under which oneDNN reports bfloat16 as supported but emulates it."""


class PrecisionChoice(NamedTuple):
    """The format chosen for a device, and the reason."""

    value: Precision
    reason: str


def choose_precision(device: str) -> PrecisionChoice:
    """Choose bfloat16 if the device has it in hardware, else float32.

    Args:
        device: as torch names it: `cpu`, `cuda`, `cuda:1`, `mps`, …
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        problem = _cpu_problem()
        if problem is not None:
            return PrecisionChoice("float32", problem)
        return PrecisionChoice("bfloat16", "this processor has bfloat16 instructions")
    if kind == "cuda":
        if _cuda_is_native(device):
            return PrecisionChoice("bfloat16", "this GPU computes in bfloat16")
        return PrecisionChoice("float32", "this GPU does not compute in bfloat16")
    # Only later GPUs of Apple compute in bfloat16, and torch does not report the model.
    return PrecisionChoice("float32", f"torch does not report whether {kind} computes in bfloat16")


def settle_precision(setting: PrecisionSetting, device: str, reporter: Reporter) -> Precision:
    """The setting or, for `auto`, the choice for the device, which is reported."""
    if setting != "auto":
        return setting
    choice = choose_precision(device)
    reporter.line(f"precision {choice.value} ({choice.reason})")
    return choice.value


def _cuda_is_native(device: str) -> bool:
    import torch

    with torch.cuda.device(torch.device(device)):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_capabilities() -> Mapping[str, bool | int | str]:
    """What torch says of this processor; older versions say it only of the instructions of x86."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
    }


def _cpu_problem() -> str | None:
    """Why matrix products do not use bfloat16 instructions of this processor; None if they do."""
    import torch

    capabilities = _cpu_capabilities()
    on_x86 = any(capabilities.get(name, False) for name in _X86)
    if not on_x86 and not any(capabilities.get(name, False) for name in _ARM):
        return "this processor has no bfloat16 instructions"
    level = torch.backends.cpu.get_cpu_capability()
    if on_x86 and not level.startswith("AVX512"):
        return f"torch is limited to {level}, which has no bfloat16 instructions"
    # oneDNN computes products in bfloat16; torch without it computes them one number at a time.
    if not torch._C._has_mkldnn or not torch.backends.mkldnn.enabled:
        return "this torch runs without oneDNN, which has the bfloat16 products"
    limits = [os.environ[name] for name in _ISA_VARIABLES if name in os.environ]
    limited = on_x86 and bool(limits) and limits[0].upper() in _ISAS_WITHOUT_BFLOAT16
    if limited or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN does not use this processor's bfloat16 instructions"
    return None
