"""Quantized weights: recognized before they are downloaded or loaded, and refused with a reason.

transformers ignores a quantization that it does not have, and dequantizes some that this machine
lacks kernels for; a log line says so. Both change what the model computes, so a capture refuses
them. It records how it loaded the weights, and is continued in the same way only.
"""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fusestore.errors import (
    FusestoreError,
    IncompatibleError,
    InvalidInputError,
    MissingDependencyError,
)
from fusestore.models.weight_files import json_object, open_safetensors

Quantization = Literal["stored", "bnb-4bit", "bnb-8bit", "none"]
"""`stored`: as the folder holds the weights; bitsandbytes NF4 or LLM.int8(); dequantized."""

_BITSANDBYTES = (("bitsandbytes", "'fusestore[quantized]'"),)

_PACKAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "bitsandbytes": _BITSANDBYTES,
    "compressed-tensors": (("compressed_tensors", "'fusestore[quantized]'"),),
    "gptq": (("gptqmodel", "gptqmodel"), ("optimum", "optimum")),
    "awq": (("gptqmodel", "gptqmodel"),),
    "torchao": (("torchao.core", "torchao"),),
    "quanto": (("optimum.quanto", "optimum-quanto"),),
    "auto-round": (("auto_round", "auto-round"),),
    "hqq": (("hqq", "hqq"),),
    "aqlm": (("aqlm", "aqlm"),),
}
"""Modules that a method needs, and what to install for each."""

_WEIGHTS_ONLY = ("awq", "bitsandbytes_4bit", "gptq", "mxfp4")
"""Methods whose activations stay in the model's dtype."""


def stored_quantization(folder: Path) -> str | None:
    """The method by which a folder's weights are quantized, such as `gptq`; None if they are not.

    Raises:
        InvalidInputError: config.json is not valid.
    """
    config = json_object(folder / "config.json")
    text = config.get("text_config")
    found = config.get("quantization_config")
    if found is None and isinstance(text, dict):
        found = text.get("quantization_config")
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method is None and isinstance(found, dict):
        # Of bitsandbytes' first version.
        method = "bitsandbytes" if any(found.get(f"load_in_{n}bit") for n in (4, 8)) else None
    if not isinstance(method, str):
        raise InvalidInputError(
            f"{folder / 'config.json'} has a quantization_config without a quant_method. Download "
            "the model again."
        )
    return method


def check_quantization(folder: Path, quantization: Quantization, name: str) -> None:
    """Check that weights can be loaded in a form, by config.json and installed packages alone.

    Args:
        folder: with the configuration; its weights need not be there yet.
        quantization: the form.
        name: of the model in messages.

    Raises:
        InvalidInputError: the folder's weights do not have this form, and cannot get it.
        MissingDependencyError: a package is missing.
    """
    stored = stored_quantization(folder)
    if quantization == "none" and stored is None:
        raise InvalidInputError(
            f"quantization is none, but the weights of {name} are not quantized. Leave it out."
        )
    if quantization.startswith("bnb-") and stored is not None:
        raise InvalidInputError(
            f"quantization is {quantization}, but the weights of {name} are quantized already "
            f"({stored}). Leave it out, or give the model that they were made of."
        )
    needed = _BITSANDBYTES if quantization.startswith("bnb-") else _PACKAGES.get(stored or "", ())
    for module, package in needed:
        if not _is_installed(module):
            raise MissingDependencyError(
                f"{name} with {stored or quantization} weights needs the package "
                f"{module.partition('.')[0]}: pip install {package}."
            )


def quantized_loading(
    config: Any,  # noqa: ANN401 - transformers is untyped
    quantization: Quantization | None,
    dtype: Any,  # noqa: ANN401 - of torch
    name: str,
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights in a form; changes `config` for stored weights.

    Args:
        config: of transformers.
        quantization: the form; None for `stored`, or dequantized where this machine cannot compute
            with the stored form.
        dtype: in which the model runs.
        name: of the model in messages.

    Raises:
        InvalidInputError: transformers does not have the method, or cannot dequantize it.
        IncompatibleError: this machine cannot compute with the weights.
        MissingDependencyError: a package is missing.
    """
    # It warns at every matrix product that inputs are rounded.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantization in ("bnb-4bit", "bnb-8bit"):
        return {"quantization_config": _bitsandbytes_config(quantization, dtype)}
    holder = config if getattr(config, "quantization_config", None) else config.get_text_config()
    stored = getattr(holder, "quantization_config", None)
    if not stored:
        return {}
    changed = {**(stored if isinstance(stored, dict) else stored.to_dict())}
    if changed.get("load_in_8bit"):
        # Outliers of one token would change how all other tokens of the batch are computed.
        changed["llm_int8_threshold"] = 0.0
    if changed.get("load_in_4bit"):
        changed["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    if quantization == "none":
        changed["dequantize"] = True
    _check_machine(changed, quantization, name)
    holder.quantization_config = changed
    return {}


def check_scales(files: Mapping[str, Path], name: str) -> None:
    """Check that every 8-bit float weight of quantized files has its scale.

    transformers takes one without as if its scale were 1.

    Args:
        files: the safetensors file of each tensor.
        name: of the model in messages.

    Raises:
        InvalidInputError: a scale is missing.
    """
    names = sorted(files)
    opened = {path: open_safetensors(path) for path in set(files.values())}
    for tensor in names:
        is_narrow = opened[files[tensor]].get_slice(tensor).get_dtype().startswith("F8_E")
        if not is_narrow or "scale" in tensor:
            continue
        stem = tensor.removesuffix("weight")
        others = itertools.takewhile(
            lambda other: other.startswith(stem),  # noqa: B023 - used at once
            itertools.islice(names, bisect.bisect_left(names, stem), None),
        )
        if not any("scale" in other[len(stem) :] for other in others):
            raise InvalidInputError(
                f"{tensor} of {name} is an 8-bit float, and its scale is missing. Download the "
                "model again."
            )


def compute_in_dtype(model: Any) -> None:  # noqa: ANN401
    """Let 4-bit layers compute in the model's dtype on every processor.

    Where a processor has bfloat16 instructions, bitsandbytes rounds activations and scales to
    bfloat16 at the first pass, and saves these scales.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantizes_activations(model: Any) -> bool:  # noqa: ANN401
    """Whether a loaded model rounds what its layers read to few bits, too."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return False
    config = quantizer.quantization_config
    method = str(getattr(config.quant_method, "value", config.quant_method))
    if getattr(config, "load_in_4bit", False):
        method += "_4bit"
    return method not in _WEIGHTS_ONLY


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _bitsandbytes_config(quantization: Quantization, dtype: Any) -> Any:  # noqa: ANN401
    import transformers

    make: Any = transformers.BitsAndBytesConfig
    if quantization == "bnb-8bit":
        # With outliers a row would depend on later tokens, and on the other documents of its batch.
        return make(load_in_8bit=True, llm_int8_threshold=0.0)
    return make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _check_machine(stored: dict[str, Any], quantization: Quantization | None, name: str) -> None:
    """Ask transformers' quantizer, before the weights are read, what it would do here."""
    from transformers.quantizers.auto import (
        AUTO_QUANTIZATION_CONFIG_MAPPING,
        AutoHfQuantizer,
        AutoQuantizationConfig,
    )

    method = stored.get("quant_method")
    if method != "bitsandbytes" and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise InvalidInputError(
            f"The weights of {name} are quantized by {method!r}, which transformers does not have. "
            "Update transformers, or give the model that they were made of."
        )
    logger = logging.getLogger("transformers.quantizers")
    level = logger.level
    # What it warns of is an error here, or was asked for.
    logger.setLevel(logging.ERROR)
    try:
        form = AutoQuantizationConfig.from_dict(dict(stored))
        if quantization == "none" and not getattr(form, "dequantize", False):
            raise InvalidInputError(
                f"quantization is none, but transformers does not dequantize {method} weights. "
                f"Leave it out, or give the model that those of {name} were made of."
            )
        quantizer = AutoHfQuantizer.from_config(form, pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except FusestoreError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"The {method} weights of {name} cannot be loaded here: {_sentence(error)}"
        ) from error
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise IncompatibleError(
            f"The {method} weights of {name} cannot be loaded on this machine: {_sentence(error)}"
        ) from error
    finally:
        logger.setLevel(level)
    if (
        quantization == "stored"
        and getattr(form, "dequantize", False)
        and not stored.get("dequantize")
    ):
        raise IncompatibleError(
            f"This machine has no kernels that compute with the {method} weights of {name}: they "
            "need a GPU, and mxfp4 the packages kernels and triton, too. Load them dequantized: "
            "--quantization none. They then take two to four times the memory."
        )


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!")) else f"{text}."
