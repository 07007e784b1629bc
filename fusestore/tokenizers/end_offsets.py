"""The byte offset at which each token of a text ends, in the text as the user gave it.

If the tokens' bytes, one after another, are the text, the offsets are their cumulated lengths,
exact inside characters too. If they are the text as the tokenizer changes it (a normalizer, bytes
outside the vocabulary), the lengths are cumulated there, and mapped to the text by its origins. If
a token stands for text outside the vocabulary, or text is left out between tokens, the tokenizer's
character offsets are converted to bytes.

A token ends behind every character it has taken part of. Where that leaves no exact offset (the
token ends inside characters that were changed together), the token gets the offset of the first
token after it that has one. So it is never the last token at an offset, and alignment never pairs
it as `span`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.tokenizers.text_origins import (
    INSIDE,
    Origins,
    TextNormalizer,
    characters,
    composed,
    replaced,
    without_bytes,
)
from fusestore.tokenizers.token_bytes import space_spellings, unspelled_bytes


class EndOffsets:
    """Finds where tokens end, for one tokenizer."""

    def __init__(
        self,
        serialized: Mapping[str, Any],
        backend: Any,  # noqa: ANN401 - the tokenizers library is untyped
        token_bytes: Sequence[bytes],
    ) -> None:
        """Take a tokenizer's content, a `tokenizers.Tokenizer` of it, and the bytes of each id."""
        self._unspelled = unspelled_bytes(serialized)
        self._serialized = serialized
        self._backend = backend
        self._token_bytes = token_bytes
        self._lengths = np.array([len(token) for token in token_bytes], np.int64)
        self._normalizer = TextNormalizer(serialized.get("normalizer"))
        self._spellings = space_spellings(serialized)

    def __call__(
        self,
        text: str,
        data: bytes,
        ids: list[int],
        spans: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64]:
        """End offsets of the tokens of a text; never decreasing.

        Args:
            text: the text.
            data: the same in UTF-8.
            ids: its n tokens.
            spans: int64 [n, 2], the characters of each, where the text is part of a longer one, and
                may have other tokens by itself.

        Returns:
            int64 [n].
        """
        joined = b"".join(map(self._token_bytes.__getitem__, ids))
        lengths = self._lengths[np.array(ids, np.int64)]
        ends = concatenated_end_offsets(joined, lengths, data)
        if ends is not None or not ids:
            return lengths if ends is None else ends
        normalized, origins = self._normalizer(text)
        spelled, spelled_origins = self._spelled(normalized, origins)
        ends = concatenated_end_offsets(joined, lengths, spelled)
        if ends is not None:
            return original_end_offsets(ends, ends, spelled_origins, np.ones(len(ids), np.bool_))
        if self.unspelled_in(normalized):
            # Spans of the tokenizers library are wrong behind a deleted byte.
            return np.full(len(ids), len(data), np.int64)
        if spans is None:
            spans = self._spans(self._backend, text)
        if origins is None:
            return self._of_spans(spans, text, None, ids)
        encoding = self._plain.encode(normalized, add_special_tokens=False)
        if encoding.ids != ids:
            return character_end_offsets(spans, text)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return self._of_spans(spans, normalized, origins, ids)

    def _of_spans(
        self, spans: npt.NDArray[np.int64], text: str, origins: Origins | None, ids: list[int]
    ) -> npt.NDArray[np.int64]:
        """End offsets from the character spans of tokens in a text with these origins."""
        data = text.encode()
        ends = converted_end_offsets(spans, self._lengths[np.array(ids, np.int64)], text)
        starts = byte_offsets_of_characters(text)[np.append(spans[1:, 0], len(text))]
        if origins is None:
            origins = np.arange(len(data) + 1)
        spelled = _spelled_inside(ends, [self._token_bytes[i] for i in ids], data)
        return original_end_offsets(ends, np.maximum(starts, ends), origins, spelled)

    def unspelled_in(self, text: str) -> bytes:
        """The distinct bytes of a text that the vocabulary lacks, ascending."""
        if not self._unspelled:
            return b""
        present = set(self._normalizer(text)[0].encode())
        return bytes(byte for byte in self._unspelled if byte in present)

    def _spelled(self, normalized: str, origins: Origins | None) -> tuple[bytes, Origins]:
        """What the tokens of a normalized text should spell, and its origins in the text."""
        if origins is None:
            origins = np.arange(len(normalized.encode()) + 1)
        for spelling, meant in self._spellings:
            if spelling in normalized:
                normalized, step = replaced(normalized, spelling, meant)
                origins = composed(origins, step)
        data = normalized.encode()
        if self._unspelled:
            data, step = without_bytes(data, self._unspelled)
            origins = composed(origins, step)
        return data, origins

    @staticmethod
    def _spans(backend: Any, text: str) -> npt.NDArray[np.int64]:  # noqa: ANN401 - as above
        encoding = backend.encode(text, add_special_tokens=False)
        return np.array(encoding.offsets, np.int64).reshape(-1, 2)

    @cached_property
    def _plain(self) -> Any:  # noqa: ANN401 - as above
        """The tokenizer without its normalizer, so that its spans are of the normalized text."""
        import tokenizers

        content = {**self._serialized, "normalizer": None}
        backend = tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
        backend.encode_special_tokens = True
        return backend


def concatenated_end_offsets(
    joined: bytes, lengths: npt.NDArray[np.int64], text: bytes
) -> npt.NDArray[np.int64] | None:
    """End offsets if the tokens' bytes are the text, or the text after one added space.

    Args:
        joined: the bytes of all tokens, concatenated.
        lengths: int64 [n], bytes of each token.
        text: the text as UTF-8.

    Returns:
        int64 [n], or None if the bytes differ. A space that the tokenizer adds before the text
        ends at 0.
    """
    if joined == text:
        return np.cumsum(lengths)
    if len(joined) == len(text) + 1 and joined.startswith(b" ") and joined.endswith(text):
        return np.maximum(np.cumsum(lengths) - 1, 0)
    return None


def converted_end_offsets(
    spans: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], text: str
) -> npt.NDArray[np.int64]:
    """End offsets from character spans, for any normalizer.

    A token ends where its last character ends. If several tokens share that character, only the
    last of them reaches its end. The others end strictly inside, as far from the end as the bytes
    of the tokens that follow. A token without text ends where the token before it does.

    Args:
        spans: int64 [n, 2], start and end character of each token in `text`.
        lengths: int64 [n], bytes each token stands for.
        text: the text.

    Returns:
        int64 [n], never decreasing, at most the text's length in UTF-8 bytes.
    """
    if len(spans) == 0:
        return np.zeros(0, np.int64)
    byte_of = byte_offsets_of_characters(text)
    ends = np.maximum.accumulate(spans[:, 1])
    starts = np.where(spans[:, 0] == spans[:, 1], ends, spans[:, 0])
    result = byte_of[ends]
    shared = starts[1:] < ends[:-1]
    for index in np.flatnonzero(shared)[::-1]:
        limit = byte_of[ends[index]]
        following = index + 1
        while following < len(ends) - 1 and shared[following] and ends[following] == ends[index]:
            following += 1
        if ends[following] == ends[index]:
            inside = limit - lengths[index + 1 : following + 1].sum()
        else:
            before = byte_of[ends[index - 1]] if index else 0
            inside = before + lengths[index]
        result[index] = min(max(inside, byte_of[starts[index + 1]]), limit - 1)
    return np.maximum.accumulate(result)


def original_end_offsets(
    ends: npt.NDArray[np.int64],
    limits: npt.NDArray[np.int64],
    origins: Origins,
    exact: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int64]:
    """End offsets in a text from those in its changed form.

    Args:
        ends: int64 [n], in the changed text, never decreasing.
        limits: int64 [n], where the next token begins in the changed text; what lies between is
            part of no token, so a token that ends inside changed characters may end there exactly.
        origins: of the changed text.
        exact: bool [n], whether the end is known in the changed text.

    Returns:
        int64 [n]; a token without an exact offset has that of the first one after it.
    """
    result = np.where(exact, origins[ends], INSIDE)
    for index in np.flatnonzero(exact & (result == INSIDE)):
        between = origins[ends[index] : limits[index] + 1]
        result[index] = next((offset for offset in between if offset != INSIDE), INSIDE)
    return _of_the_next_exact(result, int(origins[-1]))


def character_end_offsets(spans: npt.NDArray[np.int64], text: str) -> npt.NDArray[np.int64]:
    """End offsets from character spans of a text whose changes are not known any closer.

    Args:
        spans: int64 [n, 2], start and end character of each token in `text`; the tokenizers
            library leaves out what a normalizer composed or deleted.
        text: the text.

    Returns:
        int64 [n]: a token ends behind what a reader sees as its last character. If the next token
        has part of that too, it has the offset of the first token after it that ends exactly.
    """
    sizes = np.array([len(character) for character in characters(text)], np.int64)
    behind = np.concatenate([np.zeros(1, np.int64), np.repeat(np.cumsum(sizes), sizes)])
    ends = behind[np.maximum.accumulate(spans[:, 1])]
    exact = ends <= np.append(spans[1:, 0], len(text))
    offsets = byte_offsets_of_characters(text)[ends]
    return _of_the_next_exact(np.where(exact, offsets, INSIDE), len(text.encode()))


def _spelled_inside(
    ends: npt.NDArray[np.int64], tokens: Sequence[bytes], data: bytes
) -> npt.NDArray[np.bool_]:
    """Whether each token that ends inside a character spells the character's bytes up to there.

    A space that a tokenizer adds shares the first character with the token after it, and a token
    of unknown text may share one: their ends inside it were only guessed from lengths.
    """
    spelled = np.ones(len(ends), np.bool_)
    values = np.frombuffer(data + b" ", np.uint8)
    for index in np.flatnonzero((values[ends] & 0xC0) == 0x80).tolist():
        start = end = int(ends[index])
        while values[start] & 0xC0 == 0x80:
            start -= 1
        start = max(start, int(ends[index - 1]) if index else 0)
        spelled[index] = tokens[index].endswith(data[start:end])
    return spelled


def _of_the_next_exact(ends: npt.NDArray[np.int64], last: int) -> npt.NDArray[np.int64]:
    """The end offsets with each `INSIDE` replaced by the next other one, or by `last`."""
    known = np.where(ends == INSIDE, last, ends)
    result: npt.NDArray[np.int64] = np.minimum.accumulate(known[::-1])[::-1]
    return result


def byte_offsets_of_characters(text: str) -> npt.NDArray[np.int64]:
    """int64 [len(text) + 1]: the byte of the UTF-8 text at which each character starts."""
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths, dtype=np.int64)])
