"""Loading the target for training, and publishing the trained one as a Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusestore.errors import IncompatibleError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.receipts import FileRecord
from fusestore.train.lora import add_lora, save_adapter
from fusestore.train.settings import TrainSettings
from fusestore.train.trained_weights import put_weights

_TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)

_MAX_SHARD_SIZE = "2GB"


def check_model_folder(model_path: Path) -> None:
    """See that a model lies here.

    Raises:
        NotFoundError: the folder holds no model.
    """
    if not (model_path / "config.json").is_file():
        raise NotFoundError(
            f"Model folder {model_path} does not exist or has no config.json. Give a folder "
            "that save_pretrained wrote."
        )


def load_trainable(model_path: Path, settings: TrainSettings) -> Any:  # noqa: ANN401
    """The causal language model of a local folder with float32 weights, in training mode.

    With `settings.lora` its low-rank layers are in it, drawn from torch's global generator.

    Raises:
        IncompatibleError: transformers cannot build it as a causal language model, or it has no
            layers for LoRA.
        MissingDependencyError: peft is needed and not installed.
    """
    model = _load(model_path, settings)
    if settings.lora is not None:
        add_lora(model, settings.lora)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    return model


def _load(model_path: Path, settings: TrainSettings) -> Any:  # noqa: ANN401
    from transformers import AutoModelForCausalLM

    options = {}
    if settings.attn_implementation is not None:
        options["attn_implementation"] = settings.attn_implementation
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.float32, local_files_only=True, **options
        )
    except (ValueError, OSError, ImportError) as error:
        raise IncompatibleError(
            f"{model_path} cannot be loaded as a causal language model: {error}"
        ) from error
    return model


def publish_model(
    weights: Mapping[str, Tensor],
    model_path: Path,
    settings: TrainSettings,
    output: Location,
    staging: Path,
) -> dict[str, FileRecord]:
    """Publish weights, configuration and the base's tokenizer files, without the manifest.

    Args:
        weights: what was trained, as `fusestore.train.trained_weights` gives them.
        model_path: the folder that training started from.
        settings: of the run.
        output: the model folder to make.
        staging: a local folder for the files meanwhile; removed.

    Returns:
        What each published file holds, by name.
    """
    shutil.rmtree(staging, ignore_errors=True)
    try:
        # A copy of its own: what was trained may lie on devices, in pieces, or be another step's.
        model = _load(model_path, settings)
        handle = add_lora(model, settings.lora) if settings.lora is not None else None
        put_weights(model, weights)
        dtype = getattr(torch, settings.save_dtype)
        if handle is not None and settings.lora is not None and not settings.lora.merge:
            save_adapter(handle, staging, dtype)
        else:
            model = model if handle is None else handle.merge_and_unload()
            model.to(dtype).save_pretrained(staging, max_shard_size=_MAX_SHARD_SIZE)
        copy_tokenizer_files(model_path, staging)
        remove_abandoned(output)
        return publish_folder(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish_folder(folder: Path, output: Location) -> dict[str, FileRecord]:
    """Publish every file of a flat local folder; what each holds, by name."""
    files = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        publish(output / path.name, content)
        files[path.name] = FileRecord.of(content)
    return files


def copy_tokenizer_files(source: Path, folder: Path) -> None:
    """Copy what a tokenizer is made of from one model folder to another."""
    for pattern in _TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)
