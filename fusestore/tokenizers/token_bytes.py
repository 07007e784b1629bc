"""The bytes of text that each token stands for, derived from the tokenizer's own components.

The convention follows from what the serialized tokenizer does (its decoder, pre-tokenizer and
model), never from the name of its class, so a tokenizer of any family that the `tokenizers`
library can express is supported: byte-level BPE, sentencepiece-style BPE and Unigram with `▁`
and byte fallback, WordPiece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fusestore.tokenizers.vocabulary import Role, TokenKind, Vocabulary

_NEVER_IN_UTF8 = b"\xc0\xc1" + bytes(range(0xF5, 0x100))

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def vocabulary_of(
    serialized: Mapping[str, Any], roles: Mapping[Role, int], digest: str
) -> Vocabulary:
    """The vocabulary of a tokenizer.

    A WordPiece token that starts a word stands for its own text without a space, because the token
    does not determine whether a space precedes it. Added tokens that the model itself lacks match
    the text literally, so they stand for their content.

    Args:
        serialized: the tokenizer as `tokenizers.Tokenizer.to_str` writes it, parsed.
        roles: special ids by role; an id with a role is of kind `special`.
        digest: the tokenizer's digest.
    """
    model = serialized["model"]
    to_bytes = _convention(serialized)
    model_vocab = _model_vocab(model)
    added = {int(token["id"]): token for token in serialized.get("added_tokens", ())}
    length = 1 + max([-1, *model_vocab.values(), *added])
    token_bytes = [b""] * length
    kinds: list[TokenKind] = ["unused"] * length
    byte_fallback = bool(model.get("byte_fallback")) or any(
        part["type"] == "ByteFallback" for part in component_parts(serialized.get("decoder"))
    )
    for token, token_id in model_vocab.items():
        fallback = _BYTE_FALLBACK.fullmatch(token) if byte_fallback else None
        if fallback:
            token_bytes[token_id] = bytes([int(fallback[1], 16)])
            kinds[token_id] = "byte"
        else:
            token_bytes[token_id] = to_bytes(token)
            kinds[token_id] = "text"
    special = {token_id for token_id, token in added.items() if token["special"]}
    contents = {token_id: token["content"] for token_id, token in added.items()}
    spelling = {token_id: token for token, token_id in model_vocab.items()}
    for token_id in sorted(special | set(added) | set(roles.values())):
        if kinds[token_id] == "byte":
            continue
        is_special = token_id in special or token_id in roles.values()
        if is_special or kinds[token_id] == "unused":
            content = contents.get(token_id, spelling.get(token_id, ""))
            token_bytes[token_id] = content.encode()
        kinds[token_id] = "special" if is_special else "text"
    ordered = tuple(sorted(roles.items()))
    return Vocabulary(digest, tuple(token_bytes), tuple(kinds), ordered)


def model_unknown_id(serialized: Mapping[str, Any]) -> int | None:
    """The id that the model itself writes for unknown text, if it has one."""
    model = serialized["model"]
    if model["type"] == "Unigram":
        unknown = model.get("unk_id")
        return None if unknown is None else int(unknown)
    unknown = model.get("unk_token")
    return None if unknown is None else _model_vocab(model).get(unknown)


def _model_vocab(model: Mapping[str, Any]) -> dict[str, int]:
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return {piece: token_id for token_id, (piece, _) in enumerate(vocab)}
    return dict(vocab)


def component_parts(component: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The component, or the members of a `Sequence` of components."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        for part in component.get(key, ()):
            yield from component_parts(part)


def space_spellings(serialized: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the vocabulary writes in place of text, mostly `▁` for a space: (spelling, text)."""
    if _is_byte_level(serialized):
        return []
    pre_tokenizers = component_parts(serialized.get("pre_tokenizer"))
    decoders = list(component_parts(serialized.get("decoder")))
    spellings: list[tuple[str, str]] = [
        (part["replacement"], " ")
        for part in [*pre_tokenizers, *decoders]
        if part["type"] == "Metaspace"
    ]
    spellings += [
        (part["pattern"]["String"], part["content"])
        for part in decoders
        if part["type"] == "Replace" and "String" in part["pattern"]
    ]
    return list(dict.fromkeys(spellings))


def unspelled_bytes(serialized: Mapping[str, Any]) -> bytes:
    """The bytes of UTF-8 that a byte-level vocabulary lacks; the model deletes them from a text."""
    model = serialized["model"]
    if not _is_byte_level(serialized) or model["type"] != "BPE":
        return b""
    if model_unknown_id(serialized) is not None:
        return b""
    return bytes(
        byte
        for byte, character in sorted(_CHARACTER_OF_BYTE.items())
        if character not in model["vocab"] and byte not in _NEVER_IN_UTF8
    )


def _is_byte_level(serialized: Mapping[str, Any]) -> bool:
    return any(
        part["type"] == "ByteLevel"
        for key in ("normalizer", "pre_tokenizer", "decoder")
        for part in component_parts(serialized.get(key))
    )


def _convention(serialized: Mapping[str, Any]) -> Callable[[str], bytes]:
    """The function from the spelling of a token in the vocabulary to its bytes."""
    if _is_byte_level(serialized):
        return _byte_level_bytes
    replacements = space_spellings(serialized)
    prefix = serialized["model"].get("continuing_subword_prefix") or ""
    suffix = serialized["model"].get("end_of_word_suffix") or ""

    def to_bytes(token: str) -> bytes:
        # A token that is only the prefix stands for that text ("##" in BERT's vocabulary).
        if prefix and len(token) > len(prefix):
            token = token.removeprefix(prefix)
        if suffix:
            token = token.removesuffix(suffix)
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return to_bytes


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        # A token that is not in byte-level spelling stands for itself.
        return token.encode()


def byte_level_text(token: bytes) -> str:
    """Bytes as a byte-level tokenizer spells them, one character each."""
    return "".join(map(_CHARACTER_OF_BYTE.__getitem__, token))


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes are themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + index): byte for index, byte in enumerate(others)}
    return table


_BYTE_OF_CHARACTER = _byte_of_character()
_CHARACTER_OF_BYTE = {byte: character for character, byte in _BYTE_OF_CHARACTER.items()}
