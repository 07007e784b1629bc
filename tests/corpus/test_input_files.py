"""Which files of an input are read, by which names, and what is said of the others."""

import os
from pathlib import Path

import pytest

from fusestore.corpus.ingest import read_documents
from fusestore.corpus.input_format import InputFormat
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"text")


def sources(*inputs) -> list[str]:
    return read_documents(inputs)["source"].to_list()


def skipped(folder) -> str:
    lines = []
    read_documents(folder, report=lines.append)
    assert len(lines) <= 1
    return "".join(lines)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", (".txt", "", "a.txt")),
        ("D.TXT", (".txt", "", "D.TXT")),
        ("a.b/c.JsonL.GZ", (".jsonl", ".gz", "a.b/c.JsonL")),
        ("x.md.zst", (".md", ".zst", "x.md")),
        ("x.feather", (".feather", "", "x.feather")),
        ("x.parquet.gz", None),
        ("x.tar.gz", None),
        ("txt", None),
        (".gz", None),
        ("", None),
    ],
)
def test_the_format_is_told_by_the_suffix(name, expected):
    assert InputFormat.of(name) == (expected and InputFormat(*expected))


def test_a_folder_is_read_without_what_people_did_not_put_there(tmp_path):
    write(tmp_path, "a.txt", "D.TXT", "sub/b.md")
    write(tmp_path, ".ipynb_checkpoints/a-checkpoint.txt", "._a.txt", "a.txt~", "#a.txt#")
    write(tmp_path, ".a.swp", ".git/x.txt", "__MACOSX/a.txt", ".DS_Store", "~$letter.txt")
    assert sources(tmp_path) == ["D.TXT", "a.txt", "sub/b.md"]
    assert sources(f"{tmp_path}/**/*") == ["D.TXT", "a.txt", "sub/b.md"]
    assert skipped(tmp_path) == f"Not read in {tmp_path}: 9 hidden."
    # What is named is read.
    assert sources(tmp_path / "._a.txt") == ["._a.txt"]
    assert sources(f"{tmp_path}/.git/*.txt") == ["x.txt"]
    assert sources(f"{tmp_path}/._*.txt") == ["._a.txt"]


def test_what_is_not_read_is_said_in_one_line(tmp_path):
    write(tmp_path, "a.txt", "x.pdf", "y.PDF", "z.png", "README", "t.tar.gz", "p.parquet.gz")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    expected = "2 .pdf, 1 .tar.gz, 1 .png, 1 .parquet.gz, 1 without suffix, 1 linked to nothing"
    line = skipped(tmp_path)
    assert line.startswith(f"Not read in {tmp_path}: 2 .pdf, ")
    assert sorted(line.rstrip(".").split(": ")[1].split(", ")) == sorted(expected.split(", "))
    # A pattern says what is left out of what it matches.
    assert skipped(f"{tmp_path}/*.txt") == ""
    assert skipped(f"{tmp_path}/[ax]*") == f"Not read in {tmp_path}/[ax]*: 1 .pdf."


def test_a_line_about_many_kinds_is_short(tmp_path):
    write(tmp_path, "a.txt", *(f"x.{letter}" for letter in "abcdefghijkl"))
    assert skipped(tmp_path).endswith(", 4 others.")


def test_linked_folders_are_read_once(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    write(inside, "a.txt", "real/b.txt")
    write(outside, "c.txt", "deep/d.txt")
    (inside / "again").symlink_to("real")
    (inside / "out").symlink_to(outside)
    (inside / "circle").symlink_to(inside)
    (outside / "back").symlink_to(inside)
    assert sources(inside) == ["a.txt", "out/c.txt", "out/deep/d.txt", "real/b.txt"]
    assert skipped(inside) == f"Not read in {inside}: 3 linked twice."
    # The input itself may be a link.
    (tmp_path / "link").symlink_to(inside)
    assert sources(tmp_path / "link") == sources(inside)
    assert sources(f"{tmp_path}/link/*/c.txt") == ["out/c.txt"]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_path_that_exists_is_no_pattern(place, tmp_path, request):
    root = tmp_path if place == "local" else request.getfixturevalue("s3_url")
    for name in ("folder [x]/a.txt", "folder [x]/b [1].txt", "folder x/c.txt", "[a].txt"):
        publish(Location.parse(f"{root}/{name}"), b"text")
    assert sources(f"{root}/folder [x]") == ["a.txt", "b [1].txt"]
    assert sources(f"{root}/folder [x]/*.txt") == ["a.txt", "b [1].txt"]
    assert sources(f"{root}/folder [x]/b [1].txt") == ["b [1].txt"]
    assert sources(f"{root}/folder [wxy]/*.txt") == ["folder x/c.txt"]
    assert sources(f"{root}/[a].txt") == ["[a].txt"]


def test_a_pattern_looks_no_deeper_than_it_says(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "b/c.txt", "b/d/e.txt")
    opened = []
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: opened.append(path) or listing(path))
    assert sources(f"{tmp_path}/*.txt") == ["a.txt"]
    assert sources(f"{tmp_path}/*/*.txt") == ["b/c.txt"]
    assert opened == [tmp_path, tmp_path, tmp_path / "b"]
    assert sources(f"{tmp_path}/**/*.txt") == ["a.txt", "b/c.txt", "b/d/e.txt"]


def test_names_that_are_not_utf_8_are_escaped(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xfc"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this filesystem has only names in UTF-8")
    write(folder, os.fsdecode(b"caf\xe9.txt"), os.fsdecode(b"caf\xe9.p\xe9f"))
    assert sources(tmp_path) == [r"f\xfc/caf\xe9.txt"]
    assert sources(folder) == [r"caf\xe9.txt"]
    assert sources(folder / os.fsdecode(b"caf\xe9.txt")) == [r"caf\xe9.txt"]
    assert skipped(folder) == rf"Not read in {tmp_path}/f\xfc: 1 .p\xe9f."


def test_a_file_and_its_packed_copy_are_two_of_one_name(tmp_path):
    write(tmp_path, "a.txt", "a.txt.gz")
    with pytest.raises(InvalidInputError, match=r"'a\.txt': .*a\.txt and .*a\.txt\.gz\. Leave"):
        read_documents(tmp_path)


def test_inputs_that_hold_nothing(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist or is an empty folder"):
        read_documents(tmp_path)
    with pytest.raises(NotFoundError, match=r"No file matches .*\*\.txt"):
        read_documents(f"{tmp_path}/*.txt")
    with pytest.raises(InvalidInputError, match=r"'\[z-a\]\.txt' is no pattern"):
        read_documents(f"{tmp_path}/[z-a].txt")
    write(tmp_path, ".hidden.txt")
    with pytest.raises(InvalidInputError, match="found hidden files only"):
        read_documents(tmp_path)
