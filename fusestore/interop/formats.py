"""The layouts that can be imported and exported, by name; a module is imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from fusestore.errors import InvalidInputError, did_you_mean

IMPORTS = {
    "numpy": "fusestore.interop.numpy_arrays:NumpyArrays",
    "fusellm": "fusestore.interop.fusellm:FuseLlm",
    "axolotl": "fusestore.interop.axolotl:Axolotl",
    "distillkit": "fusestore.interop.distillkit:DistillKit",
    "llama.cpp": "fusestore.interop.llama_cpp_base:LlamaCppBase",
    "maxtext": "fusestore.interop.maxtext:MaxText",
    "megatron": "fusestore.interop.megatron:Megatron",
    "vllm": "fusestore.interop.served_lines:ServedLines",
    "sglang": "fusestore.interop.served_lines:ServedLines",
}
"""`module:Class` of each layout that can be imported."""

EXPORTS = {
    "numpy": "fusestore.interop.export_arrays:export_numpy",
    "safetensors": "fusestore.interop.export_arrays:export_safetensors",
    "parquet": "fusestore.interop.export_tables:export_parquet",
    "datasets": "fusestore.interop.export_tables:export_datasets",
    "axolotl": "fusestore.interop.export_tables:export_axolotl",
    "distillkit": "fusestore.interop.export_distillkit:export_distillkit",
    "mds": "fusestore.interop.export_mds:export_mds",
}
"""`module:function` of each layout that a cache can be exported to."""


def check_format(name: str, known: dict[str, str], verb: str) -> None:
    """Check that a layout has this name.

    Raises:
        InvalidInputError: none has; the message names the nearest, and all.
    """
    if name not in known:
        raise InvalidInputError(
            f"{name!r} is no format to {verb}. {did_you_mean(name, known)} Formats are: "
            f"{', '.join(known)}."
        )


def load(entry: str) -> Any:  # noqa: ANN401 - a class or a function
    """What `module:name` names; the module is imported."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
