"""The tensors of model folders, read one at a time, and the check that models can be merged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fusestore.errors import IncompatibleError, NotFoundError
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
        """Shape of each tensor, sorted by name; of tied tensors only that of the stored tensor.

        Raises:
            InvalidInputError: weights of the model are missing, unexpected or of another shape.
        """
        # On this device the proof takes no memory: each tensor is dropped when it has been read.
        proven = load_folder(
            self.folder, device_map="meta", trust_remote_code=self.model.trust_remote_code
        )
        tied = {
            key
            for key, source in proven.all_tied_weights_keys.items()
            # transformers ties what is equal, or what is stored once under either name.
            if {key, source} <= self._files.keys() and torch.equal(self.raw(key), self.raw(source))
        }
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
        InvalidInputError: weights of a model are missing, unexpected or of another shape.
        IncompatibleError: they do not belong together; the differences are named.
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
