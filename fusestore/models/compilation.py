"""Compiles the layers of a model with torch.compile.

Layers, not the whole backbone: all layers of a model have one code, which is compiled once, in
seconds instead of minutes, and the parts between them (masks, positions, the cut of hidden states
into chunks) stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fusestore.models.logits import is_out_of_memory, whole_logits
from fusestore.models.placement import io_device

_PROBE = (2, 16)
"""Documents and tokens of the pass that compiles the layers."""


def compile_layers(model: Any) -> str:  # noqa: ANN401 - transformers is untyped
    """Compile a model's layers for inputs of any shape, or leave them as they were.

    Returns:
        What was done, for people.
    """
    layers = repeated_layers(model)
    if not layers:
        return "not compiled: it has no repeated layers"
    for layer in layers:
        layer.compile(dynamic=True)
    ids = torch.zeros(_PROBE, dtype=torch.int64, device=io_device(model))
    try:
        _cache_by_processor()
        with torch.inference_mode():
            whole_logits(model, ids, torch.ones_like(ids))
    except Exception as error:
        # Compilers and what they compile may raise anything.
        if is_out_of_memory(error):
            raise
        for layer in layers:
            layer._compiled_call_impl = None
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"not compiled: torch.compile failed ({type(error).__name__}: {reason})"
    return f"{len(layers)} layers compiled"


def _cache_by_processor() -> None:
    """Keep what is compiled for some instructions and threads from processes that have others.

    torch 2.13 caches kernels' sources by what they compute. Those of AVX2 step by 8 numbers; where
    they are compiled again for AVX-512, each step writes 16: rows are wrong, and memory is damaged.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    tag = f" [{pick_vec_isa()}, {torch.get_num_threads()} threads]"
    if tag not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += tag


def repeated_layers(model: Any) -> list[nn.Module]:  # noqa: ANN401
    """The outermost modules that a model repeats, such as its decoder layers."""
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
    }
    outermost = [
        module
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    ]
    return [layer for module in outermost for layer in module]
