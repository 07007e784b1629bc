"""Two tokenizations of one text as columns, cut at every boundary of either, with explanations.

Pure functions; the command prints and colors.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.align.kinds import (
    ALIGNMENT_KINDS,
    INSIDE,
    INSIDE_METHODS,
    MINED,
    SPAN,
    AlignmentMethod,
)
from fusestore.store.manifest import Frozen
from fusestore.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True)
class AlignedDocument:
    """One document as tokens of both sides, and its alignment.

    Attributes:
        name: for messages and titles.
        text: its text as UTF-8.
        source_ids: int32 [n], and `source_ends` int32 [n], its source tokens.
        source_ends: see above.
        target_ids: int32 [m], and `target_ends` int32 [m], its target tokens.
        target_ends: see above.
        source_vocab: vocabulary of the source ids.
        target_vocab: vocabulary of the target ids.
        method: the alignment method.
        source_pos: int32 [m], −1 for none.
        kind: uint8 [m], index into `ALIGNMENT_KINDS`.
    """

    name: str
    text: bytes
    source_ids: npt.NDArray[np.int32]
    source_ends: npt.NDArray[np.int32]
    target_ids: npt.NDArray[np.int32]
    target_ends: npt.NDArray[np.int32]
    source_vocab: Vocabulary
    target_vocab: Vocabulary
    method: AlignmentMethod
    source_pos: npt.NDArray[np.int32]
    kind: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Cell:
    """The bytes of one token between two boundaries.

    Attributes:
        text: readable text; empty where the side has no token.
        position: the token's position, −1 for none.
        kind: name of a target token's alignment kind; for a source token, of the first target
            token that its row may supervise.
        closes: whether the token ends at the second boundary.
    """

    text: str
    position: int
    kind: str
    closes: bool


_NO_CELL = Cell("", -1, "none", closes=False)


@dataclass(frozen=True)
class Column:
    """The cells of both sides between two boundaries; `end` is the second."""

    end: int
    source: Cell
    target: Cell


class Explanation(Frozen):
    """The alignment of one target position, and the reason for it.

    Attributes:
        target_pos: position of the target token in its document, from 0.
        target_token: its text; spaces as ␣, bytes that are no UTF-8 escaped.
        target_end: byte of the text at which it ends.
        kind: its alignment kind.
        source_pos: position of the source token with its row; null if there is none.
        source_token: that token's text.
        source_end: byte at which that token ends.
        why: the reason, for people.
    """

    target_pos: int
    target_token: str
    target_end: int
    kind: str
    source_pos: int | None
    source_token: str | None
    source_end: int | None
    why: str


class ShownAlignment(Frozen):
    """What `fusestore align --inspect` and `--text` print with `--json`.

    Attributes:
        document: the document, for people.
        method: the alignment method.
        num_tokens: target tokens of the document.
        tokens: the target tokens that are shown, in their order.
    """

    document: str
    method: AlignmentMethod
    num_tokens: int
    tokens: tuple[Explanation, ...]


def shown_text(data: bytes) -> str:
    """Bytes as readable text: spaces as ␣; controls and invalid UTF-8 escaped."""
    characters = []
    for character in data.decode("utf-8", "backslashreplace"):
        if character == " ":
            characters.append("␣")
        elif unicodedata.category(character)[0] in "CZ" or unicodedata.combining(character):
            characters.append(character.encode("unicode_escape").decode())
        else:
            characters.append(character)
    return "".join(characters)


def columns(document: AlignedDocument) -> list[Column]:
    """The document cut at every end offset of either side, in order.

    A character that lies in one token is shown in its first column, even if the other side cuts it.
    A token without text, which ends where the token before it ends, gets its own column, with its
    vocabulary's bytes in angle brackets.
    """
    text = document.text
    source = _Side(
        text,
        document.source_ids,
        document.source_ends,
        document.source_vocab,
        _source_kinds(document),
    )
    target = _Side(
        text,
        document.target_ids,
        document.target_ends,
        document.target_vocab,
        [ALIGNMENT_KINDS[kind] for kind in document.kind],
    )
    result = []
    start = 0
    for end in np.union1d(document.source_ends, document.target_ends).tolist():
        if end > start:
            result.append(Column(end, source.cell(start, end), target.cell(start, end)))
        left, right = source.without_text(end), target.without_text(end)
        missing = len(left) - len(right)
        # The last pairs with the last, as in `spans.py`.
        left = [_NO_CELL] * -missing + left
        right = [_NO_CELL] * missing + right
        result += [Column(end, *pair) for pair in zip(left, right, strict=True)]
        start = end
    return result


def window(document: AlignedDocument, first: int, last: int) -> list[Column]:
    """The columns of target positions `[first, last)`."""
    chosen = []
    inside = first == 0
    for column in columns(document):
        position = column.target.position
        if position >= 0:
            inside = first <= position < last
        if inside:
            chosen.append(column)
    return chosen


def explain(document: AlignedDocument, position: int) -> Explanation:
    """The alignment of a target position, and the reason for it."""
    end = int(document.target_ends[position])
    partner = int(document.source_pos[position])
    kind = int(document.kind[position])
    is_aligned = partner >= 0
    return Explanation(
        target_pos=position,
        target_token=_token(document.target_vocab, document.target_ids[position]),
        target_end=end,
        kind=ALIGNMENT_KINDS[kind],
        source_pos=partner if is_aligned else None,
        source_token=(
            _token(document.source_vocab, document.source_ids[partner]) if is_aligned else None
        ),
        source_end=int(document.source_ends[partner]) if is_aligned else None,
        why=_why(document, position),
    )


def _why(document: AlignedDocument, position: int) -> str:
    ends = document.target_ends
    end, kind = int(ends[position]), document.kind[position]
    if kind == SPAN:
        return f"both end at byte {end}"
    if kind == INSIDE:
        return _why_inside(document, position)
    if kind == MINED:
        return "their ends differ, but the path of least edit distance joins only these two"
    if position + 1 < len(ends) and ends[position + 1] == end:
        return f"another target token ends at byte {end} too, and the last such token is aligned"
    after = int(np.searchsorted(document.source_ends, end, side="right"))
    if after and document.source_ends[after - 1] == end:
        if document.method == "exact":
            return f"source token {after - 1} ends at byte {end} too, but begins elsewhere"
        return (
            f"source token {after - 1} ends at byte {end} too, but the path of least edit distance "
            "does not join the two one-to-one"
        )
    around = document.source_ends[max(0, after - 1) : after + 1]
    nearest = " and ".join(str(byte) for byte in around.tolist()) or "none"
    reason = ""
    if document.method in INSIDE_METHODS and 0 < end < document.source_ends.max(initial=0):
        missing = "does not spell the bytes that it covers" if after else "has no row before it"
        reason = f"source token {after}, inside which it ends, {missing}; "
    return f"{reason}no source token ends at byte {end}; the nearest ends are {nearest}"


def _why_inside(document: AlignedDocument, position: int) -> str:
    """Where in a source token a target token ends, and by which bytes the row is conditioned."""
    row = int(document.source_pos[position])
    start, stop = document.source_ends[row : row + 2].tolist()
    piece = _piece(document.source_vocab, document.source_ids[row + 1])
    inside = int(document.target_ends[position]) - start
    # A tokenizer may add a space in front of a document's first byte.
    since = shown_text(piece[: inside + len(piece) - (stop - start)])
    return (
        f"ends {inside} {'byte' if inside == 1 else 'bytes'} inside source token {row + 1} "
        f"{shown_text(piece)}; row {row}, conditioned on {since}, has read the same text"
    )


def _token(vocabulary: Vocabulary, token: int | np.int32) -> str:
    return shown_text(_piece(vocabulary, token))


def _piece(vocabulary: Vocabulary, token: int | np.int32) -> bytes:
    """The bytes of a token; its number where the vocabulary lacks it, as in a damaged cache."""
    if 0 <= token < len(vocabulary):
        return vocabulary.token_bytes[int(token)]
    return f"<{token}>".encode()


def _source_kinds(document: AlignedDocument) -> list[str]:
    kinds = ["none"] * len(document.source_ids)
    for position, kind in zip(document.source_pos[::-1], document.kind[::-1], strict=True):
        if position >= 0:
            kinds[position] = ALIGNMENT_KINDS[kind]
    return kinds


class _Side:
    """Walks the tokens of one side from boundary to boundary."""

    def __init__(
        self,
        text: bytes,
        ids: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int32],
        vocabulary: Vocabulary,
        kinds: Sequence[str],
    ) -> None:
        self.ids, self.ends, self.vocabulary, self.kinds = ids, ends, vocabulary, kinds
        self.shown = _shown_bytes(text, ends)
        self.next = 0

    def cell(self, start: int, end: int) -> Cell:
        """The current token's bytes `[start, end)`."""
        token = self.next
        if token == len(self.ends):
            return _NO_CELL
        closes = bool(self.ends[token] == end)
        self.next += closes
        return Cell("".join(self.shown[start:end]), token, self.kinds[token], closes)

    def without_text(self, end: int) -> list[Cell]:
        """The tokens without text at `end`, after the token that ends there with text."""
        cells = []
        while self.next < len(self.ends) and self.ends[self.next] == end:
            token = self.next
            text = f"⟨{_token(self.vocabulary, self.ids[token])}⟩"
            cells.append(Cell(text, token, self.kinds[token], closes=True))
            self.next += 1
        return cells


def _shown_bytes(text: bytes, ends: npt.NDArray[np.int32]) -> list[str]:
    """The text shown for each byte; a character that lies in one token is shown for its first."""
    shown = []
    start = 0
    for end in np.unique(np.append(ends, len(text))).tolist():
        for character in text[start:end].decode("utf-8", "surrogateescape"):
            data = character.encode("utf-8", "surrogateescape")
            shown += [shown_text(data), *[""] * (len(data) - 1)]
        start = end
    return shown
