"""Tokenizers of local folders, with properties that need no loading.

Loading a tokenizer takes transformers and, for a large vocabulary, seconds. The properties that
stages need first (digest, length, whether it adds BOS) follow from the folder's files, and are
remembered.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from fusestore.errors import IncompatibleError
from fusestore.storage.memory import folder_digest, remembered
from fusestore.tokenizers import hugging_face, token_bytes
from fusestore.tokenizers import tokenizer as tokenizer_module
from fusestore.tokenizers.chat_encoder import ChatEncoder
from fusestore.tokenizers.chat_template import Variables
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.tokenizer import Tokenizer, chat_encoder, load_tokenizer
from fusestore.tokenizers.vocabulary import Vocabulary

_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx"}
"""Files that no tokenizer is read from."""


def folder_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a local model folder; it is loaded when its encoder or vocabulary is used.

    Raises:
        NotFoundError, IncompatibleError, MissingDependencyError: as `load_tokenizer`.
    """
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix not in _WEIGHTS]
    loaded: list[Tokenizer] = []

    def make() -> dict[str, Any]:
        loaded.append(load_tokenizer(folder))
        tokenizer = loaded[0]
        return {
            "digest": tokenizer.digest,
            "length": len(tokenizer),
            "bos_id": tokenizer.bos_id,
            "adds_bos": tokenizer.adds_bos,
            "unspelled_bytes": tokenizer.unspelled_bytes.hex(),
        }

    key = f"tokenizer {_versions()} {folder_digest(files)}"
    facts = remembered(key, make, valid=_are_facts)
    return loaded[0] if loaded else _FolderTokenizer(folder, facts)


class _FolderTokenizer(Tokenizer):
    """A tokenizer with remembered properties; everything else is loaded on first use."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.name = folder.name
        self.bos_id = facts["bos_id"]
        self.adds_bos = facts["adds_bos"]
        self._folder = folder
        self._length: int = facts["length"]
        self._digest: str = facts["digest"]
        self._unspelled_bytes = bytes.fromhex(facts["unspelled_bytes"])

    def __len__(self) -> int:
        return self._length

    @cached_property
    def digest(self) -> str:
        return self._digest

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return self._loaded.vocabulary

    def encode(self, texts: Any, add_bos: bool) -> TokenTable:  # noqa: ANN401 - as the base has it
        return self._loaded.encode(texts, add_bos)

    def _chat(self, variables: Variables, fallback: str | None) -> ChatEncoder:
        return chat_encoder(self._loaded, variables, fallback)

    @cached_property
    def unspelled_bytes(self) -> bytes:
        return self._unspelled_bytes

    def unspelled(self, text: str) -> bytes:
        return self._loaded.unspelled(text)

    @cached_property
    def _loaded(self) -> Tokenizer:
        tokenizer = load_tokenizer(self._folder)
        if tokenizer.digest != self._digest:
            raise IncompatibleError(
                f"The tokenizer in {self._folder} changed while it was used: it had digest "
                f"{self._digest[:16]} and has {tokenizer.digest[:16]}. Run the command again."
            )
        return tokenizer


def _versions() -> str:
    """What a tokenizer's digest follows from besides its files, our own code included."""
    code = hashlib.sha256()
    for module in (tokenizer_module, hugging_face, token_bytes):
        code.update(Path(str(module.__file__)).read_bytes())
    libraries = ("transformers", "tokenizers")
    versions = (f"{name}={importlib.metadata.version(name)}" for name in libraries)
    return " ".join([*versions, code.hexdigest()[:16]])


def _are_facts(value: dict[str, Any]) -> bool:
    return (
        isinstance(value.get("digest"), str)
        and type(value.get("length")) is int
        and (value.get("bos_id") is None or type(value.get("bos_id")) is int)
        and type(value.get("adds_bos")) is bool
        and re.fullmatch("([0-9a-f]{2})*", str(value.get("unspelled_bytes"))) is not None
    )
