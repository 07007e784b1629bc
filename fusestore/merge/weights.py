"""The tensors of model folders, read one at a time, and the check that models can be merged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fusestore.errors import IncompatibleError, InvalidInputError, NotFoundError
from fusestore.merge.one_architecture import architecture_differences
from fusestore.models.model import Model
from fusestore.models.weight_files import json_object, open_safetensors, tensor_files
from fusestore.models.weight_proof import load_folder

FUSE_INSTEAD = "Fuse their distributions instead."


class ModelWeights:
    """A model's configuration, and its tensors on demand.

    Attributes:
        model: the model.
        folder: its local folder.
        name: for messages.
        config: the content of its config.json.
    """

    def __init__(self, model: Model) -> None:
        folder, name = model.folder, model.spec
        self.model, self.folder, self.name = model, folder, name
        self.config: dict[str, Any] = json_object(folder / "config.json")
        self._files = tensor_files(folder)
        if not self._files:
            raise NotFoundError(
                f"{name} has no model.safetensors in {folder}. Load it with transformers and write "
                "it with save_pretrained."
            )
        self._open: dict[Path, Any] = {}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, sorted by name; of tied tensors only that of the stored tensor."""
        tied = _tied_names(self.model) if self.config.get("tie_word_embeddings", True) else set()
        return {
            key: tuple(self._slice(key).get_shape())
            for key in sorted(self._files)
            if key not in tied
        }

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of one tensor."""
        # A 0-dimensional tensor cannot be sliced, and is small enough to read.
        view = self._slice(key)
        result: torch.dtype = (view[:0] if view.get_shape() else self.raw(key)).dtype
        return result

    def raw(self, key: str) -> torch.Tensor:
        """One tensor as stored."""
        tensor: torch.Tensor = self._file(key).get_tensor(key)
        return tensor

    def tensor(self, key: str) -> torch.Tensor:
        """A copy of one tensor as float32."""
        return self.raw(key).to(torch.float32, copy=True)

    def _file(self, key: str) -> Any:  # noqa: ANN401 - safetensors is untyped
        path = self._files[key]
        if path not in self._open:
            self._open[path] = open_safetensors(path)
        return self._open[path]

    def _slice(self, key: str) -> Any:  # noqa: ANN401
        return self._file(key).get_slice(key)


def check_mergeable(models: Sequence[ModelWeights]) -> None:
    """Check that models have one architecture, the same tensors, and one tokenizer.

    Args:
        models: the others are compared with the first.

    Raises:
        IncompatibleError: they have not; the differences are named.
    """
    first = models[0]
    for model in models[1:]:
        differences = architecture_differences(first.model.config, model.model.config)
        if differences:
            raise IncompatibleError(
                f"{first.name} and {model.name} have different architectures: "
                f"{'; '.join(differences)}. Weights can only be merged between models of one "
                "architecture; fuse their distributions instead."
            )
        for key in sorted(first.shapes.keys() | model.shapes.keys()):
            if key not in first.shapes or key not in model.shapes:
                has, lacks = (first, model) if key in first.shapes else (model, first)
                raise IncompatibleError(
                    f"Tensor {key} is in {has.name} but not in {lacks.name}. {FUSE_INSTEAD}"
                )
            if first.shapes[key] != model.shapes[key]:
                raise IncompatibleError(
                    f"Tensor {key} has shape {list(first.shapes[key])} in {first.name} and "
                    f"{list(model.shapes[key])} in {model.name}. {FUSE_INSTEAD}"
                )
        digests = [each.model.tokenizer.digest for each in (first, model)]
        if digests[0] != digests[1]:
            raise IncompatibleError(
                f"{first.name} and {model.name} have different tokenizers ({digests[0][:16]} "
                f"and {digests[1][:16]}): a row of the embeddings is another token in each. "
                f"{FUSE_INSTEAD}"
            )


def _tied_names(model: Model) -> set[str]:
    """Tensors that transformers copies from others when it loads the model."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    try:
        with torch.device("meta"):
            empty = auto.from_config(model.config, trust_remote_code=model.trust_remote_code)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise IncompatibleError(
            f"{model.folder} cannot be loaded as a causal language model: {error} {FUSE_INSTEAD}"
        ) from error
    return set(empty.all_tied_weights_keys)


def _tensor_files(folder: Path, name: str) -> dict[str, Path]:
    """The file that holds each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = _json(index, name).get("weight_map")
        if not isinstance(table, dict) or not all(
            isinstance(file, str) and Path(file).name == file for file in table.values()
        ):
            raise InvalidInputError(f"{index} has no weight_map of file names in that folder.")
        return {str(key): folder / file for key, file in table.items()}
    single = folder / "model.safetensors"
    if not single.is_file():
        raise NotFoundError(
            f"{name} has no model.safetensors in {folder}. Load it with transformers and write it "
            "with save_pretrained."
        )
    return dict.fromkeys(_open(single, name).keys(), single)


def _open(path: Path, name: str) -> Any:  # noqa: ANN401
    try:
        # Needs no close: the memory map ends with the object.
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{path} of {name} is missing, but its index names it. Download the model again."
        ) from error
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(
            f"{path} of {name} is no valid safetensors file: {error}"
        ) from error


def _json(path: Path, name: str) -> dict[str, Any]:
    num_bytes = path.stat().st_size
    if num_bytes > _MAX_JSON_BYTES:
        raise InvalidInputError(
            f"{path} of {name} is {num_bytes:,} bytes; expected at most {_MAX_JSON_BYTES:,}."
        )
    try:
        content: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInputError(f"{path} of {name} is not valid JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise InvalidInputError(f"{path} of {name} holds no JSON object.")
    return dict(content)
