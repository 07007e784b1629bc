"""A model in a GGUF file, read as it is: nothing is converted but its tokenizer."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.models.gguf_conversion import convert_gguf_tokenizer
from fusestore.models.gguf_parts import gguf_digest, gguf_parts
from fusestore.models.model import Facts, Model, are_facts
from fusestore.storage.gguf_file import gguf_field, open_gguf
from fusestore.storage.memory import remembered


class GgufModel(Model):
    """The model of a GGUF file, for engines that read such files.

    Its digest is that of the file, and not of the folder that a conversion would make.

    Attributes:
        file: the file; of a file in parts the first.
    """

    def __init__(self, model: Model) -> None:
        """Read as it is what a model was opened by.

        Raises:
            IncompatibleError: it was opened by something else than a GGUF file.
            NotFoundError: a part of it is missing.
        """
        super().__init__(
            model.spec,
            model.name,
            lambda: model.folder,
            describe=lambda: convert_gguf_tokenizer(self.file),
            gguf=lambda: model.gguf,
        )
        if model.gguf is None:
            raise IncompatibleError(
                f"{model.spec} is no GGUF file, and llama.cpp reads no other. Give a .gguf file or "
                "the package:NAME of one, or use another engine."
            )
        self.file = gguf_parts(model.gguf.absolute())[0]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the bytes of the file, hexadecimal."""
        return gguf_digest(self.file)

    @cached_property
    def _facts(self) -> Facts:
        return Facts(**remembered(f"gguf {self.digest}", self._read_facts, valid=are_facts))

    def _read_facts(self) -> dict[str, Any]:
        reader = open_gguf(self.file)
        architecture = gguf_field(reader, "general.architecture")
        tokens = gguf_field(reader, "tokenizer.ggml.tokens")
        if not isinstance(architecture, str) or not isinstance(tokens, list):
            raise InvalidInputError(
                f"{self.file} holds no language model: it has no general.architecture or no "
                "tokenizer.ggml.tokens. Give the model's file."
            )
        context = gguf_field(reader, f"{architecture}.context_length")
        return {
            "architecture": architecture,
            "vocab_size": len(tokens),
            "context": None if context is None else int(context),
        }
