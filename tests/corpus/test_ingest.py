"""Reading documents of every kind of input, and saying clearly what is wrong with a bad one."""

import io
import json
from pathlib import Path

import polars as pl
import pytest

from fusestore.corpus.ingest import read_documents
from fusestore.corpus.splits import HeldOut, limit_documents
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish

TEXTS = ["first\r\nline", "zwei\u2028漢字 🦜", ' "quoted", with commas\n']


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> Location:
    if request.param == "local":
        return Location.parse(tmp_path / "in")
    return Location.parse(request.getfixturevalue("s3_url") + "/in")


def fill(root: Location) -> None:
    """The same three texts as `.txt`, `.jsonl`, `.parquet` and `.csv`."""
    for number, text in enumerate(TEXTS):
        publish(root / f"txt/year/190{number}.txt", text.encode())
    lines = [json.dumps({"id": n, "body": t}, ensure_ascii=False) for n, t in enumerate(TEXTS)]
    publish(root / "t.jsonl", "\n".join(lines).encode())
    frame = pl.DataFrame({"body": TEXTS, "part": ["a", "b", "a"]})
    publish(root / "t.csv", frame.write_csv().encode())
    data = io.BytesIO()
    frame.write_parquet(data)
    publish(root / "t.parquet", data.getvalue())


def test_every_kind_of_file_gives_the_same_texts(root):
    fill(root)
    for name in ("t.jsonl", "t.csv", "t.parquet"):
        frame = read_documents(f"{root}/{name}", text_column="body")
        assert frame["text"].to_list() == TEXTS
        assert frame["source"].to_list() == [f"{name}#{row}" for row in range(3)]
        assert set(frame["split"]) == {"train"}
    frame = read_documents(f"{root}/txt")
    assert frame["text"].to_list() == TEXTS
    assert frame["source"].to_list() == [f"year/190{number}.txt" for number in range(3)]
    frame = read_documents(
        [f"{root}/t.csv", f"{root}/t.parquet"], text_column="body", split_column="part"
    )
    assert frame["split"].to_list() == ["a", "b", "a"] * 2


def test_patterns_name_files_below_their_fixed_part(root):
    fill(root)
    frame = read_documents(f"{root}/txt/*/190[!1].txt")
    assert frame["source"].to_list() == ["year/1900.txt", "year/1902.txt"]
    assert len(read_documents(f"{root}/**/*.txt")) == 3
    with pytest.raises(NotFoundError, match="No file matches"):
        read_documents(f"{root}/*.txt")


def test_held_out_rules():
    rules = [HeldOut(patterns=("19[89]*", "20*")), HeldOut(split="dev", fraction=0.25, seed=3)]
    assert rules[0].matches("1985-Reagan.txt")
    assert not rules[0].matches("1905-Roosevelt.txt")
    names = [f"document {number}" for number in range(4000)]
    matched = [name for name in names if rules[1].matches(name)]
    assert 900 < len(matched) < 1100
    assert matched == [name for name in names if rules[1].matches(name)]
    with pytest.raises(ValueError, match="either patterns or a fraction"):
        HeldOut()
    with pytest.raises(ValueError, match="either patterns or a fraction"):
        HeldOut(patterns=("*",), fraction=0.5)


def test_the_first_rule_that_matches_a_document_wins(tmp_path):
    for name in ("1789", "1985", "2001"):
        (tmp_path / f"{name}.txt").write_text(name)
    rules = [HeldOut(patterns=("19*",)), HeldOut(split="late", patterns=("*",))]
    assert read_documents(tmp_path, held_out=rules)["split"].to_list() == [
        "late",
        "held_out",
        "late",
    ]


def test_limits_keep_documents_in_order():
    frame = pl.DataFrame(
        {
            "source": [str(number) for number in range(10)],
            "text": ["é" * 5] * 10,
            "split": ["train"] * 6 + ["held_out"] * 4,
        }
    )
    kept = limit_documents(frame, max_documents=3)
    assert kept["source"].to_list() == ["0", "1", "2"]
    assert limit_documents(frame, max_bytes=25)["source"].to_list() == ["0", "1"]
    kept = limit_documents(frame, max_documents={"train": 2}, max_bytes={"held_out": 10})
    assert kept["source"].to_list() == ["0", "1", "6"]
    drawn = limit_documents(frame, max_documents=5, sample_seed=1)["source"].to_list()
    assert (
        drawn
        == sorted(drawn)
        == limit_documents(frame, max_documents=5, sample_seed=1)["source"].to_list()
    )
    assert drawn != ["0", "1", "2", "3", "4"]
    with pytest.raises(InvalidInputError, match=r"\['test'\]"):
        limit_documents(frame, max_bytes={"test": 1})
    # A split is never dropped in silence.
    with pytest.raises(InvalidInputError, match="without documents: the first, 6, has 10 bytes"):
        limit_documents(frame, max_bytes={"train": 25, "held_out": 9})


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_bad_input_is_named(tmp_path):
    cases = [
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8: byte 0xe9 at position 3"),
        ("b.csv", b"text\ncaf\xe9\n", r"Line 2 of b\.csv is not UTF-8: byte 0xe9"),
        ("c.csv", b"id,body\n1,x\n", r"c\.csv has no column 'text'; its columns are id, body"),
        ("d.jsonl", b'{"id": 1}\n', r"d\.jsonl has no column 'text'; its columns are id"),
        ("e.jsonl", b'{"text": "a"}\n{"text": null}\n', r"Line 2 of e\.jsonl has no value"),
        ("f.jsonl", b'{"text": "a"}\n{"text": 7}\n', r"Line 2 of f\.jsonl has 7 in 'text'"),
        (
            "n.jsonl",
            b'{"text": "\\ud800"}\n',
            r"Line 1 of n\.jsonl holds the lone surrogate U\+D800",
        ),
        ("g.jsonl", b'{"text": "a"}\n{"text"\n', r"Line 2 of g\.jsonl is not JSON"),
        ("h.jsonl", b"[1]\n", r"Line 1 of h\.jsonl is not a JSON object"),
        ("j.parquet", b"not parquet at all", r"j\.parquet could not be read"),
        ("k.pdf", b"%PDF", r"k\.pdf is of a kind that cannot be read"),
        ("l.csv", b"text\n", "The corpus is empty"),
    ]
    for name, data, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            read_documents(write(tmp_path, name, data))
    pl.DataFrame({"text": [1, 2]}).write_parquet(tmp_path / "m.parquet")
    with pytest.raises(InvalidInputError, match=r"holds Int64, not text"):
        read_documents(tmp_path / "m.parquet")
    pl.DataFrame({"text": ["a", None]}).write_parquet(tmp_path / "o.parquet")
    with pytest.raises(
        InvalidInputError, match=r"Row 1 of o\.parquet has no value in column 'text'"
    ):
        read_documents(tmp_path / "o.parquet")


def test_inputs_that_are_not_there(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(NotFoundError, match="does not exist or is an empty folder"):
        read_documents(tmp_path / "pictures")
    write(tmp_path / "pictures", "cat.png", b"x")
    with pytest.raises(InvalidInputError, match=r"holds no file that can be read: found cat\.png"):
        read_documents(tmp_path / "pictures")
    with pytest.raises(NotFoundError, match="does not exist"):
        read_documents(tmp_path / "absent.txt")
    with pytest.raises(InvalidInputError, match="no input at all"):
        read_documents([])


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "x.txt", b"text")
    with pytest.raises(InvalidInputError, match=r"Two input files go by the name 'x\.txt'"):
        read_documents([tmp_path / "a", tmp_path / "b"])
    assert len(read_documents(tmp_path)) == 2


def test_a_bucket_that_does_not_exist(s3_url):
    with pytest.raises(NotFoundError, match="does not exist"):
        read_documents(s3_url + "-absent/in/*.txt")
