"""Folders that hold no causal language model: what they hold, and what to give instead.

The answer comes from file names and config.json, before weights are downloaded or loaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.models.weight_files import json_object

_CAUSAL = "Give a causal language model (a folder with an architecture …ForCausalLM)."

_HEADS = (
    (r"For(Sequence|Token|Image|Audio)Classification$|For.*QuestionAnswering$|ForMultipleChoice$"
     r"|ForNextSentencePrediction$|RewardModel$",
     "is a classification model ({}): it gives classes of a text, and no next-token distributions. "
     "Give the causal language model that it was made from."),
    (r"ForMaskedLM$|ForPreTraining$",
     "is a masked language model ({}): each of its distributions has read the text on both sides. "
     + _CAUSAL),
    (r"(?<!LMHead)(?<!DoubleHeads)Model$",
     "is a model without an output head ({}): it gives embeddings, and no next-token "
     "distributions. Give the same model with its head (an architecture …ForCausalLM)."),
)  # fmt: skip
"""Endings of class names, and sentences about a folder that names such a class."""


def check_folder(folder: Path, name: str | None = None) -> None:
    """Check that a folder may hold a causal language model.

    Args:
        folder: a local folder; its weights need not be there yet.
        name: of the folder in messages; by default its path.

    Raises:
        NotFoundError: it holds no model at all, or files of one in another form.
        InvalidInputError: it holds another kind of model, or its config.json is not valid.
    """
    name = name or str(folder)
    if (folder / "adapter_config.json").is_file():
        raise NotFoundError(f"{name} {_adapter(folder)}")
    if not (folder / "config.json").is_file():
        raise NotFoundError(f"{name} holds no model: {_without_config(folder)}")
    config = json_object(folder / "config.json")
    kind = _kind(config)
    if kind is None and (folder / "config_sentence_transformers.json").is_file():
        kind = (
            "is a sentence-transformers model: it gives embeddings, and no next-token "
            f"distributions. {_CAUSAL}"
        )
    if kind is not None:
        raise InvalidInputError(f"{name} {kind}")


def check_loadable(config: Any, name: str) -> None:  # noqa: ANN401 - transformers is untyped
    """Check that transformers has a causal language model for a configuration.

    Args:
        config: a transformers configuration; a composite one has a `text_config`.
        name: of the model in messages.

    Raises:
        InvalidInputError: it has none.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = _kind(config.to_dict())
    if kind is not None:
        raise InvalidInputError(f"{name} {kind}")
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or _has_own_code(config.to_dict()):
        return
    architecture = _architecture(config.to_dict()) or type(config).__name__
    text = getattr(config, "text_config", None)
    if text is not None:
        raise InvalidInputError(
            f"{name} is a model of text and other media ({architecture}), which transformers does "
            "not load as a causal language model. Give its language model "
            f"(model_type {text.model_type!r}) as a folder of its own."
        )
    raise InvalidInputError(
        f"{name} is no causal language model: transformers has none of model_type "
        f"{config.model_type!r} ({architecture}). {_CAUSAL}"
    )


def _kind(config: dict[str, Any]) -> str | None:
    """What a model is, if it is certainly no causal language model, and what to give instead."""
    architecture = _architecture(config)
    if config.get("is_encoder_decoder") is True:
        return (
            f"is an encoder-decoder ({architecture or config.get('model_type')}): its "
            f"distributions depend on a second text, which its encoder reads. {_CAUSAL}"
        )
    if architecture is None or _has_own_code(config):
        return None
    for pattern, sentence in _HEADS:
        if re.search(pattern, architecture):
            return sentence.format(architecture)
    return None


def _architecture(config: dict[str, Any]) -> str | None:
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return first if isinstance(first, str) else None


def _has_own_code(config: dict[str, Any]) -> bool:
    """Whether code of the folder says which class is its causal language model."""
    code = config.get("auto_map")
    return isinstance(code, dict) and "AutoModelForCausalLM" in code


def _adapter(folder: Path) -> str:
    base = json_object(folder / "adapter_config.json").get("base_model_name_or_path")
    files = "adapter_config.json"
    if not (folder / "config.json").is_file():
        files += ", no config.json"
    return (
        f"is a PEFT adapter ({files})"
        + (f" of {base}" if base else "")
        + ", not a whole model. Merge it into its base (merge_and_unload, then save_pretrained), "
        "and give that folder."
    )


def _without_config(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    ggufs = [name for name in names if name.endswith(".gguf")]
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".pth"))]
    if ggufs:
        return f"there is no config.json in it. Give its GGUF file: {folder / ggufs[0]}."
    if "model_index.json" in names:
        return (
            "it is a diffusers pipeline (model_index.json, no config.json), which makes images. "
            f"{_CAUSAL}"
        )
    if weights:
        return (
            f"it has weights ({weights[0]}), but no config.json. Download config.json and the "
            "tokenizer files of the model too, or write the folder with save_pretrained."
        )
    return (
        "" if names else "it is empty: "
    ) + "there is no config.json in it. Give a folder written by save_pretrained, or a .gguf file."
