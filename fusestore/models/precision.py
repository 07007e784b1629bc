"""The floating-point format that a model runs in, where the settings say `auto`.

`auto` is bfloat16 where the device computes in it by instructions of its own, and float32 anywhere
else: emulated bfloat16 is up to 80 times slower than float32. The choice asks what the device can
do and never measures time, so that it is the same whatever else the machine is doing. Whoever makes
an artifact stores the chosen format with it; later workers read it there.
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple, get_args

from fusestore.progress import Reporter

Dtype = Literal["float32", "bfloat16", "float16"]
"""What a model that captures runs in."""

Precision = Literal["float32", "bfloat16"]
"""What a model of float32 weights computes its matrix products in."""

DtypeSetting = Literal["auto", "float32", "bfloat16", "float16"]
PrecisionSetting = Literal["auto", "float32", "bfloat16"]

DTYPES: tuple[str, ...] = get_args(Dtype)

_X86 = ("avx512_bf16", "amx_bf16")
_ARM = ("bf16",)

_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""oneDNN reads the first of them that is set."""

_ISAS_WITHOUT_BFLOAT16 = frozenset({"AVX512_CORE", "AVX512_CORE_VNNI"})
"""Limits under which oneDNN calls bfloat16 supported, and emulates it."""


class PrecisionChoice(NamedTuple):
    """What was chosen for a device, and why."""

    value: Precision
    reason: str


def choose_precision(device: str) -> PrecisionChoice:
    """Choose bfloat16 where the device has it in hardware, float32 anywhere else.

    Args:
        device: as torch names it: `cpu`, `cuda`, `cuda:1`, `mps`, …
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        lacking = _lacking_on_cpu()
        if lacking is not None:
            return PrecisionChoice("float32", lacking)
        return PrecisionChoice("bfloat16", "this processor has bfloat16 instructions")
    if kind == "cuda":
        if _cuda_is_native(device):
            return PrecisionChoice("bfloat16", "this GPU computes in bfloat16")
        return PrecisionChoice("float32", "this GPU does not compute in bfloat16")
    # Of Apple's GPUs only later ones compute in bfloat16, and torch does not tell which one it is.
    return PrecisionChoice("float32", f"nothing tells whether {kind} computes in bfloat16")


def settle_precision(setting: PrecisionSetting, device: str, reporter: Reporter) -> Precision:
    """The setting, or what it stands for on the device where it is `auto`; then that is said."""
    if setting != "auto":
        return setting
    choice = choose_precision(device)
    reporter.line(f"precision {choice.value} ({choice.reason})")
    return choice.value


def _cuda_is_native(device: str) -> bool:
    import torch

    with torch.cuda.device(torch.device(device)):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _lacking_on_cpu() -> str | None:
    """Why matrix products do not run by bfloat16 instructions here; None where they do."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    on_x86 = any(capabilities.get(name, False) for name in _X86)
    if not on_x86 and not any(capabilities.get(name, False) for name in _ARM):
        return "this processor has no bfloat16 instructions"
    level = torch.backends.cpu.get_cpu_capability()
    if on_x86 and not level.startswith("AVX512"):
        return f"torch is limited to {level}, which has no bfloat16 instructions"
    # Products in bfloat16 are oneDNN's; without it torch computes them one number at a time.
    if not torch._C._has_mkldnn or not torch.backends.mkldnn.enabled:
        return "this torch runs without oneDNN, whose bfloat16 instructions it would use"
    limits = [os.environ[name] for name in _ISA_VARIABLES if name in os.environ]
    limited = on_x86 and bool(limits) and limits[0].upper() in _ISAS_WITHOUT_BFLOAT16
    if limited or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN is kept from this processor's bfloat16 instructions"
    return None
