"""Which bytes of a text have been read once a reader of its normalized form has read some of that.

A normalizer (NFC, NFKC, lower case, …) composes, expands, replaces and deletes characters. Origins
map every byte offset of the normalized text to the offset in the text itself at which exactly that
much of it has been read:

    text        cafe + U+0301 + x      c a f e ◌́ x         bytes 0 1 2 3 4 6 7
    NFC         caféx                  offset 3 → 3, 4 → inside é, 5 → 6, 6 → 7

An offset inside characters that were changed together has no such offset, and is `INSIDE`. After
deleted characters, the offset is the one behind them: who has read what precedes them has read all
that a reader of the normalized text can see of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.tokenizers.token_bytes import component_parts

_CLUSTER = {"Regex": r"\X"}

INSIDE = -1
"""The origin of an offset inside characters that were changed together."""

Origins = npt.NDArray[np.int64]
"""int64 [bytes of the changed text + 1]: offsets in the text before the change, or `INSIDE`."""


class TextNormalizer:
    """The normalizer of a tokenizer, with the origin of every byte it writes."""

    def __init__(self, serialized: Mapping[str, Any] | None) -> None:
        """Take a `normalizer` component as `tokenizers.Tokenizer.to_str` writes it, parsed."""
        # A byte-level normalizer only spells bytes in other characters; it changes none.
        parts = [part for part in component_parts(serialized) if part["type"] != "ByteLevel"]
        self._steps = [(part, _function(part)) for part in parts]

    def __call__(self, text: str) -> tuple[str, Origins | None]:
        """The normalized text, and its origins; None for them if nothing changed."""
        result, origins = text, None
        for part, function in self._steps:
            changed = function(result)
            if changed != result:
                step = _step_origins(part, function, result, changed)
                origins = step if origins is None else composed(origins, step)
                result = changed
        return result, origins


def replaced(text: str, old: str, new: str) -> tuple[str, Origins]:
    """The text with `new` in place of each `old`, and its origins."""
    pieces = [(piece, piece.replace(old, new)) for piece in _split({"String": old}, text)]
    return text.replace(old, new), pieces_origins(pieces)


def characters(text: str) -> list[str]:
    """What a reader sees as one character each: the grapheme clusters of a text."""
    return _split(_CLUSTER, text)


def without_bytes(data: bytes, dropped: bytes) -> tuple[bytes, Origins]:
    """The data without each of the bytes `dropped`, and its origins."""
    values = np.frombuffer(data, np.uint8)
    kept = np.flatnonzero(~np.isin(values, np.frombuffer(dropped, np.uint8)))
    return values[kept].tobytes(), np.append(kept, len(data)).astype(np.int64)


def composed(first: Origins, second: Origins) -> Origins:
    """Origins of two changes after one another, in the text before the first."""
    return np.where(second == INSIDE, INSIDE, first[second])


def pieces_origins(pieces: Iterable[tuple[str, str]]) -> Origins:
    """Origins of a text whose pieces were changed one by one.

    Args:
        pieces: each piece before and after the change. A piece that is unchanged may end anywhere
            inside; one that is changed is read as a whole.
    """
    table = [(len(old.encode()), len(new.encode()), old == new) for old, new in pieces]
    before, after, same = np.array(table, np.int64).reshape(-1, 3).T
    ends_before, ends_after = np.cumsum(before), np.cumsum(after)
    shift = np.where(same, ends_before - ends_after, 0)
    origins = np.zeros(int(after.sum()) + 1, np.int64)
    inner = np.arange(1, len(origins)) + np.repeat(shift, after)
    origins[1:] = np.where(np.repeat(same, after), inner, INSIDE)
    # The last of several pieces that end at one offset counts: those after it were deleted.
    np.maximum.at(origins, ends_after, ends_before)
    return origins


def _step_origins(
    part: Mapping[str, Any], function: Callable[[str], str], text: str, changed: str
) -> Origins:
    pieces = list(_pieces(part, function, text, changed))
    if "".join(new for _, new in pieces) != changed:
        # The change does not follow from small pieces, so only the whole text is known to be read.
        pieces = [(text, changed)]
    return pieces_origins(pieces)


def _pieces(
    part: Mapping[str, Any], function: Callable[[str], str], text: str, changed: str
) -> Iterator[tuple[str, str]]:
    """Pieces of the text that the component changes one by one, before and after."""
    if part["type"] == "Prepend":
        yield "", changed.removesuffix(text)
        yield text, text
    elif part["type"] == "Strip":
        start = text.index(changed)
        yield text[:start], ""
        yield changed, changed
        yield text[start + len(changed) :], ""
    elif part["type"] == "Replace":
        for piece in _split(part["pattern"], text):
            yield piece, function(piece)
    else:
        # Canonical and compatibility forms, case and accents are changed within what a reader sees
        # as one character. Lines that stay as they are need not be taken apart.
        images: dict[str, str] = {}
        for line in text.splitlines(keepends=True):
            if function(line) == line:
                yield line, line
                continue
            for cluster in characters(line):
                if cluster not in images:
                    images[cluster] = function(cluster)
                yield cluster, images[cluster]


def _split(pattern: Mapping[str, str], text: str) -> list[str]:
    """The matches of the pattern and the texts between them."""
    from tokenizers import Regex, pre_tokenizers

    compiled = Regex(pattern["Regex"]) if "Regex" in pattern else pattern["String"]
    splitter = pre_tokenizers.Split(compiled, "isolated")
    return [piece for piece, _ in splitter.pre_tokenize_str(text)]


def _function(part: Mapping[str, Any]) -> Callable[[str], str]:
    """The normalizer component as a function of a text."""
    import tokenizers

    content = {
        "version": "1.0",
        "normalizer": part,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    function: Callable[[str], str] = tokenizers.Tokenizer.from_str(
        json.dumps(content)
    ).normalizer.normalize_str
    return function
