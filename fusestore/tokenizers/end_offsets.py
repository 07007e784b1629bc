"""The byte offset at which each token of a text ends.

There are two ways. If the tokens' bytes, one after another, are the text, the offsets are their
cumulated lengths, exact inside characters too. If a normalizer changed the text, or a token stands
for text outside the vocabulary, the tokenizer's character offsets are converted to bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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


def byte_offsets_of_characters(text: str) -> npt.NDArray[np.int64]:
    """int64 [len(text) + 1]: the byte of the UTF-8 text at which each character starts."""
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths, dtype=np.int64)])
