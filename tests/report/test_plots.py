"""Learning curves as text and as SVG: what stands where, in any width and without color."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.errors import InvalidInputError
from fusestore.report.learning_curves import LearningCurve
from fusestore.report.plot_frame import PlotFrame, bits_at, decimals, short_number
from fusestore.report.svg_plot import check_plot_file, save_plot, svg_plot
from fusestore.report.text_plot import text_plot
from fusestore.storage.location import Location

FALLING = [(0, 8.0), (10_000, 4.0), (20_000, 3.0), (30_000, 2.5), (40_000, 2.2), (50_000, 2.0)]
LOWER = [(0, 8.0), (10_000, 3.5), (20_000, 2.5), (30_000, 2.0), (40_000, 1.7), (50_000, 1.5)]
SVG = "{http://www.w3.org/2000/svg}"

numbers = st.integers(0, 10**9)
scores = st.floats(0, 20, allow_nan=False)
curves = st.lists(st.tuples(numbers, scores), min_size=1, max_size=9, unique_by=lambda p: p[0])


PLOT = """\
held-out bits per byte by training tokens
6 |    o
  |    oxo
  |     xo
  |      xxo
4 |       xooooo
  |        xxxxoooooo
  |            xxxxxxoooooooooo
2 |                  xxxxxxxxxxoxoooooooooo
  |                             xxxxxxxxxxx
  +---------------+--------------+--------
   0              20k            40k
o plain: best 2.0000 after 50,000 tokens
x fused: best 1.5000 after 50,000 tokens"""


def test_the_plot_in_a_terminal():
    assert text_plot({"plain": FALLING, "fused": LOWER}, width=44, height=9) == PLOT


@settings(max_examples=60, deadline=None)
@given(st.lists(curves, min_size=1, max_size=9), st.integers(40, 120), st.integers(4, 30))
def test_any_curves_fit_any_width(several, width, height):
    named = {f"run {number}": sorted(curve) for number, curve in enumerate(several)}
    lines = text_plot(named, width=width, height=height).splitlines()
    assert len(lines) == 1 + height + 2 + len(named)
    assert all(line.isascii() for line in lines)
    assert max(map(len, lines[1 : height + 3])) <= width
    frame = PlotFrame.of(named.values())
    assert frame.lowest <= min(bits for curve in named.values() for _, bits in curve)
    assert frame.lowest < frame.highest
    ticks = frame.bits_ticks(6)
    assert all(frame.lowest - 1e-9 <= tick <= frame.highest + 1e-9 for tick in ticks)
    assert len({f"{tick:.{decimals(ticks)}f}" for tick in ticks}) == len(ticks)
    ET.fromstring(svg_plot({name: [curve] for name, curve in named.items()}))  # noqa: S314 - our own


def test_curves_that_are_equal_take_turns():
    shown = text_plot({"one": FALLING, "two": FALLING})
    bottom = next(line for line in reversed(shown.splitlines()) if "|" in line)
    assert "oxoxox" in bottom


def test_the_frame_leaves_out_the_steep_beginning():
    assert PlotFrame.of([FALLING]) == PlotFrame(50_000, 2.0, 6.0)
    assert PlotFrame.of([FALLING], highest=3.0).highest == 3.0
    # What rises later is shown.
    rising = [(0, 3.0), (10, 2.0), (20, 9.0)]
    assert PlotFrame.of([rising]).highest == 9.0
    assert bits_at(FALLING, 5_000) == 6.0


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(0, "0"), (800, "800"), (1_500, "1.5k"), (50_000, "50k"), (2_500_000, "2.5M"), (10**9, "1G")],
)
def test_numbers_of_an_axis(tokens, text):
    assert short_number(tokens) == text


def test_an_image_has_each_curve_and_its_title():
    image = ET.fromstring(svg_plot({"a < b": [FALLING, LOWER], "other": [LOWER]}))  # noqa: S314 - our own
    lines = image.findall(f"{SVG}polyline")
    assert [len(line.get("points").split()) for line in lines] == [6, 6, 6]
    assert lines[0].get("stroke") == lines[1].get("stroke") != lines[2].get("stroke")
    # The same curve lies at the same place.
    assert lines[1].get("points") == lines[2].get("points")
    texts = [text.text for text in image.findall(f"{SVG}text")]
    assert {"a < b", "other", "held-out bits per byte by training tokens", "50k"} <= set(texts)
    across, down = zip(
        *(map(float, point.split(",")) for point in lines[0].get("points").split()), strict=True
    )
    assert list(across) == sorted(across)
    assert list(down) == sorted(down)


def test_an_image_is_written_outside_the_store(tmp_path):
    store = Location.parse(tmp_path / "store")
    file = str(tmp_path / "plots" / "curves.svg")
    check_plot_file(file, store)
    tokens, bits = zip(*FALLING, strict=True)
    save_plot(file, [LearningCurve("plain", "clm", "base", tokens, bits)])
    assert "plain (the text alone)" in (tmp_path / "plots" / "curves.svg").read_text()
    with pytest.raises(InvalidInputError, match="outside"):
        check_plot_file(str(tmp_path / "store" / "curves.svg"), store)
    with pytest.raises(InvalidInputError, match=r"ends with \.svg"):
        check_plot_file(str(tmp_path / "curves.png"), store)
