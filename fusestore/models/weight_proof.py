"""Loads a causal language model, and proves that each of its weights comes from its files.

transformers fills missing weights with random numbers, leaves out weights that it does not expect,
and says so in a log line only. Here both are errors that name the tensors.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fusestore.errors import FusestoreError, InvalidInputError
from fusestore.models.folder_kinds import check_folder, check_loadable
from fusestore.models.placement import check_plan
from fusestore.models.quantization import (
    Quantization,
    check_scales,
    compute_in_dtype,
    quantized_loading,
    stored_quantization,
)
from fusestore.models.weight_files import check_weight_files, tensor_files
from fusestore.tokenizers.remote_code import refuse_untrusted_code

_SHOWN = 3
"""Tensors that an error names; of the others it gives the number."""

_MAX_REASON = 400
"""Characters: transformers lists all model types that it has, and commands to install."""

_UNMADE = re.compile(r"(\S+) *\| *\S*CONVERSION")
"""A row of transformers' table for a weight that it could not make; the word may be colored."""


def load_folder(folder: Path, *, trust_remote_code: bool = False, **options: Any) -> Any:  # noqa: ANN401 - transformers is untyped
    """The causal language model of a folder, with every weight from its files.

    Args:
        folder: a local model folder.
        trust_remote_code: run code of the folder.
        options: further arguments of `from_pretrained`.

    Raises:
        NotFoundError: the folder or a file of its weights is missing.
        InvalidInputError: the folder holds another kind of model, a file is damaged, or weights
            are missing, unexpected or of another shape.
    """
    check_folder(folder)
    if stored_quantization(folder) is not None:
        check_weight_files(folder)
        check_scales(tensor_files(folder), str(folder))
    model = load_whole(folder, str(folder), trust_remote_code=trust_remote_code, **options)
    _check_ignored(model, tensor_files(folder), str(folder))
    compute_in_dtype(model)
    return model


def load_whole(
    source: Path,
    name: str,
    *,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    quantization: Quantization | None = None,
    **options: Any,  # noqa: ANN401 - transformers is untyped
) -> Any:  # noqa: ANN401
    """`AutoModelForCausalLM.from_pretrained`, refused unless every weight comes from the files.

    Args:
        source: the folder that `from_pretrained` reads.
        name: of the model in messages.
        trust_remote_code: run code of the folder.
        gguf_file: a GGUF file to read instead of the folder's weights.
        quantization: the form of the weights; see `quantized_loading`, also for errors.
        options: further arguments of `from_pretrained`.

    Raises:
        NotFoundError: the folder or a file of its weights is missing.
        InvalidInputError: nothing loads, or weights are missing, unexpected or of another shape.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    lines: list[str] = []
    shared: dict[str, Any] = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **shared)
        check_loadable(config, name)
        if gguf_file is None:
            check_weight_files(source)
            options |= quantized_loading(config, quantization, options.get("dtype"), name)
        if "distributed_config" in options:
            check_plan(config, name)
        elif _is_quantized(config, options):
            # By default bitsandbytes takes a GPU that there is.
            options.setdefault("device_map", {"": "cpu"})
        with _collected_report(lines):
            loaded = auto.from_pretrained(
                source,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=trust_remote_code,
                **shared,
                **options,
            )
    except (torch.OutOfMemoryError, FusestoreError):
        raise
    except (*_LOADING_ERRORS, StrictDataclassError) as error:
        refuse_untrusted_code(error, name)
        unmade = [match[1] for match in map(_UNMADE.match, lines) if match]
        if unmade:
            raise InvalidInputError(
                f"{_count(unmade)} of {name} cannot be made of the tensors in its files: "
                f"{named_tensors(unmade)}. Tensors that belong together are missing or have other "
                "shapes. Download the model again, or write it with save_pretrained."
            ) from error
        raise InvalidInputError(
            f"No causal language model loads from {name}: {_reason(error)} Check that the model "
            f"is whole, and that transformers {version('transformers')} supports it."
        ) from error
    if not isinstance(loaded, tuple):
        raise InvalidInputError(
            f"The code of {name} loads the weights itself and does not report which were missing, "
            "so they cannot be checked. Write the model with save_pretrained."
        )
    model, report = loaded
    unexpected = _strange(model, report["unexpected_keys"], hasattr(config, "text_config"))
    _check_report(model, {**report, "unexpected_keys": unexpected}, name)
    return model


def _is_quantized(config: Any, options: Mapping[str, Any]) -> bool:  # noqa: ANN401
    return "quantization_config" in options or any(
        getattr(part, "quantization_config", None) for part in (config, config.get_text_config())
    )


def named_tensors(names: list[str]) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:_SHOWN]) + _rest(names)


_LOADING_ERRORS = (
    *(OSError, ValueError, ImportError, RuntimeError, LookupError, AttributeError, TypeError),
    *(EOFError, AssertionError, NotImplementedError, pickle.UnpicklingError),
)
"""What transformers, torch's unpickler and code of a folder raise on weights they cannot use."""


@contextlib.contextmanager
def _collected_report(lines: list[str]) -> Iterator[None]:
    """Collect the lines that transformers logs about weights, instead of printing them.

    Of tensors that it could not make of several it reports the names there only.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    level, propagate = logger.level, logger.propagate
    handler = logging.Handler()
    handler.emit = lambda record: lines.extend(record.getMessage().splitlines())  # type: ignore[method-assign] # a function will do
    logger.addHandler(handler)
    # At WARNING itself transformers also checks plans for tensor parallelism, and logs them.
    logger.setLevel(logging.WARNING - 1)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _reason(error: Exception) -> str:
    """What an error of a library says, as one sentence of a bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]} …"
    return text if text.endswith((".", "!", "…")) else f"{text}."


def _check_report(model: Any, report: Mapping[str, Any], name: str) -> None:  # noqa: ANN401
    """Check transformers' report of one loading.

    It leaves out tied weights, and what the model's class declares as harmless, such as layers for
    the prediction of several tokens at once.
    """
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        shown = [
            f"{key} is {list(found)} in the file and {list(expected)} in the model"
            for key, found, expected in mismatched[:_SHOWN]
        ]
        raise InvalidInputError(
            f"{_count(mismatched)} of {name} {_have(mismatched)} another shape than config.json "
            f"says: {'; '.join(shown)}{_rest(mismatched)}. config.json and the weights do not "
            "belong together; download or write the model again."
        )
    missing = sorted(report["missing_keys"])
    unexpected = sorted(report["unexpected_keys"])
    if missing:
        raise InvalidInputError(
            f"{_count(missing)} of {name} ({type(model).__name__}) {_are(missing)} missing: "
            f"{named_tensors(missing)}. transformers would fill them with random numbers. "
            + _advice(missing, unexpected)
        )
    if unexpected:
        raise InvalidInputError(
            f"{_count(unexpected)} of {name} {_have(unexpected)} no place in its architecture "
            f"({type(model).__name__}): {named_tensors(unexpected)}. Without them it may not be "
            "the model that was trained. Correct config.json, or write the model with "
            "save_pretrained."
        )


def _strange(model: Any, unexpected: Iterable[str], has_other_media: bool) -> list[str]:  # noqa: ANN401
    """Unexpected tensors, without those of a quantizer and those of other media."""
    strange = list(unexpected)
    if getattr(model, "hf_quantizer", None) is not None:
        # Scales and zero points lie beside the weights that they belong to.
        modules = {name for name, _ in model.named_modules()}
        strange = [key for key in strange if key.rpartition(".")[0] not in modules]
    if has_other_media and not hasattr(model.config, "text_config"):
        # A further layer of the text model has the names of its other layers.
        prefix = f"{model.base_model_prefix}."
        own = {_without_numbers(key) for key in model.state_dict()}
        strange = [key for key in strange if _without_numbers(key.removeprefix(prefix)) in own]
    return strange


def _without_numbers(key: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", key)


def _check_ignored(model: Any, stored: Collection[str], name: str) -> None:  # noqa: ANN401
    """Check parameters that the model's class lets be missing: they are random all the same."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    if not stored or not patterns:
        return
    # Of tied weights this gives one.
    missing = [
        key
        for key, _ in model.named_parameters()
        if key not in stored and any(re.search(pattern, key) for pattern in patterns)
    ]
    if missing:
        _check_report(model, _report(missing), name)


def _report(missing: Iterable[str]) -> dict[str, Any]:
    return {"missing_keys": set(missing), "unexpected_keys": (), "mismatched_keys": ()}


def _advice(missing: list[str], unexpected: list[str]) -> str:
    for key in unexpected:
        prefix = key.removesuffix(missing[0])
        if prefix != key and all(f"{prefix}{each}" in unexpected for each in missing):
            return (
                f"The file has them with the prefix {prefix!r}: write the inner model with "
                "save_pretrained."
            )
    if unexpected:
        return (
            f"The file has {named_tensors(unexpected)} instead. Give the folder of the causal "
            "language model, or correct config.json."
        )
    return "Download the model again, or write it with save_pretrained."


def _rest(keys: list[Any]) -> str:
    return f" and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""


def _count(keys: list[Any]) -> str:
    return f"{len(keys):,} weight{'s' if len(keys) > 1 else ''}"


def _are(keys: list[Any]) -> str:
    return "are" if len(keys) > 1 else "is"


def _have(keys: list[Any]) -> str:
    return "have" if len(keys) > 1 else "has"
