"""Tables in any width: names and numbers whole, text cut where it must be, never to nothing."""

import re

import pytest
from fusestore_cli.tables import table_lines
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

WORDS = st.text(st.sampled_from("abcdefgh ,…ß你🙂"), max_size=90)
NUMBERS = st.decimals(-99999, 99999, places=2, allow_nan=False).map(str)


@st.composite
def tables(draw):
    kinds = draw(st.lists(st.sampled_from([WORDS, NUMBERS]), min_size=1, max_size=7))
    names = st.text("abcdefgh/-", min_size=1, max_size=draw(st.sampled_from([8, 30, 120])))
    columns = ["artifact", *(f"column {number}" for number in range(len(kinds)))]
    cells = st.tuples(names, *kinds).map(list)
    return columns, draw(st.lists(cells, max_size=6))


@given(tables(), st.integers(40, 200))
def test_lines_fit_and_nothing_shrinks_to_nothing(table, width):
    columns, rows = table
    lines = list(table_lines(columns, rows, width))
    text = "\n".join(lines)
    for name in (row[0] for row in rows):
        assert name in text
    for line in lines:
        # A name is never cut, so it alone may be wider than the terminal.
        assert cell_len(line) <= width or line in {row[0] for row in rows}
        assert line == line.rstrip()
    for title in columns[1:]:
        assert title in text
    for row in rows:
        for cell in row[1:]:
            if re.fullmatch(r"-?[\d.]+", cell):
                assert cell in text
            else:
                # At least the beginning of a text.
                assert cell.strip()[:8].rstrip() in text


@given(tables())
def test_a_pipe_gets_every_cell_whole(table):
    columns, rows = table
    lines = list(table_lines(columns, rows, None))
    assert len(lines) == len(rows) + 1
    for row, line in zip(rows, lines[1:], strict=True):
        assert line.startswith(row[0])
        for cell in row:
            assert cell.rstrip() in line


def test_columns_are_aligned_on_the_left():
    lines = list(
        table_lines(["a", "size", "text"], [["x/y", "1.2 kB", "one"], ["z", "3", "t"]], 80)
    )
    assert lines == ["a    size    text", "x/y  1.2 kB  one", "z    3       t"]


def test_numbers_that_do_not_fit_follow_below():
    rows = [[f"source{number}", *["0.1234"] * 12] for number in range(2)]
    columns = ["source", *(f"column{number}" for number in range(12))]
    lines = list(table_lines(columns, rows, 80))
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("source1") for line in lines) == 2
    assert "".join(lines).count("0.1234") == 24


def test_a_long_name_stands_above_its_row():
    name = "map/" + "0123456789abcdef-" * 4
    rows = [["cache/x", "complete", "some"], [name, "complete", "more"]]
    lines = list(table_lines(["artifact", "state", "content"], rows, 80))
    assert lines == [
        "artifact  state     content",
        "cache/x   complete  some",
        name,
        "          complete  more",
    ]


@pytest.mark.parametrize("width", [80, 120, None])
def test_an_empty_table_is_its_header(width):
    assert list(table_lines(["a", "b"], [], width)) == ["a  b"]
