"""Tokenizations given as pieces of bytes, drawn by hypothesis, and aligned."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from fusestore.align.tokens.pairing import align_tokens
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.vocabulary import TokenKind, Vocabulary


class Pieces:
    """Tokenizations given as pieces of bytes; the vocabulary grows with them."""

    def __init__(self, digest):
        self.digest = digest
        self.ids = {b"<bos>": 0}

    def document(self, pieces, bos=False) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        ids = [self.ids.setdefault(piece, len(self.ids)) for piece in pieces]
        ends = np.cumsum([len(piece) for piece in pieces])
        if bos:
            ids, ends = [0, *ids], np.concatenate([[0], ends])
        return np.array(ids, np.int32), np.array(ends, np.int32)

    def table(self, documents, bos=False) -> TokenTable:
        parts = [self.document(pieces, bos) for pieces in documents]
        return TokenTable(
            np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in parts)]),
            np.concatenate([np.empty(0, np.int32), *(ends for _, ends in parts)]),
            np.cumsum([0, *(len(ids) for ids, _ in parts)]),
        )

    @property
    def vocabulary(self):
        texts: tuple[TokenKind, ...] = ("text",) * (len(self.ids) - 1)
        return Vocabulary(self.digest, tuple(self.ids), ("special", *texts), (("bos", 0),))


def align(source, target, method, bos=(False, False), vocabulary_map=None):
    left, right = Pieces("a" * 64), Pieces("b" * 64)
    source_document, target_document = left.document(source, bos[0]), right.document(target, bos[1])
    if vocabulary_map is not None:
        vocabulary_map = map_vocabulary(left.vocabulary, right.vocabulary, vocabulary_map)
    position, kind = align_tokens(
        *source_document,
        *target_document,
        left.vocabulary,
        right.vocabulary,
        method,
        vocabulary_map,
    )
    return position.tolist(), kind.tolist()


def cut(data, points):
    """The bytes cut at these points; empty pieces are tokens without text."""
    marks = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


POINTS = st.lists(st.integers(0, 40), max_size=14)


TEXT = st.text(alphabet="ab c é中😀\n", max_size=14)


@st.composite
def two_cuts(draw):
    data = draw(TEXT).encode()
    return cut(data, draw(POINTS)), cut(data, draw(POINTS))
