"""Loading a model for training, and publishing the trained one as a Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusestore.models.model import Model
from fusestore.models.saving import save_model
from fusestore.storage.disk_errors import disk_errors
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.artifact_files import FINGERPRINT_FILE
from fusestore.store.fingerprints import write_fingerprint
from fusestore.store.manifest import Manifest
from fusestore.store.receipts import FileRecord
from fusestore.train.manifest import TrainingPlan
from fusestore.train.settings import TrainSettings
from fusestore.train.student.base_files import copy_base_files
from fusestore.train.student.lora import add_lora, save_adapter


def load_trainable(model: Model, settings: TrainSettings) -> Any:  # noqa: ANN401
    """The causal language model with float32 weights on the CPU, in training mode.

    Of a multimodal model, only what text passes through is trained. With `settings.lora` it has
    low-rank layers, initialized from torch's global generator.

    Raises:
        InvalidInputError: transformers cannot build it as a causal language model.
        IncompatibleError: it has no layers for LoRA.
        MissingDependencyError: peft is needed and not installed.
    """
    trainable = _load(model, settings)
    if settings.lora is not None:
        add_lora(trainable, settings.lora)
    if settings.gradient_checkpointing:
        trainable.gradient_checkpointing_enable({"use_reentrant": False})
    trainable.train()
    return trainable


def _load(model: Model, settings: TrainSettings) -> Any:  # noqa: ANN401
    loaded = model.load(dtype="float32", device="cpu", attention=settings.attn_implementation)
    _freeze_unless_for_text(loaded)
    return loaded


def _freeze_unless_for_text(model: Any) -> None:  # noqa: ANN401
    """Freeze the parts of a multimodal model that text does not reach, such as a vision tower.

    They would get no gradient, for which data parallelism waits, and have no optimizer state.
    """
    if model.config.get_text_config() is model.config:
        return
    modules = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    reached = {value for module in modules for value in module.parameters()}
    for value in model.parameters():
        value.requires_grad_(value in reached)


def publish_model(
    weights: Mapping[str, Tensor],
    base: Model,
    plan: TrainingPlan,
    output: Location,
    staging: Path,
) -> dict[str, FileRecord]:
    """Publish the plan as fingerprint, weights, configuration and the base's other files.

    Args:
        weights: what was trained; see `trained_weights`.
        base: the model that training started from.
        plan: of the run; its fingerprint.
        output: the model folder to make.
        staging: a local folder for the files until they are published; removed afterwards.

    Returns:
        Size and checksum of each published file, by name.
    """
    settings = plan.settings
    shutil.rmtree(staging, ignore_errors=True)
    try:
        # Loaded again: the trained model may be on devices, sharded, or of another step.
        model = _load(base, settings)
        handle = add_lora(model, settings.lora) if settings.lora is not None else None
        load_weights(model, weights)
        dtype = getattr(torch, settings.save_dtype)
        with disk_errors(staging, "The model"):
            if handle is not None and settings.lora is not None and settings.lora.adapter_only:
                save_adapter(handle, staging, dtype)
            else:
                model = model if handle is None else handle.merge_and_unload()
                save_model(model.to(dtype), staging)
            copy_base_files(base.folder, staging, with_code=base.trust_remote_code)
        return publish_folder(staging, output, plan)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish_folder(folder: Path, output: Location, fingerprint: Manifest) -> dict[str, FileRecord]:
    """Publish the fingerprint, then every file of a local folder.

    Args:
        folder: the model's files, without fingerprint and manifest.
        output: the model folder to make.
        fingerprint: what the weights depend on.

    Returns:
        Size and checksum of each published file, by its path in the folder.

    Raises:
        FingerprintMismatchError: `output` holds what is left of another model.
    """
    remove_abandoned(output)
    write_fingerprint(output, fingerprint, f"Model {output.name!r}")
    files = {FINGERPRINT_FILE: FileRecord.of((output / FINGERPRINT_FILE).read_bytes())}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        publish(output / name, content)
        files[name] = FileRecord.of(content)
    return files


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The model's trainable parameters (tied tensors once) and persistent buffers, by name."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    persistent = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in persistent}
    return {**parameters, **buffers}


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the weights that `trained_weights` returned, in a model that is not sharded.

    Raises:
        KeyError, RuntimeError: weights are missing, or of another shape.
    """
    with torch.no_grad():
        for name, value in trained_weights(model).items():
            value.copy_(weights[name])
