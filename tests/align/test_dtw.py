"""Warping against plain programmes: the band, the anchors, and the distances underneath."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from fusestore.align.kinds import INSIDE, MINED, NONE, SPAN
from fusestore.align.tokens.token_distance import code_texts, text_distance
from tests.helpers.plain_spans import never_falls, of_kind
from tests.helpers.plain_warping import plain_anchored, plain_pairs
from tests.helpers.token_pieces import POINTS, align, cut, two_cuts


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abcé中\udc80", max_size=8) | st.text("ab", max_size=150), max_size=4),
    st.lists(st.text("abcé中\udc80", max_size=8) | st.text("xb", max_size=150), max_size=4),
)
def test_distances_are_levenshtein(source, target):
    left, right = code_texts(source, target)
    masks = np.zeros(left.alphabet, np.uint64)
    for i, a in enumerate(source):
        for j, b in enumerate(target):
            assert text_distance(left, i, right, j, masks) == Levenshtein.distance(a, b)
            assert not masks.any()


@st.composite
def two_cuts_of_long_text(draw):
    """Mostly the same cuts, so that the anchored path is good and the band narrow."""
    data = draw(st.text(alphabet="abcdefgh é中", min_size=40, max_size=160)).encode()
    points = draw(st.lists(st.integers(0, 200), min_size=20, max_size=60))
    changed = draw(st.lists(st.integers(0, 200), max_size=8))
    dropped = draw(st.integers(0, 10))
    return cut(data, points), cut(data, points[dropped:] + changed)


@settings(max_examples=60, deadline=None)
@given(two_cuts_of_long_text())
def test_the_band_loses_nothing(cuts):
    source, target = ([piece for piece in side if piece] for side in cuts)
    pairs = plain_pairs(source, target)
    assert align(source, target, "mined")[0] == [pairs.get(j, -1) for j in range(len(target))]


@settings(max_examples=300, deadline=None)
@given(two_cuts() | two_cuts_of_long_text())
def test_anchored_is_the_plain_programme_between_anchors(cuts):
    source, target = ([piece for piece in side if piece] for side in cuts)
    if not source:
        return
    exact, _ = align(source, target, "exact")
    pairs = plain_anchored(source, target, exact)
    position, kind = align(source, target, "anchored")
    assert position == [pairs.get(j, -1) for j in range(len(target))]
    span = of_kind(*align(source, target, "span"), SPAN)
    for p, s, k in zip(position, span, kind, strict=True):
        assert k == (NONE if p < 0 else SPAN if p == s else MINED)


@settings(max_examples=150, deadline=None)
@given(st.text("ab é", min_size=1, max_size=20), POINTS, POINTS, st.integers(0, 6))
def test_sides_that_end_apart_are_warped_to_the_end(text, left, right, lost):
    """As where a tokenizer's normalizer drops the end of the text."""
    data = text.encode()
    source = [piece for piece in cut(data, left) if piece]
    target = [piece for piece in cut(data[: max(1, len(data) - lost)], right) if piece]
    for one, other in ((source, target), (target, source)):
        exact, _ = align(one, other, "exact")
        anchored, full = plain_anchored(one, other, exact), plain_pairs(one, other)
        columns = range(len(other))
        assert align(one, other, "anchored")[0] == [anchored.get(j, -1) for j in columns]
        assert align(one, other, "mined")[0] == [full.get(j, -1) for j in columns]
        position, kind = align(one, other, "hybrid")
        paired = [p for p in of_kind(position, kind, SPAN, MINED) if p >= 0]
        assert paired == sorted(set(paired))
        assert never_falls(of_kind(position, kind, SPAN, INSIDE))


@pytest.mark.parametrize("method", ["mined", "anchored", "hybrid"])
def test_tokens_with_nothing_in_common(method):
    """The bound is no use here: every cell is on a path as good as the anchored one's."""
    source = [bytes([97 + i % 3]) * (1 + i % 4) for i in range(30)]
    target = [bytes([110 + i % 5]) * (1 + i % 3) for i in range(24)]
    if method == "mined":
        pairs = plain_pairs(source, target)
        assert align(source, target, method)[0] == [pairs.get(j, -1) for j in range(len(target))]
    else:
        assert len(align(source, target, method)[0]) == len(target)
