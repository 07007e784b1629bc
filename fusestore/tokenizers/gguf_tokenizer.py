"""The tokenizer that a GGUF file describes, as the model was trained with it.

For byte-level vocabularies (`tokenizer.ggml.model = gpt2`) everything is taken from the file: ids,
merges, special and user-defined tokens, BOS and EOS, and the pre-tokenizer by its name.
transformers knows fewer names, and reads a file with another as if it were GPT-2's. Sentencepiece
and Unigram vocabularies, which have no pre-tokenizer, are left to transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.storage.gguf_file import open_gguf, read_once
from fusestore.tokenizers.gguf_splits import SPLITS, Split

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
"""Types of tokens in `tokenizer.ggml.token_type` that are not ordinary text."""

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Roles of Hugging Face, and their names in the keys `tokenizer.ggml.NAME_token_id`."""

_FOLDER = "Give the folder of the model with its tokenizer.json and safetensors files instead."


def gguf_tokenizer(gguf: Path, reader: Any = None) -> Any:  # noqa: ANN401 - Hugging Face classes are untyped
    """The tokenizer that a GGUF file describes, as a fast Hugging Face tokenizer.

    Its `save_pretrained` writes tokenizer.json, tokenizer_config.json and the chat template.

    Args:
        gguf: the file; of a split model, its first part.
        reader: of the file, if it is open.

    Raises:
        IncompatibleError: the rule that splits text has a name whose meaning is not known, or the
            vocabulary is of a kind that transformers does not read.
        InvalidInputError: the file cannot be read, or holds no whole vocabulary.
        MissingDependencyError: the package `gguf` is not installed.
    """
    reader = reader or open_gguf(gguf)
    metadata = _Metadata(gguf, reader.fields)
    if metadata.text("model") == "gpt2":
        return _byte_level(metadata)
    from transformers import AutoTokenizer

    try:
        with read_once(reader, gguf):
            loaded = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise IncompatibleError(
            f"transformers could not read the tokenizer of {gguf} (tokenizer.ggml.model = "
            f"{metadata.text('model')!r}): {error}. {_FOLDER}"
        ) from error
    return _sentencepiece(loaded, metadata) if metadata.text("model") == "llama" else loaded


@dataclass(frozen=True)
class _Metadata:
    """The fields of a GGUF file."""

    path: Path
    fields: Mapping[str, Any]

    def get(self, key: str) -> Any:  # noqa: ANN401 - a field may be of any type
        """The value of a field, None if the file does not have it."""
        field = self.fields.get(key)
        return None if field is None else field.contents()

    def text(self, key: str) -> str:
        """A text below `tokenizer.ggml`, empty if the file does not have it."""
        return str(self.get(f"tokenizer.ggml.{key}") or "")

    def array(self, key: str) -> list[Any]:
        """A list below `tokenizer.ggml`."""
        value = self.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list):
            raise InvalidInputError(
                f"{self.path} holds no list tokenizer.ggml.{key}, so its vocabulary is not whole. "
                f"{_FOLDER}"
            )
        return value

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens by id, as the file spells them."""
        return [str(token) for token in self.array("tokens")]

    def flag(self, key: str, default: bool) -> bool:
        """A truth value below `tokenizer.ggml`."""
        value = self.get(f"tokenizer.ggml.{key}")
        return default if value is None else bool(value)

    def roles(self) -> dict[str, str]:
        """Tokens by Hugging Face's names of their roles."""
        ids = {role: self.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
        return {f"{role}_token": self.tokens[int(i)] for role, i in ids.items() if i is not None}

    def named_ids(self) -> set[int]:
        """The ids of all tokens that the file names for a use of their own."""
        keys = [key for key in self.fields if key.endswith("_token_id")]
        ids = {int(self.get(key)) for key in keys}
        if not ids <= set(range(len(self.tokens))):
            raise InvalidInputError(
                f"{self.path} names token ids from {min(ids)} to {max(ids)} as special, but holds "
                f"{len(self.tokens):,} tokens. {_FOLDER}"
            )
        return ids

    def chat_template(self) -> str | dict[str, str] | None:
        """The chat template; by name if there are several."""
        default = self.get("tokenizer.chat_template")
        named = {
            str(name): str(template)
            for name in self.get("tokenizer.chat_templates") or ()
            if (template := self.get(f"tokenizer.chat_template.{name}"))
        }
        if not named:
            return None if default is None else str(default)
        return {"default": str(default), **named} if default else named


def _sentencepiece(loaded: Any, metadata: _Metadata) -> Any:  # noqa: ANN401 - Hugging Face is untyped
    """The tokenizer that transformers made of a sentencepiece vocabulary, with the file's rules.

    transformers puts a space before a text only if it begins with none, whatever the file says, and
    leaves out user-defined tokens of spaces, which the file spells with spaces and the vocabulary
    with `▁`.
    """
    import tokenizers
    from tokenizers import decoders, normalizers
    from transformers import PreTrainedTokenizerFast

    adds_space = metadata.flag("add_space_prefix", True)
    backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁")] * adds_space + [normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", 1, 0)] * adds_space
    )
    spelled = enumerate(zip(metadata.tokens, metadata.array("token_type"), strict=True))
    user_defined = {i: t.replace(" ", "▁") for i, (t, kind) in spelled if kind == _USER_DEFINED}
    backend.add_tokens(
        [
            tokenizers.AddedToken(text, normalized=False)
            for i, text in user_defined.items()
            if backend.token_to_id(text) == i
        ]
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=backend,
        chat_template=metadata.chat_template(),
        clean_up_tokenization_spaces=False,
        **metadata.roles(),
    )


def _byte_level(metadata: _Metadata) -> Any:  # noqa: ANN401 - Hugging Face classes are untyped
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = _split(metadata)
    tokens = metadata.tokens
    types = [int(kind) for kind in metadata.array("token_type")]
    merges: Any = [tuple(str(merge).split(" ", 1)) for merge in metadata.array("merges")]
    if len(types) != len(tokens):
        raise InvalidInputError(
            f"{metadata.path} holds {len(tokens):,} tokens but {len(types):,} types of tokens. "
            f"{_FOLDER}"
        )
    used = {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED}
    try:
        model = models.BPE(used, merges, ignore_merges=split.ignore_merges)
    except Exception as error:
        # The tokenizers library raises Exception itself.
        raise InvalidInputError(
            f"The merges of {metadata.path} do not fit its tokens ({error}). {_FOLDER}"
        ) from error
    backend = tokenizers.Tokenizer(model)
    if split.composes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
                for pattern in split.patterns
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    # A token that the file names for a use of its own is special, whatever its type says.
    special = {i for i, kind in enumerate(types) if kind in (_UNKNOWN, _CONTROL)}
    special |= metadata.named_ids()
    added = [i for i in range(len(tokens)) if i in special or types[i] == _USER_DEFINED]
    backend.add_tokens(
        [
            tokenizers.AddedToken(tokens[i], normalized=False, special=i in special)
            for i in added
            if tokens[i] in used
        ]
    )
    roles = metadata.roles()
    _add_ends(backend, metadata, roles, split)
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=backend,
        chat_template=metadata.chat_template(),
        clean_up_tokenization_spaces=False,
        **roles,
    )


def _add_ends(backend: Any, metadata: _Metadata, roles: dict[str, str], split: Split) -> None:  # noqa: ANN401
    """Make the tokenizer add BOS and EOS as the file says."""
    from tokenizers import processors

    def end(role: Literal["bos", "eos"], default: bool) -> list[str]:
        adds = metadata.flag(f"add_{role}_token", default)
        return [roles[f"{role}_token"]] if adds and f"{role}_token" in roles else []

    first, last = end("bos", split.adds_bos), end("eos", False)
    if first or last:
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            special_tokens=[(token, backend.token_to_id(token)) for token in {*first, *last}],
        )


def _split(metadata: _Metadata) -> Split:
    name = metadata.text("pre")
    if name in SPLITS:
        return SPLITS[name]
    rule = f"the rule {name!r} (tokenizer.ggml.pre)" if name else "a rule that it does not name"
    raise IncompatibleError(
        f"{metadata.path} splits text by {rule}, which fusestore does not know, so its tokens "
        f"would not be those the model was trained on. {_FOLDER}"
    )
