"""Reads a sentencepiece `.model` file: its pieces, and how it normalizes text.

The file is a protocol buffer (`sentencepiece_model.proto` of google/sentencepiece names its fields
by number). The few that are needed do not justify a protobuf runtime.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fusestore.errors import InvalidInputError

_USER_DEFINED = 4
"""Type of a piece that is split off the text before anything else."""

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class SentencePieceModel:
    """A model file's content.

    Attributes:
        pieces: text and score of every id.
        user_defined: pieces that are matched literally in the text.
        model_type: unigram, bpe, word or char.
        byte_fallback: whether unknown characters become byte pieces.
        charsmap: the compiled normalization rules, empty for none.
        adds_dummy_prefix: whether a space is added before the text.
        removes_extra_spaces: whether outer spaces are stripped and runs of spaces become one.
    """

    pieces: tuple[tuple[str, float], ...]
    user_defined: tuple[str, ...]
    model_type: str
    byte_fallback: bool
    charsmap: bytes
    adds_dummy_prefix: bool
    removes_extra_spaces: bool


def parse_sentencepiece(data: bytes, name: str) -> SentencePieceModel:
    """Read a serialized model.

    Raises:
        InvalidInputError: the bytes are no sentencepiece model.
    """
    pieces: list[tuple[str, float]] = []
    user_defined: list[str] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(_as_bytes(value)))
                text = _as_bytes(piece[1]).decode()
                pieces.append((text, struct.unpack("<f", _as_bytes(piece.get(2, bytes(4))))[0]))
                if piece.get(3) == _USER_DEFINED:
                    user_defined.append(text)
            elif number == 2:
                trainer.update(_fields(_as_bytes(value)))
            elif number == 3:
                normalizer.update(_fields(_as_bytes(value)))
        model_type = _MODEL_TYPES[int(trainer.get(3, 1))]
        charsmap = _as_bytes(normalizer.get(2, b""))
    except (KeyError, IndexError, TypeError, ValueError, struct.error) as error:
        raise InvalidInputError(f"{name} is no sentencepiece model: {error!r}") from error
    if not pieces:
        raise InvalidInputError(f"{name} is no sentencepiece model: it holds no pieces.")
    return SentencePieceModel(
        tuple(pieces),
        tuple(user_defined),
        model_type,
        bool(trainer.get(35, 0)),
        charsmap,
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
    )


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number where bytes belong")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field of one message; if a field occurs twice, the last counts."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire_type}")
        if size > len(data) - at:
            raise ValueError(f"field {number} is cut short")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return result, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
