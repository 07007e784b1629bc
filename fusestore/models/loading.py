"""Finds, converts and loads causal language models.

A model is named by a folder, a hub id, a `.gguf` file, or `package:NAME` (a GGUF file that an
installed package holds). The result is always a local Hugging Face folder with safetensors: GGUF
files are dequantized once and the folder is kept, which turns 30 s of loading into 1-3 s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusestore.errors import (
    IncompatibleError,
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
)
from fusestore.models.precision import DTYPES
from fusestore.models.saving import save_model
from fusestore.process_rank import local_rank
from fusestore.storage.memory import file_digest, folder_digest
from fusestore.storage.packages import SCHEME, packaged_gguf, user_cache_folder
from fusestore.storage.replace import created_folder

_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def local_model_folder(spec: str, *, revision: str | None = None) -> Path:
    """The local Hugging Face folder of a model, downloaded or converted first if need be.

    Args:
        spec: folder, hub id, `.gguf` file, or `package:NAME`.
        revision: commit or tag, for a hub id.

    Raises:
        NotFoundError: there is no such folder, file, package or hub repository.
        InvalidInputError: a GGUF file that cannot be read.
        MissingDependencyError: a GGUF file, and the package `gguf` is not installed.
    """
    if spec.startswith(SCHEME):
        return convert_gguf(packaged_gguf(spec.removeprefix(SCHEME)))
    path = Path(spec).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise NotFoundError(f"Model file {spec} does not exist.")
        return convert_gguf(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise NotFoundError(
                f"Folder {spec} holds no model: there is no config.json in it. "
                "Give a folder written by save_pretrained."
            )
        return path.absolute()
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise NotFoundError(f"Model folder {spec} does not exist.")
    return _download(spec, revision)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_HUB_PATTERNS))
    except (OSError, ValueError, RuntimeError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotFoundError(
            f"Model {repository!r} is neither a local folder nor reachable on the hub ({reason}). "
            "Check the name, or give a folder or a .gguf file."
        ) from error


def convert_gguf(gguf: Path) -> Path:
    """Dequantize a GGUF file to a safetensors folder, once; later calls find the folder.

    The folder is named by the file's SHA-256, below the user cache. It holds the float32 values
    that a GGUF reader computes; the caller may round them when loading.
    """
    folder = user_cache_folder() / "models" / f"{gguf.stem}-{file_digest(gguf)[:16]}"
    if folder.is_dir():
        return folder
    try:
        import gguf as _gguf  # noqa: F401 - transformers reports its absence badly
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {gguf.name} needs the package gguf: pip install 'fusestore[gguf]'."
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InvalidInputError(
            f"{gguf} could not be read as a GGUF model ({error}). "
            "Check that the file is whole and that transformers supports its architecture."
        ) from error
    # save_pretrained refuses a model that has a quantization config, even a dequantized one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    with created_folder(folder) as temporary:
        save_model(model, temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def model_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of the model's configuration and weights, hexadecimal.

    The digests of large files are remembered by their size and time of change.
    """
    return folder_digest(
        path
        for path in folder.iterdir()
        if path.name == "config.json" or path.suffix in (".safetensors", ".bin")
    )


def load_model(
    folder: Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> Any:  # noqa: ANN401 - transformers is untyped
    """Load a causal language model for inference, in evaluation mode.

    Args:
        folder: a local model folder.
        dtype: one of `DTYPES`.
        device: `auto` (an accelerator when there is one), `cpu`, `cuda`, `cuda:1`, `mps`, …
        attention: transformers' attention implementation (`sdpa`, `eager`, `flash_attention_2`).
        trust_remote_code: run code of the model folder. Only for code you have read.

    Raises:
        InvalidInputError: unknown dtype, or the folder holds no loadable causal model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise InvalidInputError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInputError(f"No causal language model loads from {folder}: {error}") from error
    return model.to(pick_device(device)).eval()


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


def output_width(model: Any) -> int:  # noqa: ANN401 - transformers is untyped
    """Number of ids in the model's output, above the tokenizer's if the vocabulary is padded."""
    head = model.get_output_embeddings()
    # Under ZeRO 3 the weight of a linear layer may be on another process.
    return int(head.out_features if hasattr(head, "out_features") else head.weight.shape[0])


def check_width(width: int, tokenizer_length: int, name: str) -> None:
    """Check that a model's output covers its tokenizer.

    Padded vocabularies (width above length) are ordinary; a width below the length is an error.

    Raises:
        IncompatibleError: the tokenizer has ids the model cannot output.
    """
    if tokenizer_length > width:
        raise IncompatibleError(
            f"The tokenizer of {name} has {tokenizer_length:,} ids, but the model's output has "
            f"{width:,}. They do not belong together; check the model folder."
        )


def check_widths(model: Any, tokenizer_length: int, name: str) -> int:  # noqa: ANN401
    """The loaded model's `output_width`, after `check_width`."""
    width = output_width(model)
    check_width(width, tokenizer_length, name)
    return width
