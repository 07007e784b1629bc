"""Every format gives the same documents, in little memory, or says what is wrong with the file."""

import bz2
import gzip
import io
import json
import lzma
import random
import sys
import tracemalloc
from pathlib import Path

import polars as pl
import pytest

from fusestore.corpus import decoded_text, input_rows
from fusestore.corpus.ingest import read_documents
from fusestore.corpus.input_format import COMPRESSIONS, PACKED
from fusestore.corpus.settings import CorpusSettings
from fusestore.corpus.splits import HeldOut
from fusestore.errors import InvalidInputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}
TEXTS = ["first\r\nline\rmore", "zwei\u2028漢字 🦜", ' "quoted", with\tcommas\n', "x" * 200_000, ""]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


def file_of(suffix: str) -> bytes:
    """`ROWS` as a file; the first text alone as a text file."""
    frame = pl.DataFrame(ROWS)
    data = io.BytesIO()
    if suffix in (".txt", ".md"):
        return TEXTS[0].encode()
    if suffix in (".jsonl", ".ndjson"):
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
    if suffix == ".json":
        return json.dumps(ROWS, indent=1).encode()
    if suffix in (".csv", ".tsv"):
        separator = "," if suffix == ".csv" else "\t"
        return frame.write_csv(separator=separator, quote_style="non_numeric").encode()
    {".parquet": frame.write_parquet, ".arrow": frame.write_ipc_stream}.get(
        suffix, frame.write_ipc
    )(data)
    return data.getvalue()


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [*PACKED, ".parquet", ".arrow", ".feather", ".ipc"])
def test_every_format_gives_the_same_documents(tmp_path, suffix):
    documents = read_documents(write(tmp_path, f"a{suffix}", file_of(suffix)))
    is_text = suffix in (".txt", ".md")
    assert documents["text"].to_list() == (TEXTS[:1] if is_text else TEXTS)
    rows = [f"a{suffix}"] if is_text else [f"a{suffix}#{row}" for row in range(len(TEXTS))]
    assert documents["source"].to_list() == rows


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_packed_file_gives_the_documents_of_the_plain_one(tmp_path, compression):
    for suffix in PACKED:
        write(tmp_path, f"plain/a{suffix}", file_of(suffix))
        packed = COMPRESS[compression](file_of(suffix))
        write(tmp_path, f"packed/a{suffix}{compression}", packed)
        # Archives may be several, one after another.
        write(tmp_path, f"plain/b{suffix}", file_of(suffix))
        halves = file_of(suffix)[:7], file_of(suffix)[7:]
        packed = b"".join(COMPRESS[compression](half) for half in halves)
        write(tmp_path, f"packed/b{suffix}{compression.upper()}", packed)
    rules = [HeldOut(fraction=0.5)]
    plain = read_documents(tmp_path / "plain", held_out=rules)
    assert plain.equals(read_documents(tmp_path / "packed", held_out=rules))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_damaged_archive_is_one_clear_error(tmp_path, compression):
    content = random.Random(3).randbytes(30_000).hex().encode()  # noqa: S311 - any bytes
    packed = COMPRESS[compression](content)
    for data in (packed[:-9], packed[: len(packed) // 2], b"text", b"\0" + packed, packed[:3]):
        path = write(tmp_path, f"a.txt{compression}", data)
        with pytest.raises(InvalidInputError, match=rf"^a\.txt{compression} could not be unpacked"):
            read_documents(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
def test_a_bomb_does_not_fill_the_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(decoded_text, "MAX_DOCUMENT", 100_000)
    monkeypatch.setattr(input_rows, "MAX_DOCUMENT", 100_000)
    start = {".csv": b"text\n", ".txt": b""}.get(Path(name).suffix, b'{"text": "')
    path = write(tmp_path, f"{name}.gz", gzip.compress(start + b"x" * 20_000_000, 1))
    tracemalloc.start()
    with pytest.raises(InvalidInputError, match=r"more than 100,000 bytes|longer than 100,000"):
        read_documents(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_memory_grows_with_the_texts_only(tmp_path, suffix):
    row = {"text": "t", "other": "x" * 20_000}
    rows = [row] * 400
    data = {
        ".jsonl": "\n".join(map(json.dumps, rows)),
        ".json": json.dumps(rows),
        ".csv": "text,other\n" + "\n".join(",".join(row.values()) for row in rows),
    }[suffix]
    path = write(tmp_path, f"a{suffix}.gz", gzip.compress(data.encode(), 1))
    del data
    tracemalloc.start()
    assert len(read_documents(path)) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    for suffix in (".txt", ".jsonl", ".json", ".csv", ".tsv"):
        data = file_of(suffix).decode().encode(encoding)
        texts = read_documents(write(tmp_path, f"a{suffix}", data))["text"].to_list()
        assert texts == (TEXTS[:1] if suffix == ".txt" else TEXTS)
    # Elsewhere it is a character of the text.
    inside = write(tmp_path, "b.txt", "a\ufeffb".encode())
    assert read_documents(inside)["text"].to_list() == ["a\ufeffb"]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('[{"text": "a"}, {"text": "b"}]', ["a", "b"]),
        ('{"data": [{"text": "a"}, {"text": "b"}], "version": 1}', ["a", "b"]),
        ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        ('{\n "text": "a",\n "data": [1]\n}', ["a"]),
    ],
)
def test_what_a_json_file_may_hold(tmp_path, content, texts):
    for name in ("a.json", "a.jsonl"):
        assert read_documents(write(tmp_path, name, content.encode()))["text"].to_list() == texts


def test_a_blank_cell_is_a_blank_document(tmp_path):
    path = write(tmp_path, "a.csv", b'id,text,part\r\n1,x,a\r\n\r\n2,,a\r\n3,"",b\r\n')
    read = read_documents(path, split_column="part")
    assert read["text"].to_list() == ["x", "", ""]
    assert read["source"].to_list() == ["a.csv#0", "a.csv#1", "a.csv#2"]
    assert read["split"].to_list() == ["a", "a", "b"]
    path = write(tmp_path, "a.csv", b"text,part\nx,\n")
    with pytest.raises(InvalidInputError, match=r"Line 2 of a\.csv has no value in 'part'"):
        read_documents(path, split_column="part")


def test_bad_files_are_named_with_the_line(tmp_path):
    frame = pl.DataFrame({"text": ["a", "b"]})
    stream, file = io.BytesIO(), io.BytesIO()
    frame.write_ipc_stream(stream)
    frame.write_ipc(file)
    cases = [
        ("a.csv", b"id,text\n1,x\n2\n", r"Line 3 of a\.csv has cells for 1 columns.* names 2"),
        ("b.csv", b'id,text\n1,"a\nb"\n2,x,y\n', r"Line 4 of b\.csv has cells for 3 columns"),
        ("c.csv", b'text\n"x"y"\n', r"Line 2 of c\.csv could not be read"),
        ("d.csv", b'text\nx\n"y\n', r"Line 3 of d\.csv could not be read: unexpected end"),
        ("e.tsv", b"id\tbody\n", r"e\.tsv has no column 'text'; its columns are id, body"),
        ("f.csv", b"", r"f\.csv has no column 'text'; its columns are none"),
        (
            "g.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}',
            r"Line 2 of g\.jsonl is not UTF-8: byte 0xe9",
        ),
        (
            "h.json",
            b'[{"text": "a"},\n{"text": 7}]',
            r"Line 2 of h\.json has 7 in 'text', not text",
        ),
        ("i.json", b'{"data": [1]}', r"Line 1 of i\.json is not a JSON object but 1"),
        (
            "j.json",
            b'{"name": "x"}',
            r"j\.json has no column 'text'; .* pattern instead of a folder",
        ),
        ("k.jsonl", b'\xff\xfe{\x00"', r"Line 1 of k\.jsonl is not UTF-16: truncated data"),
        (
            "l.jsonl",
            b'{"text": "ok", "meta": ' + b"[" * 100_000,
            r"Line 1 of l\.jsonl .* nested too",
        ),
        ("m.arrow", stream.getvalue()[:-8], r"m\.arrow is an Arrow stream without its end"),
        ("n.arrow", file.getvalue()[:-20], r"n\.arrow could not be read as \.arrow"),
        ("o.feather", b"FEA1" + b"\0" * 50, r"o\.feather is of version 1 of Feather"),
        ("p.parquet", b"PAR1" + b"\0" * 50, r"p\.parquet could not be read as \.parquet"),
    ]
    for name, data, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            read_documents(write(tmp_path, name, data))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_damaged_tables_are_read_or_refused(tmp_path, suffix):
    """Whatever bytes they have: panics of the libraries are caught."""
    data = io.BytesIO()
    frame = pl.DataFrame({"text": ["a", "zwei"] * 20, "number": range(40)})
    {".parquet": frame.write_parquet, ".arrow": frame.write_ipc_stream}.get(
        suffix, frame.write_ipc
    )(data)
    whole, choice = data.getvalue(), random.Random(7)  # noqa: S311 - repeatable
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole[: choice.choice([len(whole), choice.randrange(len(whole))])])
        for _ in range(min(len(damaged), choice.randrange(20))):
            damaged[choice.randrange(len(damaged))] = choice.randrange(256)
        try:
            read_documents(write(tmp_path, f"a{suffix}", bytes(damaged)))
        except InvalidInputError:
            refused += 1
    assert refused > 50


def save_dataset(folder: Path, parts: list[list[str]]) -> None:
    """A folder as `datasets.Dataset.save_to_disk` writes it."""
    names = [f"data-{part:05}-of-{len(parts):05}.arrow" for part in range(len(parts))]
    for name, texts in zip(names, parts, strict=True):
        data = io.BytesIO()
        pl.DataFrame({"text": texts, "label": [0] * len(texts)}).write_ipc_stream(data)
        write(folder, name, data.getvalue())
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write(folder, "state.json", json.dumps(state).encode())
    write(folder, "dataset_info.json", b'{"citation": "", "features": {}}')


def test_a_saved_dataset(tmp_path):
    folder = tmp_path / "saved"
    save_dataset(folder, [["a", "b"], ["c"]])
    assert read_documents(folder).select("source", "text").rows() == [
        ("data-00000-of-00002.arrow#0", "a"),
        ("data-00000-of-00002.arrow#1", "b"),
        ("data-00001-of-00002.arrow#0", "c"),
    ]
    # Results that were cached beside it are no part of it, also if a pattern matches them.
    (folder / "cache-0123.arrow").write_bytes((folder / "data-00000-of-00002.arrow").read_bytes())
    for inputs in (folder, tmp_path, f"{folder}/*.arrow"):
        lines = []
        assert len(read_documents(inputs, report=lines.append)) == 3
        assert lines == [f"Not read in {inputs}: 1 cached by datasets."]
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InvalidInputError, match="lacks data-00001-of-00002"):
        read_documents(folder)


def test_the_splits_of_a_saved_dataset_are_not_mixed(tmp_path):
    folder = tmp_path / "saved"
    save_dataset(folder / "train", [["a", "b"]])
    save_dataset(folder / "test", [["c"]])
    write(folder, "dataset_dict.json", b'{"splits": ["train", "test"]}')
    with pytest.raises(InvalidInputError, match=r"several splits\. Keep them by the split column"):
        read_documents(folder)
    kept = read_documents(folder, split_column="split")
    assert kept.select("text", "split").rows() == [("c", "test"), ("a", "train"), ("b", "train")]
    rules = [HeldOut(patterns=("test/*",))]
    assert read_documents(folder, held_out=rules)["split"].to_list() == [
        "held_out",
        "train",
        "train",
    ]
    assert read_documents(folder / "test")["text"].to_list() == ["c"]
    with pytest.raises(InvalidInputError, match="has no column 'part'"):
        read_documents(folder, split_column="part")


def test_files_that_are_named_like_those_of_a_saved_dataset(tmp_path):
    for content in (b'{"text": "a"}', b'{"text": "a", "_data_files": [1]}'):
        path = write(tmp_path, "state.json", content)
        assert read_documents(path)["text"].to_list() == ["a"]
        assert read_documents(tmp_path)["text"].to_list() == ["a"]


def test_text_and_split_are_two_columns():
    with pytest.raises(ValueError, match="text_column and split_column are both 'text'"):
        CorpusSettings(split_column="text")
