"""Whether two configurations describe one architecture: the same tensors with the same meaning."""

from __future__ import annotations

import inspect
from typing import Any

_METADATA = frozenset(
    {
        *("_name_or_path", "transformers_version", "architectures", "auto_map", "tokenizer_class"),
        *("dtype", "torch_dtype", "use_cache", "return_dict", "chunk_size_feed_forward"),
        *("output_attentions", "output_hidden_states", "output_router_logits"),
        *("id2label", "label2id", "problem_type", "initializer_range"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    }
)
"""Fields that change neither tensors nor logits."""

_TRAINING_ONLY = ("dropout", "pdrop", "dropout_prob", "layerdrop")
"""Endings of fields that change logits in training alone."""


def architecture_differences(first: Any, second: Any) -> list[str]:  # noqa: ANN401
    """The fields of two transformers configurations by which their architectures differ.

    The configurations are compared as transformers reads them, so defaults and older spellings of a
    field are equal. Metadata, settings of generation and dropout are left out.

    Returns:
        For each field, its name and both values, as text; `model_type` alone where that differs.
    """
    if first.model_type != second.model_type:
        return [_difference("model_type", first.model_type, second.model_type)]
    one, other = _architecture(first), _architecture(second)
    return [
        _difference(key, one.get(key), other.get(key))
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    ]


def _architecture(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """The fields that determine tensors and logits, with those of inner configurations as `a.b`."""
    from transformers import GenerationConfig, PreTrainedConfig

    generation: Any = GenerationConfig
    # A field that the class declares is the model's, even if generation has one of this name.
    declared = inspect.signature(type(config)).parameters.keys()
    left_out = _METADATA | (generation().to_dict().keys() - declared)
    fields: dict[str, Any] = {}
    for key, value in config.to_dict().items():
        inner = getattr(config, key, None)
        if isinstance(inner, PreTrainedConfig):
            fields |= {f"{key}.{name}": field for name, field in _architecture(inner).items()}
        elif key not in left_out and not key.endswith(_TRAINING_ONLY):
            fields[key] = value
    return fields


def _difference(key: str, first: object, second: object) -> str:
    return f"{key} is {first!r} in the first and {second!r} in the second"
