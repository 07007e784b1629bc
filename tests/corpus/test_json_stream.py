"""A stream of JSON values is read as `json.loads` reads it, however it is cut into chunks."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.corpus import json_stream
from fusestore.corpus.json_stream import JsonError, JsonStream

KEYS = st.text(max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=4)
CHUNKS = st.integers(1, 40)


def read(text: str, chunk: int = 2**18, max_value: int = 2**30):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        return list(JsonStream(io.StringIO(text).read, max_value).values())


@settings(max_examples=40)
@given(records=RECORDS, chunk=CHUNKS, indent=st.none() | st.integers(0, 2))
def test_an_array(records, chunk, indent):
    text = json.dumps(records, ensure_ascii=False, indent=indent)
    assert [value for _, value in read(text, chunk)] == records


@settings(max_examples=40)
@given(records=RECORDS, chunk=CHUNKS, between=st.sampled_from(["\n", "\n\n", "\r\n"]))
def test_lines(records, chunk, between):
    text = between.join(json.dumps(record, ensure_ascii=False) for record in records)
    expected = [(1 + row * between.count("\n"), record) for row, record in enumerate(records)]
    assert read(text, chunk) == expected


def test_the_lines_of_records_of_several_lines():
    text = "\n" + json.dumps([{"a": [1, 2]}, {}, {"b": "\n"}], indent=1)
    for chunk in (1, 5, 1000):
        assert [line for line, _ in read(text, chunk)] == [3, 9, 10]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('{"a": 1}\n{"a"', 2, "Expecting ':'"),
        ('{"a": 1}\n{"a": tru}\n' + "[" * 100, 2, "Expecting value"),
        ('{"a": "x\ny"}\n', 1, "Invalid control character"),
        ('{"a": "x', 1, "Unterminated string"),
        ('[{"a": 1}\n{"a": 2}]', 2, "expected ',' or ']'"),
        ('[\n{"a": 1},\n]', 3, "Expecting value"),
        ('[{"a": 1}', 1, "expected ',' or ']'"),
        ('[{}]\n{"a": 1}', 2, "more text after the array"),
        ('\n{"text": "ok", "meta": ' + "[" * 100_000 + "]" * 100_000 + "}", 2, "too deeply"),
        ('{"a": ' + "9" * 5000 + "}", 1, "4300 digits"),
    ],
)
def test_what_is_no_json_is_named_with_its_line(text, line, problem):
    for chunk in (7, 2**18):
        with pytest.raises(JsonError, match=problem) as raised:
            read(text, chunk)
        assert raised.value.line == line


def test_a_fault_ends_the_reading_early():
    """Only a value that may go on is read on for; others do not cost the rest of the file."""
    text = io.StringIO('{"a" 1}' + " " * 10_000_000)
    with pytest.raises(JsonError):
        list(JsonStream(text.read, 2**30).values())
    assert text.tell() <= json_stream._CHUNK


def test_a_value_is_no_longer_than_the_limit():
    assert read(json.dumps({"a": "x" * 900}), 100, 1000)
    with pytest.raises(JsonError, match="longer than 1,000 characters"):
        read(json.dumps({"a": "x" * 9_000}), 100, 1000)
