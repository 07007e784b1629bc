"""Low-rank adaptation (LoRA, arXiv 2106.09685) through peft: adding, merging and saving updates.

peft adds its layers to the model in place. So losses, chunked logits, guards, evaluations and
checkpoints work as in full fine-tuning, over fewer weights.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fusestore.errors import IncompatibleError, MissingDependencyError
from fusestore.store.manifest import canonical_json
from fusestore.train.settings import LoraSettings


def add_lora(model: Any, lora: LoraSettings) -> Any:  # noqa: ANN401 - transformers is untyped
    """Freeze a model and add trainable low-rank layers to it; returns peft's wrapper of it.

    Raises:
        MissingDependencyError: peft is not installed.
        IncompatibleError: the model has no modules of these names, or they are its embeddings.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError(
            "LoRA needs the package peft: pip install 'fusestore[lora]', or train all weights "
            f"({error})."
        ) from error
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = {name for name, module in model.named_modules() if module in embeddings}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # any number will do
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
    )
    try:
        with warnings.catch_warnings():
            # peft uses deprecated names of transformers.
            warnings.simplefilter("ignore", FutureWarning)
            handle = get_peft_model(model, config)
    except ValueError as error:
        raise _no_modules(lora, linear, str(error)) from error
    targeted = set(handle.targeted_module_names)
    for ending in lora.target_modules:
        if not any(f".{name}".endswith(f".{ending}") for name in targeted):
            raise _no_modules(lora, linear, f"{ending!r} is not among them")
    if targeted & tied:
        raise IncompatibleError(
            f"lora.target_modules names {sorted(targeted & tied)}: embeddings and the output head "
            "may be one tensor and are not adapted. Name other layers, or none to adapt all linear "
            "layers."
        )
    return handle


def save_adapter(handle: Any, folder: Path, dtype: torch.dtype) -> None:  # noqa: ANN401
    """Write the adapter alone as `PeftModel.from_pretrained(base, folder)` reads it.

    Unlike peft's own writer it leaves out the base's path, and sorts sets.
    """
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(handle, save_embedding_layers=False)
    folder.mkdir(parents=True)
    save_file(
        {name: value.detach().to(dtype).contiguous() for name, value in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        **handle.peft_config["default"].to_dict(),
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    ordered = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    (folder / "adapter_config.json").write_bytes(canonical_json(ordered))


def _no_modules(lora: LoraSettings, linear: list[str], why: str) -> IncompatibleError:
    names = sorted({name.rpartition(".")[2] for name in linear})
    return IncompatibleError(
        f"LoRA cannot be added to {list(lora.target_modules) or 'the linear layers'} of this model "
        f"({why}). Its linear layers are called {', '.join(names) or '(it has none)'}."
    )
