"""Edit distances between the texts of tokens for dynamic time warping: many, and short.

Both sides' texts are coded once over one alphabet. A distance then costs about 20 ns: texts without
a common character are not compared, and others of up to 64 characters take one machine word per
character.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from fusestore.align.edit_distance import WORD, Texts, bit_parallel, levenshtein


class TokenTexts(NamedTuple):
    """Distinct texts of one side, flat.

    Attributes:
        characters: int32 [N], indices into the alphabet that both sides share.
        offsets: int64 [U + 1]: text i is `characters[offsets[i]:offsets[i + 1]]`.
        signatures: uint64 [U], the set of a text's characters, hashed into 64 bits.
        alphabet: characters of the alphabet.
    """

    characters: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    signatures: npt.NDArray[np.uint64]
    alphabet: int


def code_texts(source: Sequence[str], target: Sequence[str]) -> tuple[TokenTexts, TokenTexts]:
    """The two sides' texts over their common alphabet."""
    left, right = Texts.of(source), Texts.of(target)
    alphabet, inverse = np.unique(
        np.concatenate([left.characters, right.characters]), return_inverse=True
    )
    codes: npt.NDArray[np.int32] = inverse.astype(np.int32)
    border = len(left.characters)
    return (
        TokenTexts(
            codes[:border], left.offsets, _signatures(codes[:border], left.offsets), len(alphabet)
        ),
        TokenTexts(
            codes[border:], right.offsets, _signatures(codes[border:], right.offsets), len(alphabet)
        ),
    )


@numba.njit(cache=True, nogil=True)
def _signatures(
    characters: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    result = np.zeros(len(offsets) - 1, np.uint64)
    for i in range(len(result)):
        for position in range(offsets[i], offsets[i + 1]):
            result[i] |= np.uint64(1) << np.uint64(characters[position] & (WORD - 1))
    return result


@numba.njit(cache=True, nogil=True)
def mark_text(texts: TokenTexts, text: int, masks: npt.NDArray[np.uint64]) -> None:
    """Set bit i of `masks[c]` where the text's character i is c; `unmark_text` resets them.

    `masks` is uint64 [alphabet], scratch that is zero when no text is marked. Texts longer than a
    word leave it zero.
    """
    start, stop = texts.offsets[text], texts.offsets[text + 1]
    if stop - start <= WORD:
        for position in range(start, stop):
            masks[texts.characters[position]] |= np.uint64(1) << np.uint64(position - start)


@numba.njit(cache=True, nogil=True)
def unmark_text(texts: TokenTexts, text: int, masks: npt.NDArray[np.uint64]) -> None:
    """Make `masks` zero again."""
    for position in range(texts.offsets[text], texts.offsets[text + 1]):
        masks[texts.characters[position]] = 0


@numba.njit(cache=True, nogil=True, inline="always")
def marked_distance(
    source: TokenTexts, left: int, target: TokenTexts, right: int, masks: npt.NDArray[np.uint64]
) -> int:
    """Edit distance (insert, delete, substitute, 1 each) of source text `left` to `right`.

    Args:
        source: texts of one side.
        left: index of the marked source text.
        target: texts of the other side.
        right: index of the target text.
        masks: set by `mark_text`.
    """
    start, stop = source.offsets[left], source.offsets[left + 1]
    other_start, other_stop = target.offsets[right], target.offsets[right + 1]
    length, other_length = stop - start, other_stop - other_start
    if source.signatures[left] & target.signatures[right] == 0:
        # Without a common character, every character of the longer text costs an edit.
        return int(max(length, other_length))
    if length > WORD:
        row = np.empty(other_length + 1, np.int32)
        return levenshtein(
            source.characters[start:stop], target.characters[other_start:other_stop], row
        )
    return int(
        bit_parallel(
            masks, length, target.characters[other_start:other_stop], length + other_length
        )
    )


@numba.njit(cache=True, nogil=True)
def text_distance(
    source: TokenTexts, left: int, target: TokenTexts, right: int, masks: npt.NDArray[np.uint64]
) -> int:
    """`marked_distance` of a text that is not marked."""
    mark_text(source, left, masks)
    distance = marked_distance(source, left, target, right, masks)
    unmark_text(source, left, masks)
    return int(distance)
