"""Finds, converts and loads causal language models.

A model is named by a folder, a hub id, a `.gguf` file, or `package:NAME` (a GGUF file that an
installed package holds). The result is always a local Hugging Face folder with safetensors: GGUF
files are dequantized once and the folder is kept, which turns 30 s of loading into 1-3 s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.models.folder_kinds import check_folder
from fusestore.models.gguf_conversion import convert_gguf
from fusestore.models.hub_download import download_model
from fusestore.models.placement import Placement, loading_options
from fusestore.models.precision import DTYPES
from fusestore.models.quantization import Quantization
from fusestore.models.spec import check_path
from fusestore.models.weight_proof import load_folder
from fusestore.process_rank import local_rank
from fusestore.storage.memory import folder_digest
from fusestore.storage.packages import SCHEME, packaged_gguf


def local_model_folder(
    spec: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Path:
    """The local Hugging Face folder of a model, downloaded or converted first if need be.

    Args:
        spec: folder, hub id, `.gguf` file, or `package:NAME`.
        revision: commit or tag, for a hub id.
        trust_remote_code: of a hub id: download its code too.
        weights: of a hub id: download its weights too.

    Raises:
        NotFoundError: there is no such folder, file, package or hub repository, or a part of a
            GGUF file is missing.
        InvalidInputError: a GGUF file that cannot be read or lacks tensors, or a folder of another
            kind of model.
        MissingDependencyError: a GGUF file, and the package `gguf` is not installed.
    """
    gguf = gguf_file(spec)
    if gguf is not None:
        return convert_gguf(gguf)
    path = Path(spec).expanduser()
    if path.is_dir():
        check_folder(path)
        return path.absolute()
    if path.is_file():
        raise InvalidInputError(
            f"{spec} is a file, but a model is a folder with config.json, weights and tokenizer, "
            f"or a .gguf file. Give the folder of the model: {path.absolute().parent}."
        )
    check_path(spec)
    return download_model(spec, revision, trust_remote_code, weights=weights)


def gguf_file(spec: str) -> Path | None:
    """The GGUF file that a spec names (`package:NAME` or a `.gguf` file); None for other specs.

    Raises:
        NotFoundError: there is no such file or package, or the package holds no GGUF file.
    """
    if spec.startswith(SCHEME):
        return packaged_gguf(spec.removeprefix(SCHEME))
    path = Path(spec).expanduser()
    if path.suffix != ".gguf":
        return None
    if not path.is_file():
        raise NotFoundError(f"Model file {spec} does not exist.")
    return path


def model_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of the model's configuration and weights, hexadecimal.

    The digests of large files are remembered by their size and time of change.
    """
    return folder_digest(
        path
        for path in folder.iterdir()
        if path.name == "config.json" or path.suffix in (".safetensors", ".bin")
    )


def config_digest(folder: Path) -> str:
    """SHA-256 over the name and the bytes of the model's configuration alone, hexadecimal.

    It stands for a model whose weights are not on this machine.
    """
    return folder_digest([folder / "config.json"])


def load_model(
    folder: Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    attention: str | None = None,
    placement: Placement | None = None,
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
) -> Any:  # noqa: ANN401 - transformers is untyped
    """Load a causal language model for inference, in evaluation mode.

    Args:
        folder: a local model folder.
        dtype: one of `DTYPES`.
        device: `auto` (an accelerator when there is one), `cpu`, `cuda`, `cuda:1`, `mps`, …
        attention: transformers' attention implementation (`sdpa`, `eager`, `flash_attention_2`).
        placement: how a model that is larger than one device is spread; `device` is ignored then.
        quantization: the form of the weights; None for `stored`, or dequantized where this machine
            cannot compute with the stored form.
        trust_remote_code: run code of the model folder. Only for code you have read.

    Raises:
        NotFoundError: the folder or a file of its weights is missing.
        InvalidInputError: unknown dtype, the folder holds no loadable causal model, or weights are
            damaged, missing, unexpected or of another shape.
        IncompatibleError: this machine cannot compute with quantized weights.
        MissingDependencyError: a package for quantized weights is missing.
    """
    import torch

    if dtype not in DTYPES:
        raise InvalidInputError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    placement = placement or Placement()
    options = loading_options(placement, pick_device(device) if placement.on_one_device else "")
    model = load_folder(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
        **options,
    )
    return model.eval()


def pick_device(device: str) -> str:
    """The best device of this machine for `auto`; any other device is checked and returned.

    Processes that were started together get one GPU each, if there are enough.

    Raises:
        InvalidInputError: the device does not exist.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return f"cuda:{local_rank() % torch.cuda.device_count()}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidInputError(f"Device {device!r} was asked for, but CUDA is not available here.")
    return device


def context_length(config: Any) -> int | None:  # noqa: ANN401 - transformers is untyped
    """Most tokens that a model reads, by its text configuration; None for no limit.

    XLNet has -1 for no limit; BLOOM, Mamba and others have no such key.
    """
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length is not None and length > 0 else None


def output_width(model: Any) -> int:  # noqa: ANN401 - transformers is untyped
    """Number of ids in the model's output, above the tokenizer's if the vocabulary is padded."""
    head = model.get_output_embeddings()
    # Under ZeRO 3 the weight of a linear layer may be on another process.
    if hasattr(head, "out_features"):
        return int(head.out_features)
    if hasattr(head, "weight"):
        return int(head.weight.shape[0])
    return int(model.config.get_text_config().vocab_size)
