"""Converts a GGUF file to a Hugging Face folder, once: later calls find the folder.

The folder lies below the user cache and is named by the digest of the file, or of all its parts.
It is published when every tensor of the file is proved to be in it, and not before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError
from fusestore.models.gguf_parts import PART_NAME, gguf_parts, one_gguf
from fusestore.models.saving import save_model
from fusestore.models.weight_files import refuse_lfs_pointer
from fusestore.models.weight_proof import load_whole, named_tensors
from fusestore.storage.gguf_file import gguf_field, read_once
from fusestore.storage.memory import file_digest
from fusestore.storage.packages import user_cache_folder
from fusestore.storage.replace import created_folder, scratch_folder
from fusestore.store.manifest import digest_bytes
from fusestore.tokenizers.gguf_tokenizer import gguf_tokenizer

_CONVERSION = "3"
"""Changes when a conversion gives another folder than before, so that older ones are not used."""

_ROPE_FACTORS = "rope_freqs.weight"


def convert_gguf(gguf: Path) -> Path:
    """Dequantize a GGUF file to a safetensors folder, once.

    The folder holds the float32 values that a GGUF reader computes; the caller may round them when
    loading. While it is made, all weights are in memory.

    Args:
        gguf: the file; of a file in parts (`NAME-00001-of-00003.gguf`) any of them.

    Raises:
        NotFoundError: a part is missing.
        InvalidInputError: the file is damaged, holds no causal language model, or lacks tensors.
        IncompatibleError: how the vocabulary splits text is not known.
        MissingDependencyError: the package `gguf` is not installed.
    """
    parts = gguf_parts(gguf.absolute())
    folder = _folder("models", parts)
    if folder.is_dir():
        return folder
    with one_gguf(parts) as (reader, whole), read_once(reader, whole):
        # First, because a vocabulary that is not understood is refused before weights are read.
        tokenizer = gguf_tokenizer(whole, reader)
        model = _load(reader, whole, gguf)
        with created_folder(folder) as temporary:
            save_model(model, temporary)
            tokenizer.save_pretrained(temporary)
    return folder


def convert_gguf_tokenizer(gguf: Path) -> Path:
    """Convert the tokenizer of a GGUF file to a folder, once; no weights are read.

    Args:
        gguf: the file; of a file in parts any of them.

    Raises:
        NotFoundError, InvalidInputError, IncompatibleError, MissingDependencyError: as
            `convert_gguf`.
    """
    parts = gguf_parts(gguf.absolute())
    folder = _folder("tokenizers", parts)
    if not folder.is_dir():
        refuse_lfs_pointer(parts[0])
        with created_folder(folder) as temporary:
            gguf_tokenizer(parts[0]).save_pretrained(temporary)
    return folder


def _folder(kind: str, parts: Sequence[Path]) -> Path:
    digest = digest_bytes(" ".join([_CONVERSION, *map(file_digest, parts)]).encode())
    name = PART_NAME.sub(r"\g<stem>.gguf", parts[0].name).removesuffix(".gguf")
    return user_cache_folder() / kind / f"{name}-{digest[:16]}"


def _load(reader: Any, whole: Path, gguf: Path) -> Any:  # noqa: ANN401 - both are untyped
    """The dequantized model with every tensor of a file.

    Args:
        reader: of the file.
        whole: the file.
        gguf: the file or the part that was asked for, for messages.
    """
    import torch
    import transformers

    # Newer versions can keep blocks as they are, and do so where they have kernels for them.
    kept_blocks = getattr(transformers, "GgufConfig", None)
    architecture = gguf_field(reader, "general.architecture")
    content = gguf_field(reader, "general.type")
    if content not in (None, "model"):
        raise InvalidInputError(
            f"{gguf} is a GGUF file of type {content!r}, not a model. Give the model's file."
        )
    with scratch_folder("empty") as empty:
        # Not the file's folder: transformers would use an adapter or a configuration beside it.
        loaded = load_whole(
            empty,
            f"{gguf} (a GGUF file of architecture {architecture!r})",
            gguf_file=str(whole),
            dtype=torch.float32,
            quantization_config=kept_blocks and kept_blocks(dequantize=True),
        )
    _check_all_read(reader, loaded, gguf)
    _check_scaling(reader, loaded.config, gguf)
    # save_pretrained refuses a model that has a quantization config, even a dequantized one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    return model


def _check_all_read(reader: Any, model: Any, gguf: Path) -> None:  # noqa: ANN401 - gguf is untyped
    """Check that the model has as many numbers as the file.

    For most architectures transformers leaves out tensors that it does not know, and fills the
    rest of a tensor that it makes of several with zeros, both without a report.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if getattr(quantizer, "supported", False):  # The newer reader reports them.
        return
    stored = {tensor.name: int(prod(tensor.shape)) for tensor in reader.tensors}
    if _take_scaled_rope(reader, model.config):
        del stored[_ROPE_FACTORS]
    held = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    if len(held) < len(model.state_dict()) and "token_embd.weight" in stored:
        # Some files have tied weights twice.
        stored.pop("output.weight", None)
    if sum(stored.values()) == sum(held.values()):
        return
    known = _known_names(reader, model)
    unread = sorted(name for name in stored if name not in known)
    missing = sorted(known - stored.keys() - {"output.weight"})
    raise InvalidInputError(
        f"{gguf} holds {sum(stored.values()):,} numbers, but the {type(model).__name__} that "
        f"transformers makes of it has {sum(held.values()):,}"
        + (f"; tensors that it does not read: {named_tensors(unread)}" if unread else "")
        + (f"; tensors that it does not find: {named_tensors(missing)}" if missing else "")
        + ". It would be another model. Give the model's Hugging Face folder instead."
    )


def _check_scaling(reader: Any, config: Any, gguf: Path) -> None:  # noqa: ANN401
    """Check that the metadata scales no rotary frequencies: transformers leaves that out."""
    prefix = f"{gguf_field(reader, 'general.architecture')}.rope.scaling"
    kind, factor = (gguf_field(reader, f"{prefix}.{name}") for name in ("type", "factor"))
    parameters = getattr(config, "rope_parameters", None) or {}
    tables = [table for table in (parameters, *parameters.values()) if isinstance(table, dict)]
    is_read = any(table.get("rope_type") not in (None, "default") for table in tables)
    if kind in (None, "none") or factor in (None, 1) or is_read:
        return
    raise InvalidInputError(
        f"{gguf} scales its rotary frequencies ({kind}, by {factor:g}), which transformers does "
        "not read from a GGUF file. It would be another model. Give the model's Hugging Face "
        "folder instead."
    )


def _take_scaled_rope(reader: Any, config: Any) -> bool:  # noqa: ANN401
    """Set the scaling of rotary frequencies that Llama 3.1 and its kin have, from its factors.

    transformers reads neither the factors nor the settings that llama.cpp made them of. The models
    differ in one setting, the largest factor; the others are as published (arXiv 2407.21783).

    Returns:
        Whether the file has factors and they are exactly what the settings give.
    """
    import numpy as np
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stored = next((tensor for tensor in reader.tensors if tensor.name == _ROPE_FACTORS), None)
    if stored is None:
        return False
    factors = torch.from_numpy(np.array(stored.data, np.float32))
    scaled = copy.deepcopy(config)
    scaled.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": config.rope_parameters["rope_theta"],
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    made, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    exponents = torch.arange(len(made)) / len(made)
    plain = scaled.rope_parameters["rope_theta"] ** -exponents
    if made.shape != factors.shape or not torch.allclose(made, plain / factors, rtol=1e-4):
        return False
    config.rope_parameters = scaled.rope_parameters
    return True


def _known_names(reader: Any, model: Any) -> set[str]:  # noqa: ANN401
    """Names that transformers gives the tensors of such a file."""
    from transformers import modeling_gguf_pytorch_utils

    reading: Any = modeling_gguf_pytorch_utils  # Only parts of it are typed.

    processor = reading.TENSOR_PROCESSORS.get(
        gguf_field(reader, "general.architecture"), reading.TensorProcessor
    )
    names = reading.get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    # Experts of a layer are one tensor there, without the ending.
    return {name if name.endswith((".weight", ".bias")) else f"{name}.weight" for name in names}
