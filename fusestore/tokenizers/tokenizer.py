"""`Tokenizer`: a fast Hugging Face tokenizer as fusestore uses it.

It has the bytes of text of every token, the byte offset at which each token of a text ends, and a
digest that identifies it wherever it was loaded from.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fusestore.errors import (
    FusestoreError,
    IncompatibleError,
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
)
from fusestore.storage.packages import resolve_path
from fusestore.tokenizers import conversions
from fusestore.tokenizers.chat_encoder import ChatEncoder
from fusestore.tokenizers.chat_template import ChatTemplate, Variables
from fusestore.tokenizers.end_offsets import EndOffsets
from fusestore.tokenizers.gguf_tokenizer import gguf_tokenizer
from fusestore.tokenizers.hugging_face import load_hugging_face
from fusestore.tokenizers.remote_code import refuse_untrusted_code
from fusestore.tokenizers.token_bytes import model_unknown_id, unspelled_bytes, vocabulary_of
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.vocabulary import Role, Vocabulary

_BATCH_CHARACTERS = 2**20
"""Texts are encoded in batches of about this many characters, which bounds memory."""

_ROLES: tuple[Role, ...] = ("bos", "eos", "pad", "unk")


class Tokenizer:
    """A fast tokenizer: token ids, the bytes they stand for, and where they end.

    Attributes:
        name: the last part of the path or hub id it came from; for messages only.
        bos_id: id of the beginning-of-sequence token, or None.
        adds_bos: whether the tokenizer starts a sequence with BOS by default.
    """

    def __init__(self, hugging_face: Any, name: str | None = None) -> None:  # noqa: ANN401
        """Wrap a fast Hugging Face tokenizer, which is not changed.

        Raises:
            IncompatibleError: a slow tokenizer, which has no offsets of its tokens.
        """
        self._hugging_face = hugging_face
        path = str(getattr(hugging_face, "name_or_path", "") or "")
        self.name: str = name or Path(path).name or type(hugging_face).__name__
        if not (
            getattr(hugging_face, "is_fast", False)
            and getattr(hugging_face, "backend_tokenizer", None) is not None
        ):
            raise IncompatibleError(
                f"Tokenizer {self.name!r} ({type(hugging_face).__name__}) is slow: it does not "
                "report where in the text its tokens end, which alignment needs. Use a fast "
                "tokenizer (a folder with tokenizer.json), the source of the slow tokenizer (a "
                "sentencepiece .model file, a tiktoken.Encoding), or convert it with the model's "
                "own conversion script."
            )
        self.bos_id: int | None = hugging_face.bos_token_id
        first = hugging_face("a")["input_ids"][:1]
        self.adds_bos: bool = self.bos_id is not None and first == [self.bos_id]
        self._serialized = _canonical(json.loads(hugging_face.backend_tokenizer.to_str()))
        self._roles = _role_ids(hugging_face, self._serialized)

    def __len__(self) -> int:
        """One more than the largest token id."""
        return len(self.vocabulary)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, {self.digest[:16]})"

    @cached_property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of everything that changes ids, offsets or token bytes.

        The post-processor, truncation and padding are excluded, because `encode` uses none of
        them. The ids with a role and `adds_bos` are included.
        """
        identity = {
            "tokenizer": self._serialized,
            "roles": self._roles,
            "adds_bos": self.adds_bos,
        }
        text = json.dumps(identity, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of every id."""
        return vocabulary_of(self._serialized, self._roles, self.digest)

    def encode(self, texts: Sequence[str], add_bos: bool) -> TokenTable:
        """Token ids and byte end offsets of the texts.

        Nothing is added but BOS, if requested. A special token that is spelled out in a text is
        text like any other (unless the tokenizer's model holds the spelling as a piece, as a
        Unigram vocabulary may).

        Args:
            texts: D texts.
            add_bos: start every document with the BOS token, ending at offset 0.

        Returns:
            The table of D documents; end offsets never decrease and never pass the text's end.

        Raises:
            IncompatibleError: BOS is requested of a tokenizer without one.
            InvalidInputError: a text holds a lone surrogate, which UTF-8 cannot express.
        """
        if add_bos and self.bos_id is None:
            raise IncompatibleError(
                f"Tokenizer {self.name!r} has no BOS token to start documents with. "
                "Use add_bos=False."
            )
        ids_parts = [np.empty(0, np.int32)]
        ends_parts = [np.empty(0, np.int32)]
        counts: list[int] = []
        prefix = np.array([self.bos_id], np.int32) if add_bos else np.empty(0, np.int32)
        for batch in _batches(texts):
            encoded_texts = [_utf8(text) for text in batch]
            encodings = self._backend.encode_batch_fast(batch, add_special_tokens=False)
            for text, data, encoding in zip(batch, encoded_texts, encodings, strict=True):
                ids = encoding.ids
                ids_parts += [prefix, np.array(ids, np.int32)]
                ends_parts += [np.zeros_like(prefix), self._ends(text, data, ids).astype(np.int32)]
                counts.append(len(prefix) + len(ids))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        return TokenTable(np.concatenate(ids_parts), np.concatenate(ends_parts), offsets)

    def _chat(self, variables: Variables, fallback: str | None) -> ChatEncoder:
        special = {at for at, kind in enumerate(self.vocabulary.kinds) if kind == "special"}
        return ChatEncoder(
            ChatTemplate(self._hugging_face, self.name, fallback),
            variables,
            self._chat_backend,
            self._ends,
            frozenset(special),
            self.bos_id,
        )

    @cached_property
    def unspelled_bytes(self) -> bytes:
        """The bytes that the vocabulary cannot spell, ascending; `encode` leaves them out.

        Only a byte-level vocabulary may lack bytes: SmolLM2's lacks 04 and seven others.
        """
        return unspelled_bytes(self._serialized)

    def unspelled(self, text: str) -> bytes:
        """Those of `unspelled_bytes` that a text holds, as the tokenizer normalizes it."""
        return self._ends.unspelled_in(text)

    @cached_property
    def _ends(self) -> EndOffsets:
        return EndOffsets(self._serialized, self._backend, self.vocabulary.token_bytes)

    @cached_property
    def _backend(self) -> Any:  # noqa: ANN401 - the tokenizers library is untyped
        return self._unprocessed(encode_special_tokens=True)

    @cached_property
    def _chat_backend(self) -> Any:  # noqa: ANN401 - as above
        return self._unprocessed(encode_special_tokens=False)

    def _unprocessed(self, *, encode_special_tokens: bool) -> Any:  # noqa: ANN401 - as above
        """A copy without post-processing, which trims offsets and adds special tokens.

        Args:
            encode_special_tokens: whether a special token that is spelled out is text.
        """
        import tokenizers

        content = {**self._serialized, "post_processor": None, "truncation": None, "padding": None}
        backend = tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
        backend.encode_special_tokens = encode_special_tokens
        return backend


def chat_encoder(
    tokenizer: Tokenizer, variables: Variables, fallback: str | None = None
) -> ChatEncoder:
    """What encodes conversations by a tokenizer's own chat template.

    Args:
        tokenizer: the tokenizer.
        variables: passed to the template.
        fallback: the template to use if the tokenizer has none.

    Raises:
        IncompatibleError: there is no template, or it cannot be used.
    """
    return tokenizer._chat(variables, fallback)


def as_tokenizer(tokenizer: Any) -> Tokenizer:  # noqa: ANN401 - Hugging Face classes are untyped
    """A `Tokenizer` unchanged, a Hugging Face tokenizer wrapped, a path or hub id loaded.

    A `tiktoken.Encoding` and a `sentencepiece.SentencePieceProcessor` are converted, and the
    conversion is proved to give their ids.

    Raises:
        IncompatibleError: a slow tokenizer, or one whose conversion does not give its ids.
        NotFoundError, InvalidInputError, MissingDependencyError: as `load_tokenizer`.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(tokenizer, str | os.PathLike):
        return load_tokenizer(tokenizer)
    library = type(tokenizer).__module__.partition(".")[0]
    if library == "tiktoken":
        return Tokenizer(conversions.fast_from_tiktoken(tokenizer), tokenizer.name)
    if library == "sentencepiece":
        return Tokenizer(conversions.fast_from_sentencepiece(tokenizer, library), library)
    return Tokenizer(tokenizer)


def load_tokenizer(
    spec: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> Tokenizer:
    """Load a tokenizer from a folder, a file, or the Hugging Face hub.

    Files are `.gguf`, `tokenizer.json`, sentencepiece's `.model` and Mistral's `tekken….json`.

    Args:
        spec: a local path (which never uses the network), `package:NAME/PATH` (inside an
            installed package) or a hub id.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run tokenizer code that comes with the model.

    Raises:
        NotFoundError: no such folder, file or hub id, or no tokenizer in it.
        InvalidInputError: a file of another kind.
        IncompatibleError: a slow tokenizer, one that transformers cannot load, or a file whose
            conversion does not give its ids.
        MissingDependencyError: a package the tokenizer needs is not installed.
    """
    text = resolve_path(os.fspath(spec))
    path = Path(text).expanduser()
    converted = _converted_file(path)
    if converted is not None:
        return converted
    options: dict[str, Any] = {}
    source = text
    if path.exists() or text.startswith((".", "/", "~")) or text.endswith(".gguf"):
        _check_local(path, text)
        options["local_files_only"] = True
        source = str(path)
    elif revision is not None:
        options["revision"] = revision
    try:
        return Tokenizer(
            load_hugging_face(source, options, trust_remote_code=trust_remote_code), path.name
        )
    except FusestoreError:
        raise
    except ImportError as error:
        raise MissingDependencyError(f"The tokenizer of {text} needs a package: {error}") from error
    except OSError as error:
        raise NotFoundError(
            f"No tokenizer could be loaded from {text}: {error}. Check the name, and that the "
            "folder or repository holds tokenizer.json."
        ) from error
    except Exception as error:
        refuse_untrusted_code(error, f"The tokenizer of {text}")
        # The tokenizers library raises Exception itself for a file it cannot read.
        raise IncompatibleError(
            f"The tokenizer of {text} could not be loaded by transformers: {error}"
        ) from error


def _converted_file(path: Path) -> Tokenizer | None:
    """The tokenizer of a single tokenizer file; None for any other path."""
    if not path.is_file():
        return None
    if path.suffix == ".gguf":
        return Tokenizer(gguf_tokenizer(path), path.stem)
    if ".model" in path.suffixes:
        return Tokenizer(conversions.fast_from_sentencepiece_file(path), path.name)
    if path.name == "tokenizer.json":
        return load_tokenizer(path.parent)
    if path.suffix == ".json":
        return Tokenizer(conversions.fast_from_tekken(path), path.name)
    return None


def _check_local(path: Path, spec: str) -> None:
    """Refuse paths for which transformers would fail with a misleading message."""
    if not path.exists():
        raise NotFoundError(
            f"No tokenizer at {spec}: there is no such file or folder. Give a model folder, "
            "a .gguf file or a Hugging Face hub id."
        )
    if path.suffix == ".tiktoken":
        raise InvalidInputError(
            f"{spec} holds byte pairs, but not the pattern that splits text before they apply. "
            "Give fusestore a tiktoken.Encoding made of it, or the folder that holds "
            "tokenizer.json."
        )
    if path.is_file():
        raise InvalidInputError(
            f"{spec} is a file, but no .gguf, tokenizer.json, sentencepiece .model or tekken.json. "
            "Give the folder that holds tokenizer.json."
        )
    patterns = ("*token*", "vocab*", "*.model")
    if path.is_dir() and not any(next(path.glob(pattern), None) for pattern in patterns):
        raise NotFoundError(
            f"Folder {spec} holds no tokenizer: there is no tokenizer.json in it. "
            "Give the folder of a model together with its tokenizer."
        )


def _canonical(serialized: dict[str, Any]) -> dict[str, Any]:
    """The content of a serialized tokenizer that changes ids, offsets or token bytes."""
    kept = ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
    content: dict[str, Any] = {key: copy.copy(serialized.get(key)) for key in kept}
    content["version"] = serialized.get("version", "1.0")
    content["added_tokens"] = sorted(content["added_tokens"] or [], key=lambda token: token["id"])
    if content["model"].get("dropout"):
        # Dropout is for training; here the same text must give the same tokens every time.
        content["model"]["dropout"] = None
    return content


def _role_ids(hugging_face: Any, serialized: dict[str, Any]) -> dict[Role, int]:  # noqa: ANN401
    roles: dict[Role, int] = {}
    for role in _ROLES:
        token_id = getattr(hugging_face, f"{role}_token_id", None)
        if token_id is not None:
            roles[role] = int(token_id)
    unknown = model_unknown_id(serialized)
    if "unk" not in roles and unknown is not None:
        roles["unk"] = unknown
    return roles


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"Character {error.start} of a text is the lone surrogate "
            f"U+{ord(text[error.start]):04X}, which UTF-8 cannot express; remove it."
        ) from error


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
